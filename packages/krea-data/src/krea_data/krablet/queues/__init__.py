"""The queues of tasks on every shard: claims, answers, priorities, figures."""

__all__: list[str] = []
