"""Which implementation of graph attention computes.

``compiled`` are kernels for the CPU (``cpu``, by Numba) and for CUDA devices (``cuda``, by Triton), and
``reference`` is plain torch, on any device. All give the same numbers up to rounding, and are differentiable
in the same arguments.
"""

from functools import cache
from importlib.util import find_spec
from typing import Literal

import torch
from torch import Tensor

Backend = Literal["auto", "compiled", "triton", "reference"]
"""``auto`` is ``compiled`` where it can be, else ``reference``. ``triton`` is ``cuda`` wherever tensors are:
Triton's interpreter runs kernels on the CPU."""
Kernels = Literal["cpu", "cuda"]


def kernels_for(backend: Backend, x: Tensor) -> Kernels | None:
    """Whose kernels take ``x``; None for the reference.

    Raises ``ValueError`` when compiled ones are asked for and none take it.
    """
    if backend == "triton" or (backend != "reference" and x.is_cuda and _has_triton()):
        return "cuda"
    fits = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
    if backend == "compiled" and not fits:
        raise ValueError(f"no compiled graph attention for {x.dtype} on {x.device.type}")
    return "cpu" if fits and backend != "reference" else None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
