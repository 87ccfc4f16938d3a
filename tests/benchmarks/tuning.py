"""The settings that `science_simulated` gives each encoder: the best of a small grid on validation scores.

    python -m tests.benchmarks.tuning [--json FILE]

The screen is SIMULATED with a seed that the benchmark does not use, and test scores are not looked at. Every
encoder gets the same grid: learning rate times dropout, for the transformers with batch and with layer norm.
"""

import argparse
import itertools
import json
import tempfile
from pathlib import Path

from tests.benchmarks.record import machine
from tests.benchmarks.science_simulated import ENCODERS, SCENARIOS, Variant, run_seed
from tests.benchmarks.training import Result, Tree

SEED = 4
LEARNING_RATES = (2e-3, 4e-3, 8e-3)
DROPOUTS = (0.1, 0.3)
GRAPHS = ["interactions", "pathways"]


def settings(kind: str) -> list[tuple[Tree, float]]:
    """Changes of the encoder and learning rate, all combinations."""
    norms: list[Tree] = [{}] if "exphormer" not in kind else [{"norm": "batch"}, {"norm": "layer"}]
    return [
        ({"dropout": dropout, **norm}, rate)
        for dropout, norm, rate in itertools.product(DROPOUTS, norms, LEARNING_RATES)
    ]


def variants() -> list[Variant]:
    """Every encoder with every combination."""
    found = []
    for kind, chosen in ENCODERS.items():
        for changes, rate in settings(kind):
            tree = {
                "model": {"perturbation": chosen.options | changes},
                "optimiser": {"learning_rate": rate},
                "graph": {"use": GRAPHS},
            }
            found.append(Variant(f"{kind}: {changes}, learning rate {rate:g}", tree))
    return found


def score(result: Result) -> float:
    """Validation Pearson delta; the lowest when it is not defined."""
    value = result.scores["validation"]["pearson_delta"]["model"]
    return -1.0 if value is None else value


def main() -> None:
    """Train all, print the ranking of each encoder's settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    scenario = SCENARIOS["encoders"]._replace(variants=tuple(variants()), splits=("validation",))
    with tempfile.TemporaryDirectory() as folder:
        results = run_seed(scenario, Path(folder), SEED, None)
    scores = {name: score(result) for name, result in results.items()}
    for kind in ENCODERS:
        own = {name: value for name, value in scores.items() if name.startswith(f"{kind}: ")}
        for name in sorted(own, key=lambda name: -own[name]):
            print(f"{own[name]:.4f} {name}", flush=True)
    if options.json:
        record = {"machine": machine(), "seed": SEED, "validation_pearson_delta": scores}
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
