"""Limits on the numbers that tasks left in rows, for each stage its own, and a page on which to choose them.

Tasks measure and drop what no stage wants; a limit here is a choice that can be made again, and deletes nothing.
"""

__all__: list[str] = []
