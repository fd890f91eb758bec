"""PostgreSQL servers of our own, in a folder: started on demand, stopped with their last user."""

__all__: list[str] = []
