"""The journey as a user makes it: the installed `txpert` command in its own process, reports read back."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

TXPERT = Path(sys.executable).with_name("txpert")


def attempt(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one verb and return how it ended."""
    command = [str(TXPERT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def txpert(*arguments: object) -> str:
    """Run one verb that must succeed; what it printed. A failure shows what the user would see."""
    done = attempt(*arguments)
    if done.returncode:
        raise AssertionError(f"{arguments} exited with {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


class Journey(NamedTuple):
    """Where each stage's result of one screen is."""

    folder: Path

    @property
    def store(self) -> Path:
        """The cell store."""
        return self.folder / "screen.zarr"

    @property
    def graphs(self) -> Path:
        """The folder of snapshots."""
        return self.folder / "graphs"

    @property
    def run(self) -> Path:
        """The run's folder."""
        return self.folder / "runs" / "run"

    @property
    def registry(self) -> str:
        """The MLflow tracking URI."""
        return f"sqlite:///{self.folder / 'runs' / 'mlflow.db'}"

    def train(self, config: Path, *overrides: str) -> str:
        """Train on this journey's store and graphs."""
        paths = (f"data.store={self.store}", f"graph.location={self.graphs}", f"output={self.run.parent}")
        return txpert("train", config, "name=run", *paths, *overrides)

    def report(self) -> dict[str, Any]:
        """The run's report."""
        content: dict[str, Any] = json.loads((self.run / "report" / "report.json").read_text())
        return content


def scores(report: dict[str, Any], metric: str = "pearson_delta") -> dict[str, float]:
    """Mean of one metric for every predictor and for the split-half reproducibility of a report."""
    rows = [*report["predictors"], *report["reproducibility"]]
    return {row["name"]: row["metrics"][metric]["mean"] for row in rows}
