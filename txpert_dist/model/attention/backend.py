"""Which implementation of graph attention computes.

``compiled`` are kernels for the CPU (``cpu``), ``reference`` is plain torch, on any device. Both give the
same numbers up to rounding, and are differentiable in the same arguments.
"""

from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "compiled", "reference"]
"""``auto`` is ``compiled`` where it can be, else ``reference``."""


def compiles(backend: Backend, x: Tensor) -> bool:
    """Whether the compiled kernels take ``x``. Raises ``ValueError`` when they are asked for and do not."""
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if backend == "compiled" and not fits:
        raise ValueError(f"no compiled graph attention for {x.dtype} on {x.device.type}")
    return fits and backend != "reference"
