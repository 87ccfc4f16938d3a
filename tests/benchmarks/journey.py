"""The journey of a user as the benchmarks drive it: the `txpert` command in its own process."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

TXPERT = Path(sys.executable).with_name("txpert")


def txpert(*arguments: object) -> float:
    """Run one verb; the seconds it took. A failure shows what the user would see and ends the benchmark."""
    started = time.perf_counter()
    command = [str(TXPERT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return time.perf_counter() - started


def scores(report: Path, metric: str = "pearson_delta") -> dict[str, float]:
    """Mean of one metric for every predictor and for the split-half reproducibility of a report."""
    content: dict[str, Any] = json.loads((report / "report.json").read_text(encoding="utf-8"))
    rows = [*content["predictors"], *content["reproducibility"]]
    return {row["name"]: row["metrics"][metric]["mean"] for row in rows}
