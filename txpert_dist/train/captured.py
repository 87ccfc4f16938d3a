"""Node embeddings out of CUDA graphs, made on a stream of their own.

Enters: the graph encoder in training, on its GPU, and what it works on in every step. Leaves: z_PD of a step,
differentiable in the encoder's parameters, from a replay of operations that were recorded once: nothing is
launched one by one, and what the stream of the caller does in the meantime runs beside it. Invariants: the
values are those of the encoder's own call; recording changes no parameter, gradient, norm's statistics or
random stream; gradients reach the parameters on the caller's stream.

What ``torch.cuda.make_graphed_callables`` asks for, and how it gets it:

* nothing but tensors may change: the step is one, and dropout is drawn from it on the device
* autocast must not remember casts, which a replay would not repeat, nor be on when gradients are recorded:
  ``precision`` is entered in the forward alone
* no parameter's gradient may be tied to another stream than the one that records (DeepSpeed's hooks, a step
  taken before): what is recorded reads the parameters' memory through leaves of its own
* the gradients it gives lie in the graph's memory and are overwritten by the next replay: a step sets
  ``grad`` to None when it has been taken, as DeepSpeed's do, and never adds one step's to another's
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from txpert_dist.model.dropout import DropoutKey
from txpert_dist.model.encoders.reach import Reach
from txpert_dist.model.norm import statistics_kept

Precision = Callable[[], AbstractContextManager[object]]
"""A context for the encoder's forward, anew at each call."""


class CapturedEncoder:
    """The encoder's forward and backward in CUDA graphs."""

    def __init__(
        self, encoder: nn.Module, reaches: Sequence[Reach], *, seed: int, precision: Precision
    ) -> None:
        """Record what ``encoder`` does for ``reaches``: a few steps, then forward and backward.

        Parameters must stay where they are, as every optimiser leaves them; no other thread may use the GPU.
        """
        self._learned = learned(encoder)
        leaves = [p.detach().requires_grad_() for p in self._learned.values()]
        self._step = torch.zeros((), dtype=torch.int64, device=leaves[0].device)
        self._stream = torch.cuda.Stream(self._step.device)  # type: ignore[no-untyped-call]
        with statistics_kept(encoder):
            self._graphed = torch.cuda.make_graphed_callables(
                step_function(encoder, list(self._learned), reaches, seed=seed, precision=precision),
                (self._step, *leaves),
                allow_unused_input=True,
            )

    def begin(self, step: int) -> Tensor:
        """z_PD of optimiser step ``step`` in single precision, under way: ``joined`` before it is used.

        The next call overwrites it, and one backward pass goes through it before that.
        """
        # of the caller's stream: so are then its gradients, and DeepSpeed's hooks see all of them in order
        views = [parameter.view_as(parameter) for parameter in self._learned.values()]
        self._stream.wait_stream(torch.cuda.current_stream(self._step.device))
        with torch.cuda.stream(self._stream):
            self._step.fill_(step)
            z_PD = self._graphed(self._step, *views)
        assert isinstance(z_PD, Tensor)
        return z_PD

    def joined(self, z_PD: Tensor) -> Tensor:
        """``z_PD``, or a view of it, once what the current stream does from now on waits for it."""
        stream = torch.cuda.current_stream(z_PD.device)
        stream.wait_stream(self._stream)
        z_PD.record_stream(stream)
        return z_PD


def learned(encoder: nn.Module) -> Mapping[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {name: p for name, p in encoder.named_parameters() if p.requires_grad}


def step_function(
    encoder: nn.Module, names: Sequence[str], reaches: Sequence[Reach], *, seed: int, precision: Precision
) -> Callable[..., Tensor]:
    """z_PD in single precision of (step, the parameters of these ``names``): a function of tensors alone.

    The step is a () int64 tensor where the encoder computes. What else the function reads is the encoder's
    and stays where it is; norms remember in place what they see.
    """

    def embeddings(step: Tensor, *parameters: Tensor) -> Tensor:
        replaced = dict(zip(names, parameters, strict=True))
        with precision():
            z_PD: Tensor = functional_call(encoder, replaced, (DropoutKey(seed, step, 0), reaches))
        return z_PD.float()

    return embeddings
