"""What pertpy says of clouds of cells: run where pertpy is installed, to write pertpy_distances.json.

    pip install "pertpy==1.0.3" filelock "statsmodels<0.15"
    python tests/golden/pertpy_distances.py

pertpy pulls in two gigabytes that our tests would not need otherwise; so its answers are stored.
"""

import json
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_suffix(".json")
DISTANCES = ("edistance", "pearson_distance", "spearman_distance", "r2_distance", "mse")
CASES = ((0, 5, 8, 30), (1, 40, 7, 30), (2, 1, 12, 100), (3, 25, 25, 6), (4, 3, 60, 400), (5, 30, 30, 50))
"""Seed, observed cells, predicted cells, genes."""


def clouds(seed: int, observed: int, predicted: int, genes: int) -> tuple[np.ndarray, np.ndarray]:
    """Deltas of observed cells and of predicted ones: a signal that both have, rare large values, noise."""
    rng = np.random.default_rng(seed)
    signal_G = rng.standard_normal(genes) * (rng.random(genes) < 0.4)
    first_AG = signal_G + 0.8 * rng.standard_normal((observed, genes))
    second_BG = (0.3 + 0.2 * seed) * signal_G + 0.3 * rng.standard_normal((predicted, genes))
    return first_AG, second_BG + (rng.random((predicted, genes)) < 0.02)


def main() -> None:
    """Ask pertpy and write its answers."""
    import pertpy

    answers = []
    for case in CASES:
        observed_AG, predicted_BG = clouds(*case)
        found = {name: float(pertpy.tl.Distance(name)(observed_AG, predicted_BG)) for name in DISTANCES}
        answers.append({"case": list(case), **found})
    text = json.dumps({"pertpy": pertpy.__version__, "answers": answers}, indent=2)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
