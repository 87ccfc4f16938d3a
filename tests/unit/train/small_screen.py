"""A screen and a graph small enough that a whole training run takes a second or two."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from graph_store import snapshot
from graph_store.expander import draw_expander
from graph_store.graph import KnowledgeGraph
from graph_store.record import GraphReport
from txpert_dist.config import Config
from txpert_dist.minibatch import SparseRows
from txpert_dist.model.txpert import build_model
from txpert_dist.store.controls import Context, build_control_index
from txpert_dist.store.expression import dense, log1p_normalise
from txpert_dist.store.splits import split_perturbations
from txpert_dist.store.write import LabelRow, Labels, StoreWriter
from txpert_dist.train.checkpoint import RunState, write_checkpoint
from txpert_dist.train.inputs import open_inputs

NUM_CELLS, NUM_GENES, NUM_PERTURBATIONS = 600, 24, 16
PERTURBED = tuple(f"P{number:02d}" for number in range(NUM_PERTURBATIONS))
CONTEXTS = (Context("K562", "1"), Context("K562", "2"), Context("RPE1", "1"))
EMBEDDING, WIDTH = "X_made_up", 5
"""An embedding of the cells that the store holds, and its number of values."""


def write_store(
    folder: Path,
    *,
    seed: int = 0,
    spoil: Callable[[NDArray[np.float32]], None] = lambda _: None,
    contexts: tuple[Context, ...] = CONTEXTS,
) -> Path:
    """A store of counts whose perturbations shift a few genes each; ``spoil`` may change library sizes."""
    rng = np.random.default_rng(seed)
    names = ("control", *PERTURBED)
    perturbation = rng.integers(0, len(names), NUM_CELLS).astype(np.int32)
    perturbation[: len(contexts) * 10] = 0
    context = (np.arange(NUM_CELLS) % len(contexts)).astype(np.int32)
    effect = rng.normal(0, 1, (len(names), NUM_GENES)) * (rng.random((len(names), NUM_GENES)) < 0.3)
    effect[0] = 0
    base = rng.normal(1, 1, NUM_GENES) + rng.normal(0, 0.3, (len(contexts), NUM_GENES))
    counts = rng.poisson(np.exp(base[context] + effect[perturbation])).astype(np.uint32)
    sparse = scipy.sparse.csr_matrix(counts)
    library_size = counts.sum(1).astype(np.float32)
    cells = SparseRows(
        sparse.indptr.astype(np.int64), sparse.indices.astype(np.int32), sparse.data, library_size
    )
    y_BG = dense(log1p_normalise(cells, input_scale="counts"), NUM_GENES)
    spoil(library_size)
    controls = build_control_index(context, perturbation == 0, contexts)
    rows_of = np.split(controls.rows, controls.indptr[1:-1])
    labels = Labels(
        input_scale="counts",
        perturbations=names,
        contexts=contexts,
        perturbation=perturbation,
        context=context,
        library_size=library_size,
        split=split_perturbations(names, seed=0),
        selected=np.arange(0, NUM_GENES, 2, dtype=np.int64),
        controls=controls,
        control_mean_CG=np.stack([y_BG[rows].mean(0) for rows in rows_of]).astype(np.float32),
        label_rows=(LabelRow("control", "control", 1),),
        source_row=np.arange(NUM_CELLS),
        row_order="source",
        knockdown_rows=(),
        summary="{}",
    )
    writer = StoreWriter(
        folder, num_cells=NUM_CELLS, num_genes=NUM_GENES, num_entries=sparse.nnz, dtype=np.uint32
    )
    writer.append(cells.indptr, cells.gene, cells.value)
    embedding_BN = np.tanh(y_BG[:, : 2 * WIDTH] @ rng.normal(0, 0.5, (2 * WIDTH, WIDTH))).astype(np.float32)
    writer.write_embedding(EMBEDDING, WIDTH, [embedding_BN], origin={})
    writer.finish(
        obs=pd.DataFrame(index=[f"c{i}" for i in range(NUM_CELLS)]),
        var=pd.DataFrame(index=[f"g{i:02d}" for i in range(NUM_GENES)]),
        labels=labels,
        fingerprint="made by a test",
    )
    return folder


def write_snapshot(folder: Path, names: Sequence[str] = ("curated", "screen")) -> Path:
    """A folder with one snapshot of two graphs over most of the perturbed genes and a few others."""
    genes = (*PERTURBED[:-2], "Q1", "Q2")
    rng = np.random.default_rng(1)
    graphs = []
    for name in names:
        pairs = sorted({(int(t), int(s)) for t, s in rng.integers(0, len(genes), (40, 2)) if t != s})
        edges_2E = np.array([[s for _, s in pairs], [t for t, _ in pairs]], np.int32)
        graphs.append(KnowledgeGraph(name, edges_2E, np.ones(len(pairs), np.float32)))
    numbers = dict.fromkeys(GraphReport.model_fields.keys() - {"name", "details"}, 0)
    draft = snapshot.Draft(
        recipe={},
        inputs=(),
        genes=genes,
        graphs=tuple(graphs),
        aliases={},
        reports=tuple(GraphReport(name=graph.name, **numbers) for graph in graphs),
        unmatched=(),
        expander=draw_expander(len(genes), 3, seed=0),
    )
    snapshot.write(folder, draft)
    return folder


def write_inputs(folder: Path) -> Path:
    """Store and snapshot below ``folder``."""
    write_store(folder / "screen.zarr")
    write_snapshot(folder / "graphs")
    return folder


def configuration(inputs: Path, output: Path, **sections: dict[str, Any] | str | int) -> Config:
    """A run over ``write_inputs``; batch norm and dropout on; ``sections`` are merged into the defaults."""
    tree: dict[str, Any] = {
        "name": "small",
        "output": str(output),
        "data": {"store": str(inputs / "screen.zarr"), "chunk": 16, "window": 4},
        "graph": {"location": str(inputs / "graphs")},
        "model": {
            "latent": 8,
            "basal": {"kind": "mlp", "hidden": 16},
            "perturbation": {"kind": "gat", "layers": 2, "node_features": 8, "hidden": 4, "heads": 2},
            "decoder": {"hidden": 16},
        },
        "optimiser": {"learning_rate": 1e-2, "weight_decay": 0.01},
        "train": {"epochs": 2, "minibatch_size": 32, "log_every": 1},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section} if isinstance(section, dict) else section
    return Config.model_validate(tree)


def write_run(config: Config) -> Path:
    """The run's folder with one checkpoint of a model that was never trained; inputs must be there."""
    inputs = open_inputs(config)
    model = build_model(
        config.model,
        num_genes=len(inputs.genes),
        basal_width=inputs.basal_width,
        graph=inputs.graph,
        seed=config.seed,
    )
    state = RunState(
        epoch=1,
        step=10,
        metrics={},
        store_hash=inputs.store.manifest_hash,
        split_hash=inputs.store.split_hash,
        snapshot_id=inputs.snapshot.id,
        git_commit="none",
        genes=inputs.gene_names,
        vocabulary=inputs.vocabulary,
        basal_width=inputs.basal_width,
    )
    write_checkpoint(config.run_folder, state, config, weights=model.state_dict(), optimiser={})
    return config.run_folder
