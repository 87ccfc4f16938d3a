"""Every encoder on the real screens: ahead of the baselines on perturbations it never saw?

    python -m tests.benchmarks.science_real [--quick] [--json FILE]

A seed decides split and model. The screens are small (25 and 33 perturbations), so a seed holds out 6 to 8
of them: read the spread, not the digits. Settings are those of the simulated benchmark.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import mean, stdev

import yaml

from tests.benchmarks.record import Case, write
from tests.benchmarks.science_simulated import ENCODERS
from tests.benchmarks.training import METRICS, Job, Result, Tree, merged, train_all
from tests.journey import txpert
from tests.real_screens import NORMAN, PAPALEXI, RealScreen, missing, write_nearby_recipe
from txpert_dist.model.vocabulary import split_name
from txpert_dist.store.cells import open_store

SEEDS = (0, 1, 2)
CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "small_screen.yaml"


def run_seed(screen: RealScreen, folder: Path, seed: int, epochs: int) -> dict[str, Result]:
    """Every encoder's result on one split, each with the seed's initial weights."""
    txpert("ingest", screen.file, "--store", folder / "screen.zarr", *screen.ingest, "--split-seed", seed)
    names = open_store(folder / "screen.zarr").perturbations
    recipe = write_nearby_recipe(folder, {gene for name in names for gene in split_name(name)})
    txpert("graph", "build", recipe, "--out", folder / "graphs")
    place: Tree = {
        "seed": seed,
        "output": str(folder / "runs"),
        "data": {"store": str(folder / "screen.zarr")},
        "graph": {"location": str(folder / "graphs")},
        "cluster": {"num_workers": 1},
        "train": {"epochs": epochs},
    }
    base = merged(yaml.safe_load(CONFIG.read_text()), place)
    jobs = [
        Job(
            merged(
                base,
                {"name": f"run-{number}", "model": {"perturbation": chosen.options}},
                {"optimiser": {"learning_rate": chosen.learning_rate}},
            )
        )
        for number, chosen in enumerate(ENCODERS.values())
    ]
    return dict(zip(ENCODERS, train_all(jobs), strict=True))


def summarise(results: list[dict[str, Result]], metric: str) -> dict[str, tuple[float, float]]:
    """Encoder or reference -> mean and standard deviation over seeds, where every seed has a value."""
    by_name = {
        name: [result[name].scores["test"][metric]["model"] for result in results] for name in ENCODERS
    }
    references = [result[next(iter(ENCODERS))].scores["test"][metric] for result in results]
    for name in ("general", "no_change", "split_half_pooled"):
        by_name[name] = [reference[name] for reference in references]
    rows = {}
    for name, found in by_name.items():
        values = [value for value in found if value is not None]
        if len(values) == len(results):
            rows[name] = (mean(values), stdev(values) if len(values) > 1 else 0.0)
    return rows


def main() -> None:
    """Run every screen, seed and encoder, print means and spread, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds = SEEDS[:1] if options.quick else SEEDS
    cases, details = [], {}
    for screen in (PAPALEXI, NORMAN):
        if missing(screen):
            raise SystemExit(f"TXPERT_SHARED_DATA lacks {', '.join(missing(screen))}")
        results = []
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                epochs = 1 if options.quick else screen.epochs
                results.append(run_seed(screen, Path(folder), seed, epochs))
            print(f"{screen.name}: seed {seed} done", flush=True)
        details[f"{screen.name}: seconds"] = {
            name: mean(result[name].seconds for result in results) for name in ENCODERS
        }
        for metric in METRICS:
            found = summarise(results, metric)
            details[f"{screen.name}: {metric}"] = found
            print(
                screen.name,
                metric,
                *(f"  {name}: {m:.4f} ± {s:.4f}" for name, (m, s) in found.items()),
                sep="\n",
            )
            if "general" in found:
                general = found["general"][0]
                names = [name for name in found if name != "general"]
                cases += [
                    Case(f"{screen.name}: {metric}, {n}", found[n][0], "", "general", general) for n in names
                ]
        if options.json:
            write(options.json, cases, seeds=list(seeds), mean_and_standard_deviation=details)


if __name__ == "__main__":
    main()
