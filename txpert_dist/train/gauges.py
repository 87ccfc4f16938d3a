"""Metrics of a run where Prometheus finds them: Ray's exporter on each node.

Enters: metrics of a step, in a process that is connected to Ray. Leaves: gauges ``ray_txpert_...`` with the
run's name as a tag. Invariant: the last value counts; setting one never waits for anybody.
"""

import math
import re
from collections.abc import Mapping

from ray.util.metrics import Gauge


class Gauges:
    """The metrics of one run."""

    def __init__(self, run: str) -> None:
        self._run = run
        self._gauges: dict[str, Gauge] = {}

    def set(self, metrics: Mapping[str, float], step: int) -> None:
        """Show ``metrics`` of ``step``; a value that is not finite leaves the last one."""
        for key, value in {**metrics, "train/step": float(step)}.items():
            if math.isfinite(value):
                self._gauge(key).set(value, tags={"run": self._run})

    def _gauge(self, key: str) -> Gauge:
        if key not in self._gauges:
            name = "txpert_" + re.sub(r"[^A-Za-z0-9_]", "_", key)
            self._gauges[key] = Gauge(name, description=f"{key} of a run", tag_keys=("run",))
        return self._gauges[key]
