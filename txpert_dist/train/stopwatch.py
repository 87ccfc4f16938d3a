"""Where the time of a step goes.

Enters: laps. Leaves: mean seconds of each phase since the last report, and cells a second. Invariant: on a
GPU, where work is queued, a lap waits for the device, so laps are taken only in steps that are measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from txpert_dist.train.collective import world_size


class Stopwatch:
    """Mean duration of named phases, and cells a second, between two reports."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._seconds: dict[str, list[float]] = {}
        self._cells = 0
        self._since = time.perf_counter()

    @contextmanager
    def lap(self, phase: str, *, measured: bool) -> Iterator[None]:
        """Time one phase of one step; on a GPU only when ``measured``."""
        if not self._measures(measured):
            yield
            return
        started = time.perf_counter()
        yield
        self._add(phase, self._now() - started)

    @contextmanager
    def backward(self, z_PD: Tensor | None, *, measured: bool) -> Iterator[None]:
        """Time a backward pass in two: ``backward_cells`` until the gradient of ``z_PD`` is known,
        ``backward_gnn`` from there to the end, reductions over ranks included; in one, ``backward``, when
        the embeddings were made out of sight."""
        if z_PD is None or not (self._measures(measured) and z_PD.requires_grad):
            with self.lap("backward" if z_PD is None else "backward_cells", measured=measured):
                yield
            return
        known: list[float] = []
        hook = z_PD.register_hook(lambda _: known.append(self._now()))  # type: ignore[no-untyped-call]
        started = time.perf_counter()
        yield
        ended = self._now()
        hook.remove()
        between = known[-1] if known else ended
        self._add("backward_cells", between - started)
        self._add("backward_gnn", ended - between)

    def count(self, cells: int) -> None:
        """Add the cells of one step, over all ranks."""
        self._cells += cells

    def restart(self) -> None:
        """Forget what was measured; what follows does not count what lay between (validation, say)."""
        self._seconds, self._cells, self._since = {}, 0, time.perf_counter()

    def report(self) -> dict[str, float]:
        """``time/PHASE_s``, ``train/cells_per_s`` and ``train/cells_per_s_worker`` since the last report."""
        elapsed = time.perf_counter() - self._since
        metrics = {f"time/{phase}_s": sum(laps) / len(laps) for phase, laps in self._seconds.items()}
        metrics["train/cells_per_s"] = self._cells / elapsed
        metrics["train/cells_per_s_worker"] = self._cells / elapsed / world_size()
        self.restart()
        return metrics

    def _measures(self, measured: bool) -> bool:
        return measured or self._device.type != "cuda"

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()

    def _add(self, phase: str, seconds: float) -> None:
        self._seconds.setdefault(phase, []).append(seconds)
