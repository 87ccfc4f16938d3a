"""A stand-in for what training asks of ``torch.cuda`` where there is none: work is repeated, not replayed.

As there, inputs, outputs and gradients lie at places that every repetition overwrites, and work on another
stream is done when somebody waits for it, not before: until then its output is not a number.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

WARM_UP = 3


class Stream:
    """Work that waits to be waited for."""

    def __init__(self, _device: Any = None) -> None:
        self.pending: list[Callable[[], None]] = []

    def wait_stream(self, other: "Stream") -> None:
        for work in other.pending:
            work()
        other.pending.clear()


class Device:
    """What stands in for ``torch.cuda``."""

    def __init__(self) -> None:
        self.main = Stream()
        self.current = self.main

    def install(self) -> None:
        """For the rest of this process."""
        torch.cuda.Stream = Stream
        torch.cuda.stream = self.stream
        torch.cuda.current_stream = lambda _device=None: self.current
        torch.cuda.make_graphed_callables = self.repeated
        torch.Tensor.record_stream = lambda _tensor, _stream: None

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        self.current = stream
        try:
            yield
        finally:
            self.current = self.main

    def submit(self, work: Callable[[], None]) -> None:
        if self.current is self.main:
            work()
        else:
            self.current.pending.append(work)

    def repeated(
        self, function: Callable[..., Tensor], places: Sequence[Tensor], *, allow_unused_input: bool
    ) -> Callable[..., Tensor]:
        """As ``make_graphed_callables``, for one function of one output."""
        leaves = [place for place in places if place.requires_grad]
        for _ in range(WARM_UP):
            made = function(*places)
            torch.autograd.grad(made, leaves, torch.ones_like(made), allow_unused=allow_unused_input)
        out, d_out = made.detach().clone(), torch.empty_like(made)
        grads = [torch.empty_like(leaf) for leaf in leaves]
        latest: list[Tensor] = []

        def forward() -> None:
            with torch.enable_grad():
                latest[:] = [function(*places)]
            out.copy_(latest[0].detach())

        device = self

        class Repeated(torch.autograd.Function):
            @staticmethod
            def forward(_ctx: Any, *inputs: Tensor) -> Tensor:
                for place, given in zip(places, inputs, strict=True):
                    if place.data_ptr() != given.data_ptr():
                        place.copy_(given)
                out.fill_(torch.nan)
                device.submit(forward)
                return out.detach()

            @staticmethod
            def backward(_ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
                d_out.copy_(d)
                found = torch.autograd.grad(latest, leaves, d_out, allow_unused=allow_unused_input)
                for grad, value in zip(grads, found, strict=True):
                    if value is not None:
                        grad.copy_(value)
                given = iter(zip(grads, found, strict=True))
                pairs = [next(given) if place.requires_grad else (None, None) for place in places]
                return tuple(None if value is None else grad.detach() for grad, value in pairs)

        return Repeated.apply
