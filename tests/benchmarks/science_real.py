"""How good is the model on real screens? Pearson delta and retrieval on held-out perturbations, beside
baselines and split-half reproducibility, on Papalexi 2021 and the Norman 2019 subset, over several seeds.

    python -m tests.benchmarks.science_real [--quick] [--json FILE]

A seed decides split and model. The screens are small (25 and 33 perturbations), so a seed holds out 6 to 8
of them: read the spread, not the digits.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

from tests.benchmarks.record import Case, write
from tests.journey import Journey, scores, txpert
from tests.real_screens import NORMAN, PAPALEXI, RealScreen, missing, write_recipe

SEEDS = (0, 1, 2)
METRICS = ("pearson_delta", "retrieval", "pseudobulk_mse")
CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "small_screen.yaml"

Scores = dict[str, dict[str, float | None]]
"""metric -> row of the report -> mean."""


def run_seed(screen: RealScreen, folder: Path, seed: int, epochs: int) -> Scores:
    """The report's means of one split and model seed."""
    journey = Journey(folder)
    txpert("ingest", screen.file, "--store", journey.store, *screen.ingest, "--split-seed", seed)
    txpert("graph", "build", write_recipe(folder), "--out", journey.graphs)
    journey.train(CONFIG, f"seed={seed}", f"train.epochs={epochs}")
    txpert("evaluate", journey.run)
    return {metric: scores(journey.report(), metric) for metric in METRICS}


def summarise(results: list[Scores], metric: str) -> dict[str, tuple[float, float]]:
    """Row -> mean and standard deviation over seeds, for rows that have a value in every seed."""
    rows = {}
    for name in results[0][metric]:
        values = [value for result in results if (value := result[metric][name]) is not None]
        if len(values) == len(results):
            rows[name] = (mean(values), stdev(values) if len(values) > 1 else 0.0)
    return rows


def main() -> None:
    """Run every screen and seed, print means and spread, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = SEEDS[:1] if options.quick else SEEDS
    cases, details = [], {}
    for screen in (PAPALEXI, NORMAN):
        if missing(screen):
            raise SystemExit(f"TXPERT_SHARED_DATA lacks {', '.join(missing(screen))}")
        results, epochs = [], 2 if options.quick else screen.epochs
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                results.append(run_seed(screen, Path(folder), seed, epochs))
        print(screen.name)
        for metric in METRICS:
            rows = summarise(results, metric)
            details[f"{screen.name}: {metric}"] = rows
            print(f"  {metric}: " + ", ".join(f"{name} {m:.4f} ± {s:.4f}" for name, (m, s) in rows.items()))
            for name, (value, _) in rows.items():
                if name != "general" and "general" in rows:
                    title = f"{screen.name}: {metric}, {name}"
                    cases.append(Case(title, value, "", "general baseline", rows["general"][0]))
    if options.json:
        write(options.json, cases, seeds=list(seeds), mean_and_standard_deviation=details)


if __name__ == "__main__":
    main()
