"""Does the graph help? On a SIMULATED screen whose response follows a hidden network, the model must be ahead
of the general baseline on perturbations it never saw, and that lead must go away with rewired graphs.

    python -m tests.benchmarks.science_simulated [--quick] [--json FILE]

Every seed simulates its own screen and runs the whole journey twice, with the graphs and with rewired graphs.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import mean

import yaml

from tests.benchmarks.record import Case, write
from tests.journey import Journey, scores, txpert

SEEDS = (1, 2, 3)
SIZES = (
    "--cells",
    "14000",
    "--genes",
    "1000",
    "--perturbations",
    "160",
    "--doubles",
    "16",
    "--cell-lines",
    "1",
)
CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"


def rewired(graphs: Path) -> Path:
    """The same recipe with every graph's edges rewired at random (degrees kept)."""
    recipe = yaml.safe_load(graphs.read_text())
    for graph in recipe["graphs"]:
        graph["rewire"] = True
    file = graphs.with_name("graphs_rewired.yaml")
    file.write_text(yaml.safe_dump(recipe))
    return file


def run_seed(folder: Path, seed: int, overrides: tuple[str, ...]) -> dict[str, float]:
    """Mean test Pearson delta of the model with the graphs, with rewired graphs, and of the references."""
    screen = folder / "screen.h5ad"
    txpert("simulate", screen, *SIZES, "--seed", seed)
    result: dict[str, float] = {}
    for label, recipe in (("graphs", folder / "graphs.yaml"), ("rewired", rewired(folder / "graphs.yaml"))):
        journey = Journey(folder / label)
        txpert("ingest", screen, "--store", journey.store, "--preset", "scperturb")
        txpert("graph", "build", recipe, "--out", journey.graphs)
        started = time.perf_counter()
        journey.train(CONFIG, f"seed={seed}", *overrides)
        result[f"{label}: train seconds"] = time.perf_counter() - started
        txpert("evaluate", journey.run)
        found = scores(journey.report())
        result[label] = found.pop("model")
        result |= {name: value for name, value in found.items() if value is not None}
    return result


def line(result: dict[str, float]) -> str:
    """One line of figures."""
    return ", ".join(f"{key} {value:.3f}" for key, value in result.items())


def main() -> None:
    """Run every seed, print a line each and the mean, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, fewer epochs")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds, overrides = (SEEDS[:1], ("train.epochs=4",)) if options.quick else (SEEDS, ())
    results = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            results.append(run_seed(Path(folder), seed, overrides))
        print(f"seed {seed}: {line(results[-1])}", flush=True)
    average = {key: mean(result[key] for result in results) for key in results[0]}
    print(f"mean:   {line(average)}")
    print(f"lead over the general baseline: {average['graphs'] - average['general']:+.3f} with the graphs, ")
    print(
        f"                                {average['rewired'] - average['general']:+.3f} with rewired graphs"
    )
    if options.json:
        cases = [
            Case(f"test Pearson delta, model with {label}", average[key], "", "general", average["general"])
            for key, label in (("graphs", "the graphs"), ("rewired", "rewired graphs"))
        ]
        write(options.json, cases, seeds=list(seeds), sizes=list(SIZES), simulated=True, per_seed=results)


if __name__ == "__main__":
    main()
