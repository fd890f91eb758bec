"""Prepared statements whose plans do not grow old.

A server keeps the plan of a prepared statement until it hears of new statistics. A queue goes from empty to a million
rows in seconds, and the plan that was right for the empty one, to read all of it, would then be kept for a minute. To
plan anew every time costs a third of a claim. So a statement is another one every few seconds.
"""

import time

__all__ = ["PLAN_S", "aged"]

PLAN_S = 10


def aged(statement: str) -> str:
    """The statement, in a form that changes every `PLAN_S` seconds."""
    return f"{statement} /* {int(time.monotonic()) // PLAN_S} */"
