"""What the encoders are worth, on SIMULATED screens whose responses follow a hidden gene network.

    python -m tests.benchmarks.science_simulated [--quick] [--only SCENARIO ...] [--json FILE]

Every scenario asks one question that the methods answer, on screens of its own (one a seed):

    encoders       does every encoder with graphs beat the one without and the general baseline, and is the
                   lead the graphs' (their edges rewired at random, degrees kept)?
    complementary  two graphs that each know half of the genes: are both together better than either?
    missing        a graph that lacks 40 % of the true edges: does Exphormer beat GAT?
    spurious       a graph of which 40 % are false edges: does attention beat fixed weights (GCN)?
    new_cell_line  few perturbations, one cell line held out: which basal model does best there?

Scores are means over held-out perturbations of the test split's Pearson delta. An encoder's settings are the
same in every scenario.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import yaml

from tests.benchmarks.record import Case, write
from tests.benchmarks.training import Job, Result, Tree, merged, train_all
from tests.journey import txpert

SEEDS = (1, 2, 3)
SIZES = ("--cells", "14000", "--genes", "1000", "--perturbations", "160", "--cell-lines", "1")
CONFIG = Path(__file__).resolve().parents[2] / "jobs" / "configs" / "demo.yaml"
TWO_LAYERS: Tree = {"layers": 2, "reverse_edges": True}
ATTENTION: Tree = TWO_LAYERS | {"hidden": 32, "heads": 2, "node_features": 32}
TRANSFORMER: Tree = TWO_LAYERS | {"hidden": 64, "heads": 2}


class Settings(NamedTuple):
    """One encoder, and the learning rate it is trained with."""

    options: Tree
    learning_rate: float


ENCODERS = {
    "gat": Settings(ATTENTION | {"kind": "gat", "dropout": 0.1}, 8e-3),
    "gat v1": Settings(ATTENTION | {"kind": "gat", "version": 1, "dropout": 0.1}, 2e-3),
    "gat_hybrid": Settings(ATTENTION | {"kind": "gat_hybrid", "dropout": 0.3}, 4e-3),
    "gat_hybrid, concat": Settings(
        ATTENTION | {"kind": "gat_hybrid", "combine_graphs": "concat", "dropout": 0.3}, 4e-3
    ),
    "gat_mlg": Settings(ATTENTION | {"kind": "gat_mlg", "structure": 32, "dropout": 0.1}, 8e-3),
    "exphormer": Settings(TRANSFORMER | {"kind": "exphormer", "dropout": 0.3, "norm": "layer"}, 8e-3),
    "exphormer_mg": Settings(TRANSFORMER | {"kind": "exphormer_mg", "dropout": 0.3, "norm": "layer"}, 4e-3),
    "hybrid_bmp": Settings({"kind": "hybrid_bmp", "node_features": 32, "hidden": 64, "dropout": 0.3}, 8e-3),
    "gcn": Settings(
        {
            "kind": "gcn",
            "layers": 2,
            "hidden": 64,
            "node_features": 32,
            "reverse_edges": True,
            "dropout": 0.1,
        },
        8e-3,
    ),
    "embedding": Settings({"kind": "embedding", "node_features": 32, "dropout": 0.3}, 2e-3),
}
"""One size for all: two layers, 64 numbers wide, two heads where there are heads. Dropout, learning rate and
the transformers' norm are the best of a grid on another screen's validation scores (`tuning.py`).
"""


class Screen(NamedTuple):
    """A simulated screen, ingested, with its graphs built."""

    folder: Path

    def config(self, *changes: Tree) -> Tree:
        """The demo's configuration on this screen."""
        base = yaml.safe_load(CONFIG.read_text())
        place = {
            "data": {"store": str(self.folder / "screen.zarr")},
            "graph": {"location": str(self.folder / "graphs")},
            "cluster": {"num_workers": 1},
        }
        return merged(base, place, *changes)


class Variant(NamedTuple):
    """One model of a scenario."""

    name: str
    changes: Tree


