"""The JSON that every benchmark writes: machine, commit and cases with their reference in the same run."""

import json
import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = ("torch", "ray", "deepspeed", "numpy", "zarr", "anndata", "mlflow")


class Case(NamedTuple):
    """One measured value beside its reference, measured in the same run."""

    name: str
    value: float
    unit: str
    reference: str
    reference_value: float

    @property
    def ratio(self) -> float | None:
        """Value over reference; None where the reference is 0."""
        return self.value / self.reference_value if self.reference_value else None


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {package: version(package) for package in PACKAGES},
    }


def write(file: Path, cases: list[Case], **details: Any) -> None:
    """Write the record; ``details`` says what was run (sizes, seeds)."""
    record = {
        "machine": machine(),
        "commit": _commit(),
        "details": details,
        "cases": [{**case._asdict(), "ratio": case.ratio} for case in cases],
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _commit() -> str:
    done = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
