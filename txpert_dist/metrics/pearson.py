"""Pearson correlation row by row, and the Pearson delta.

Enters: two arrays of the same shape, any float type. Leaves: one float64 number per row. Invariant: a row
that has no correlation (constant, or not finite) gives NaN, never a number.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

BLOCK = 512
"""Rows worked on at once: bounds the memory to a few copies of this many rows."""


class UnitRows(NamedTuple):
    """Rows centred and scaled to length one, so that their inner products are Pearson correlations."""

    unit_PG: NDArray[np.float64]
    """(P, G) zero where undefined."""
    defined_P: NDArray[np.bool_]
    """(P,) False for constant rows and rows with a value that is not finite."""


def unit_rows(values_PG: NDArray[np.floating]) -> UnitRows:
    """Centre every row and scale it to length one, in float64.

    Rows are first scaled by a power of two, which is exact and keeps squares in range, and centred twice,
    since the mean of values far from zero is itself rounded.
    """
    unit_PG: NDArray[np.float64] = np.array(values_PG, np.float64, order="C")
    if not unit_PG.size:
        return UnitRows(unit_PG, np.zeros(len(unit_PG), bool))
    defined_P = np.isfinite(unit_PG).all(1) & (unit_PG.max(1) != unit_PG.min(1))
    unit_PG[~defined_P] = 0.0
    exponent_P = np.frexp(np.maximum(unit_PG.max(1), -unit_PG.min(1)))[1]
    np.ldexp(unit_PG, -exponent_P[:, None], out=unit_PG)
    for _ in range(2):
        unit_PG -= unit_PG.mean(1, keepdims=True)
    length_P = np.sqrt(np.einsum("pg,pg->p", unit_PG, unit_PG))
    unit_PG /= np.where(defined_P, length_P, 1.0)[:, None]
    return UnitRows(unit_PG, defined_P)


def pearson_delta(
    predicted_PG: NDArray[np.floating], observed_PG: NDArray[np.floating]
) -> NDArray[np.float64]:
    """(P,) Pearson correlation of each predicted with each observed delta, over the genes.

    A delta is expression minus the control mean of the cell's own cell line and batch, averaged over the
    cells of a perturbation (methods, "Pearson delta"). NaN where either row is constant or not finite.
    Raises ``ValueError`` when the shapes differ.
    """
    if predicted_PG.shape != observed_PG.shape:
        raise ValueError(f"predicted {predicted_PG.shape} and observed {observed_PG.shape} differ in shape")
    result_P = np.full(len(predicted_PG), np.nan)
    for start in range(0, len(result_P), BLOCK):
        block = slice(start, start + BLOCK)
        result_P[block] = row_correlation(unit_rows(predicted_PG[block]), unit_rows(observed_PG[block]))
    return result_P


def row_correlation(first: UnitRows, second: UnitRows) -> NDArray[np.float64]:
    """(P,) correlation of row p of one with row p of the other; NaN where either is undefined."""
    correlation_P = np.clip(np.einsum("pg,pg->p", first.unit_PG, second.unit_PG), -1.0, 1.0)
    return np.where(first.defined_P & second.defined_P, correlation_P, np.nan)