class Scenario(NamedTuple):
    """One question."""

    variants: tuple[Variant, ...]
    simulate: tuple[str, ...] = SIZES
    recipe: Callable[[Path], None] = lambda _folder: None
    """May rewrite graphs.yaml and the graph files that `txpert simulate` wrote."""
    prepare: Callable[[Screen], None] = lambda _screen: None
    """May add to the store."""
    splits: tuple[str, ...] = ("test",)


def encoder(name: str, kind: str, use: list[str] | None = None) -> Variant:
    """An encoder of ``ENCODERS`` on some of the graphs."""
    options, rate = ENCODERS[kind]
    changes: Tree = {"model": {"perturbation": options}, "optimiser": {"learning_rate": rate}}
    return Variant(name, changes | {"graph": {"use": use}})


def rewire_beside(folder: Path) -> None:
    """Add each graph once more with its edges rewired at random."""
    recipe = yaml.safe_load((folder / "graphs.yaml").read_text())
    again = [{**graph, "name": f"{graph['name']}_rewired", "rewire": True} for graph in recipe["graphs"]]
    recipe["graphs"] += again
    (folder / "graphs.yaml").write_text(yaml.safe_dump(recipe))


def halves(folder: Path) -> None:
    """Replace the graphs by two: the interactions that enter even genes, and those that enter odd ones."""
    head, *lines = (folder / "kg_interactions.csv").read_text().splitlines()
    for number, name in enumerate(("even", "odd")):
        kept = [line for line in lines if int(line.split(",")[1].removeprefix("GENE")) % 2 == number]
        (folder / f"kg_{name}.csv").write_text("\n".join([head, *kept]) + "\n")
    graphs = [
        {"name": name, "source": {"kind": "edges", "path": f"kg_{name}.csv"}} for name in ("even", "odd")
    ]
    (folder / "graphs.yaml").write_text(yaml.safe_dump({"graphs": graphs}))


def interactions_alone(folder: Path) -> None:
    """Keep the interactions only."""
    recipe = yaml.safe_load((folder / "graphs.yaml").read_text())
    recipe["graphs"] = [graph for graph in recipe["graphs"] if graph["name"] == "interactions"]
    (folder / "graphs.yaml").write_text(yaml.safe_dump(recipe))


def add_components(screen: Screen) -> None:
    """Principal components of control and training cells, every cell projected on them, as X_pca."""
    from sklearn.decomposition import PCA

    from txpert_dist.loader.loader import training_rows
    from txpert_dist.store.cells import open_store
    from txpert_dist.store.expression import dense, log1p_normalise

    store = open_store(screen.folder / "screen.zarr")
    cells = log1p_normalise(store.read(0, store.num_cells), input_scale=store.input_scale)
    x_BG = dense(cells, len(store.genes))
    seen = training_rows(store, controls_as_targets=True, held_out_cell_lines=("LINE3",))
    components = PCA(32, random_state=0).fit(x_BG[seen]).transform(x_BG).astype(np.float32)
    file = screen.folder / "components.npz"
    import anndata

    names = anndata.read_zarr(store.path).obs_names.to_numpy(str)
    np.savez(file, cell=names, embedding=components)
    txpert("embed", "add", store.path, file, "--name", "X_pca")


def _basal(name: str, basal: Tree) -> Variant:
    data = {"held_out_cell_lines": ["LINE3"]}
    return Variant(name, {"model": {"basal": basal}, "data": data})


