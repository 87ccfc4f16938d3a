"""Loops over arrays, compiled when first called.

Enters: functions that the compiler understands. Leaves: the same, compiled. Invariants: no compiled function
holds the interpreter's lock; a sum's terms may be reordered and products joined with sums, the same way each
time, but it is not assumed that there are no infinities or NaN. The machine code that is kept for later
processes is renewed when the file changes that the function is in, and only then: what is compiled *into* a
function that is kept belongs into its file.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Compiled = TypeVar("Compiled", bound=Callable[..., Any])
Reals = NDArray[Any]
Integers = NDArray[np.int64]
Span = tuple[int, int]
"""First row and the row after the last."""

_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "error_model": "numpy",
    "fastmath": {"reassoc", "contract", "nsz"},
}


def compiled(function: Compiled) -> Compiled:
    """``function``, compiled when first called; the machine code is kept for later processes."""
    try:
        return cast(Compiled, numba.njit(cache=True, **_OPTIONS)(function))
    except RuntimeError:  # nowhere to keep it: a read-only installation without a home folder
        return cast(Compiled, numba.njit(**_OPTIONS)(function))


def inlined(function: Compiled) -> Compiled:
    """``function``, compiled into whatever compiled function calls it: a call costs as much as its loop."""
    return cast(Compiled, numba.njit(forceinline=True, **_OPTIONS)(function))


@compiled
def order_by(key_E: Integers, order_E: Integers, indptr: Integers, count: Integers) -> None:
    """Counting sort of ``order_E``, which comes in some order, by ``key_E[order_E]``; equal keys keep theirs.

    Fills ``indptr`` with where each key's entries begin; ``count`` (E,) is scratch.
    """
    indptr[:] = 0
    for entry in range(len(key_E)):
        indptr[key_E[entry] + 1] += 1
    for key in range(len(indptr) - 1):
        indptr[key + 1] += indptr[key]
    place = indptr[:-1].copy()
    for entry in range(len(order_E)):
        key = key_E[order_E[entry]]
        count[place[key]] = order_E[entry]
        place[key] += 1
    order_E[:] = count
