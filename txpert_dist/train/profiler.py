"""A look inside a few steps: where torch spends their time, operation by operation.

Enters: the first and the last step to look at. Leaves: ``<run folder>/profile/`` with a trace for a trace
viewer (chrome://tracing, ui.perfetto.dev) and a table of the most expensive operations. Invariant: other
steps run as if this were not there.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, record_function

FOLDER = "profile"
_ROWS = 60


class StepProfiler:
    """Profiles steps ``first`` to ``last``, counted from 1 as metrics are; nothing when there are none."""

    def __init__(
        self,
        steps: tuple[int, int] | None,
        run_folder: Path,
        *,
        device: torch.device,
        done: Callable[[Path], None],
    ) -> None:
        self._first, self._last = steps or (0, 0)
        self._folder, self._done = run_folder / FOLDER, done
        self._activities = [ProfilerActivity.CPU]
        if device.type == "cuda":
            self._activities.append(ProfilerActivity.CUDA)
        self._profile: profile | None = None

    @contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Take one step in this context; ``done`` hears of the folder after the last one to look at."""
        if not self._first <= number <= self._last:
            yield
            return
        if self._profile is None:
            self._first = number  # a run that was resumed may begin in between
            self._profile = profile(activities=self._activities, record_shapes=True)
            self._profile.start()
        with record_function(f"step {number}"):
            yield
        if number == self._last:
            self.close(number)

    def close(self, number: int) -> None:
        """End at step ``number``, early perhaps, and write what was seen."""
        if self._profile is None:
            return
        ended, self._profile = self._profile, None
        ended.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        name = f"steps-{self._first:06d}-{number:06d}"
        ended.export_chrome_trace(str(self._folder / f"{name}.json.gz"))
        by = "self_device_time_total" if len(self._activities) > 1 else "self_cpu_time_total"
        table = ended.key_averages().table(sort_by=by, row_limit=_ROWS)
        (self._folder / f"{name}.txt").write_text(table, encoding="utf-8")
        self._done(self._folder)
