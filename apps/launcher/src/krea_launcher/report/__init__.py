"""The report of a run: one HTML file that needs nothing else."""

__all__: list[str] = []
