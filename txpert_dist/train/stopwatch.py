"""Where the time of a step goes.

Enters: laps. Leaves: mean seconds of each phase since the last report. Invariant: on a GPU, where work is
queued, a lap waits for the device, so laps are taken only in steps that are measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
        cuda = self._device.type == "cuda"
        if cuda and not measured:
            yield
            return
        started = time.perf_counter()
        yield
        if cuda:
            torch.cuda.synchronize(self._device)
        self._seconds.setdefault(phase, []).append(time.perf_counter() - started)

    def count(self, cells: int) -> None:
        """Add the cells of one step, over all ranks."""
        self._cells += cells

    def restart(self) -> None:
        """Forget what was measured; what follows does not count what lay between (validation, say)."""
        self._seconds, self._cells, self._since = {}, 0, time.perf_counter()

    def report(self) -> dict[str, float]:
        """``time/PHASE_s`` and ``train/cells_per_s`` since the last report."""
        elapsed = time.perf_counter() - self._since
        metrics = {f"time/{phase}_s": sum(laps) / len(laps) for phase, laps in self._seconds.items()}
        metrics["train/cells_per_s"] = self._cells / elapsed
        self.restart()
        return metrics
