"""Which control cells stand beside the cells of each context.

Enters: context code and control flag of every cell. Leaves: a ``ControlIndex``. Invariant: every context has
at least one control, its own batch's where there is any, otherwise all of its cell line's (flagged, so that
the fallback is counted and never silent).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError


class Context(NamedTuple):
    """Where a cell was measured: the cell line and the experimental batch within it."""

    cell_line: str
    batch: str


class ControlIndex(NamedTuple):
    """Row numbers of control cells, grouped by context as in compressed sparse rows."""

    indptr: NDArray[np.int64]
    """(C + 1,) where each context's rows begin."""
    rows: NDArray[np.int64]
    """Control cells of each context, ascending within a context."""
    fallback: NDArray[np.bool_]
    """(C,) True where a context has no control of its own and the cell line's stand in."""


def build_control_index(
    context: NDArray[np.int32], is_control: NDArray[np.bool_], contexts: Sequence[Context]
) -> ControlIndex:
    """Group control cells by context, with the cell line's controls where a batch has none.

    ``context`` is the (num_cells,) context code of every cell, ``is_control`` its control flag.
    Raises ``InputError`` naming every cell line that has no control cell at all.
    """
    control_rows = np.flatnonzero(is_control)
    own_code = context[control_rows]
    own = [control_rows[own_code == code] for code in range(len(contexts))]
    by_line = _rows_by_cell_line(control_rows, own_code, contexts)
    lacking = sorted(line for line, rows in by_line.items() if not len(rows))
    if lacking:
        raise InputError(
            f"no control cell in cell line {', '.join(lacking)}: every cell line needs controls; "
            "check the control label or leave the cell line out with a where filter"
        )
    fallback = np.array([not len(rows) for rows in own], bool)
    chosen = [
        by_line[c.cell_line] if borrowed else rows
        for c, rows, borrowed in zip(contexts, own, fallback, strict=True)
    ]
    indptr = np.concatenate(
        [np.zeros(1, np.int64), np.cumsum([len(rows) for rows in chosen], dtype=np.int64)]
    )
    rows = np.concatenate(chosen) if chosen else np.zeros(0, np.int64)
    return ControlIndex(indptr, rows.astype(np.int64), fallback)


def _rows_by_cell_line(
    control_rows: NDArray[np.int64], own_code: NDArray[np.int32], contexts: Sequence[Context]
) -> dict[str, NDArray[np.int64]]:
    lines = sorted({c.cell_line for c in contexts})
    line_of_context = np.array([lines.index(c.cell_line) for c in contexts], np.int64)
    line_of_row = line_of_context[own_code]
    return {line: control_rows[line_of_row == number] for number, line in enumerate(lines)}
