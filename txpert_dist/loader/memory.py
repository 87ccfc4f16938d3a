"""Memory for minibatches that is used again, by itself, once nobody looks at it any more.

Enters: shapes. Leaves: arrays. Invariant: memory is lent to one array at a time, and comes back when that
array and every view and tensor of it are gone; so what somebody keeps is never written to again, and somebody
who keeps nothing makes the system find no new pages, which costs more than filling them.
"""

import math
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SPARE = 8
"""Pieces that are kept for later; more are given back to the system."""
_HEADROOM = 1.25
"""Sizes differ a little from minibatch to minibatch: a piece fits the next ones too."""


class ReusedMemory:
    """Lends arrays; threads may share it."""

    def __init__(self) -> None:
        """Nothing is held until something was lent."""
        self._free: deque[NDArray[np.uint8]] = deque(maxlen=_SPARE)

    def lend(self, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
        """An array with whatever numbers were there before."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        memory = self._piece(size)
        # Views of an array on a memoryview refer to that array, so it lives as long as they do.
        lent = np.frombuffer(memory.data, np.uint8)
        weakref.finalize(lent, self._free.append, memory).atexit = False
        return lent[:size].view(dtype).reshape(shape)

    def _piece(self, size: int) -> NDArray[np.uint8]:
        """The piece that came back last and is large enough; small ones on the way are given up."""
        try:
            while len(memory := self._free.pop()) < size:
                continue
        except IndexError:
            memory = np.empty(max(1, int(size * _HEADROOM)), np.uint8)
        return memory
