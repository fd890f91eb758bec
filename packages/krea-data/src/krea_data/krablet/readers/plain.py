"""Rows, claims and results as lists of plain values, for calls: JSON stays the text that the database gave.

row      [id, blob, meta, [[task, value, reason for dropping], ...]]    results in the order in which they came in
claim    [id, token, attempt, row]
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from krea_data.rows import Claim, Result, Row

__all__ = ["claim_of", "plain_cells", "plain_claim", "plain_row", "readable_row", "row_of"]


def plain_row(row: Row) -> list[Any]:
    """A row for the wire."""
    results = [[task, _text(result.value), result.drop] for task, result in row.results.items()]
    return [row.id, row.blob, _text(row.meta), results]


def plain_cells(tasks: Sequence[str], cells: Sequence[Any]) -> list[Any]:
    """A row for the wire from the cells of `selects.all_columns`: value, reason and time of each task."""
    answered = sorted((cells[3 * n + 5], n) for n in range(len(tasks)) if cells[3 * n + 5] is not None)
    results = [[tasks[n], cells[3 * n + 3], cells[3 * n + 4]] for _, n in answered]
    return [cells[0], cells[1], cells[2], results]


def row_of(plain: Sequence[Any]) -> Row:
    """The row that this says."""
    row_id, blob, meta, results = plain
    found = {task: Result(value=json.loads(value), drop=drop) for task, value, drop in results}
    return Row(id=row_id, blob=blob, meta=json.loads(meta), results=found)


def readable_row(plain: Sequence[Any]) -> dict[str, Any]:
    """The row as people write it in JSON: id, blob, meta, and value and reason of every result."""
    row = row_of(plain)
    results = {task: {"value": result.value, "dropped": result.drop} for task, result in row.results.items()}
    return {"id": row.id, "blob": row.blob, "meta": row.meta, "results": results}


def plain_claim(claim: Claim) -> list[Any]:
    """A claim for the wire."""
    return [claim.id, claim.token, claim.attempt, plain_row(claim.row)]


def claim_of(plain: Sequence[Any]) -> Claim:
    """The claim that this says."""
    row_id, token, attempt, row = plain
    return Claim(row=row_of(row), token=token, id=row_id, attempt=attempt)


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
