"""The second half of a sum over the tokens of each sample: partial sums of programs are added up, in a fixed order."""

import triton
import triton.language as tl

__all__ = ["COLUMNS", "ROWS", "sum_of_sample"]

ROWS, COLUMNS = 32, 64  # of the tile in which partial sums are read


@triton.jit
def sum_of_sample(partials, ends, sample, columns, features, rows, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Rows of `partials` that belong to a sample, added up: program + sample for all programs that met its tokens."""
    begin = tl.load(ends + sample).to(tl.int64)
    end = tl.load(ends + sample + 1).to(tl.int64)
    first = begin // rows + sample
    beyond = tl.where(end > begin, (end - 1) // rows + sample + 1, first)
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    slot = first
    while slot < beyond:
        lanes = slot + tl.arange(0, ROWS)
        inside = (lanes < beyond)[:, None] & (columns < features)[None, :]
        total += tl.load(partials + lanes[:, None] * features + columns[None, :], mask=inside, other=0.0)
        slot += ROWS
    return tl.sum(total, 0)