SCENARIOS: dict[str, Scenario] = {
    "encoders": Scenario(
        (
            *(encoder(name, name, ["interactions", "pathways"]) for name in ENCODERS),
            *(
                encoder(f"{kind}, {graph} alone", kind, [graph])
                for kind in ("gat", "exphormer")
                for graph in ("interactions", "pathways")
            ),
            encoder("gat, graphs rewired", "gat", ["interactions_rewired", "pathways_rewired"]),
        ),
        recipe=rewire_beside,
    ),
    "complementary": Scenario(
        (
            *(encoder(kind, kind) for kind in ("gat", "gat_hybrid", "gat_mlg", "exphormer_mg", "hybrid_bmp")),
            *(
                encoder(f"{kind}, {half} genes alone", kind, [half])
                for kind in ("gat", "exphormer", "hybrid_bmp")
                for half in ("even", "odd")
            ),
        ),
        simulate=(*SIZES, "--graph-missing", "0"),
        recipe=halves,
    ),
    "missing": Scenario(
        tuple(encoder(kind, kind) for kind in ("gat", "exphormer")),
        simulate=(*SIZES, "--graph-missing", "0.4", "--graph-false", "0"),
        recipe=interactions_alone,
    ),
    "spurious": Scenario(
        tuple(encoder(kind, kind) for kind in ("gat", "gcn")),
        simulate=(*SIZES, "--graph-missing", "0", "--graph-false", "0.4"),
        recipe=interactions_alone,
    ),
    "new_cell_line": Scenario(
        (
            _basal("identity", {"kind": "identity"}),
            _basal("mlp", {"kind": "mlp", "hidden": 128}),
            _basal("vae", {"kind": "vae", "hidden": 128}),
            _basal("embedding (PCA)", {"kind": "embedding", "key": "X_pca", "hidden": 128}),
        ),
        simulate=(
            *("--cells", "14000", "--genes", "1000", "--perturbations", "60"),
            *("--cell-lines", "3", "--batches", "2"),
        ),
        prepare=add_components,
        splits=("test", "train"),
    ),
}


def run_seed(scenario: Scenario, folder: Path, seed: int, epochs: int | None) -> dict[str, Result]:
    """Every variant's result on the screen of one seed."""
    screen = Screen(folder)
    txpert("simulate", folder / "screen.h5ad", *scenario.simulate, "--seed", seed)
    scenario.recipe(folder)
    txpert("ingest", folder / "screen.h5ad", "--store", folder / "screen.zarr", "--preset", "scperturb")
    txpert("graph", "build", folder / "graphs.yaml", "--out", folder / "graphs")
    scenario.prepare(screen)
    fixed: Tree = {"seed": seed, "output": str(folder / "runs")}
    fixed |= {} if epochs is None else {"train": {"epochs": epochs}}
    jobs = [
        Job(screen.config(variant.changes, fixed, {"name": f"run-{number}"}), scenario.splits)
        for number, variant in enumerate(scenario.variants)
    ]
    return dict(zip((variant.name for variant in scenario.variants), train_all(jobs), strict=True))


def rows(results: Sequence[dict[str, Result]], split: str) -> dict[str, list[float]]:
    """Pearson delta of every variant and reference, a value for each seed."""
    values = {
        name: [_number(result[name].scores[split]["pearson_delta"]["model"]) for result in results]
        for name in results[0]
    }
    first = next(iter(results[0]))
    for reference in ("general", "split_half_pooled"):
        values[reference] = [
            _number(result[first].scores[split]["pearson_delta"][reference]) for result in results
        ]
    return values


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def text(values: list[float]) -> str:
    """Mean and spread over seeds."""
    spread = f" ± {stdev(values):.4f}" if len(values) > 1 else ""
    return f"{mean(values):.4f}{spread}"


def main() -> None:
    """Run scenarios and seeds, print a table each, write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs, two variants")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    seeds, epochs = (SEEDS[:1], 2) if options.quick else (SEEDS, None)
    cases, details = [], {}
    for name in options.only:
        scenario, results = SCENARIOS[name], []
        if options.quick:
            scenario = scenario._replace(variants=scenario.variants[:2])
        for seed in seeds:
            with tempfile.TemporaryDirectory() as folder:
                results.append(run_seed(scenario, Path(folder), seed, epochs))
            print(f"{name}: seed {seed} done", flush=True)
        for split in scenario.splits:
            found = rows(results, split)
            title = f"{name}, {'perturbations seen in training' if split == 'train' else 'unseen'}"
            print(title, *(f"  {row}: {text(values)}" for row, values in found.items()), sep="\n", flush=True)
            general = mean(found["general"])
            cases += [
                Case(f"{title}: {row}", mean(values), "", "general", general)
                for row, values in found.items()
                if row != "general"
            ]
            details[title] = found
        details[f"{name}: seconds"] = {
            v.name: mean(r[v.name].seconds for r in results) for v in scenario.variants
        }
        if options.json:
            write(options.json, cases, seeds=list(seeds), simulated=True, per_seed=details)


if __name__ == "__main__":
    main()
