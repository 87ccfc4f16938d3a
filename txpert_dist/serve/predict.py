"""Predictions for named perturbations: from control profiles, or from a cell store's controls into an h5ad.

Enters: a ready model, control expression or a cell store, perturbation names. Leaves: expression
log1p(4000 x count / library size) in the model's gene order. Invariant of the file: values float32, finite
and >= 0, control cells included, so that scanpy and cell-eval take it as it is.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
import torch
from numpy.typing import NDArray

from txpert_dist.errors import CheckpointError, InputError
from txpert_dist.serve.registered import Registered
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import gene_view, log1p_normalise, select_genes
from txpert_dist.train.checkpoint import LoadedModel
from txpert_dist.train.conditions import ROWS_AT_ONCE, controls_of_store, predicted_conditions
from txpert_dist.train.inputs import embedding_key, perturbation_nodes


class PredictionSummary(NamedTuple):
    """What was written."""

    path: Path
    perturbations: int
    contexts: int
    predicted_rows: int
    control_cells: int
    clipped: int
    """Values below 0 that were set to 0, as the expression scale and cell-eval require."""


def predict_profiles(
    model: Registered, control_RN: NDArray[np.float32], names: Sequence[str]
) -> NDArray[np.float32]:
    """Predicted expression (R, G) of each control profile under the perturbation named beside it.

    ``control_RN`` is what the basal encoder reads: expression over the model's genes, or the embedding that
    the model was trained with. ``names``: "control", a gene of the graph, or genes joined by "+". Raises
    ``InputError`` for a gene that the model's graph does not have (with close matches) or profiles of another
    width.
    """
    loaded = model.loaded
    if control_RN.ndim != 2 or control_RN.shape[1] != loaded.state.basal_width:
        raise InputError(f"control profiles: shape {control_RN.shape}, but {_wanted(loaded)}")
    nodes_RM = perturbation_nodes(loaded.config.model, loaded.vocabulary, names)
    predicted_RG = np.empty((len(names), len(loaded.genes)), np.float32)
    with torch.inference_mode():
        for start in range(0, len(names), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            predicted_RG[rows] = loaded.model.decode(
                torch.from_numpy(np.ascontiguousarray(control_RN[rows], dtype=np.float32)),
                torch.from_numpy(nodes_RM[rows]),
                model.z_PD,
            ).numpy()
    return predicted_RG


def _wanted(loaded: LoadedModel) -> str:
    """What control profiles must be, for a message."""
    key, genes = embedding_key(loaded.config.model), loaded.genes
    if key is not None:
        return (
            f"the model starts from embedding {key}; give its {loaded.state.basal_width} values of each "
            "control, computed as those that the model was trained on"
        )
    return (
        f"the model has {len(genes)} genes; give one value for each of them, in its order "
        f"({genes[0]}, {genes[1]}, ...)"
    )


def genes_in_store(loaded: LoadedModel, store: CellStore) -> NDArray[np.int64]:
    """Gene numbers of the store in the model's order.

    Raises ``CheckpointError`` naming the model's genes that the store lacks.
    """
    number = {gene: i for i, gene in enumerate(store.genes)}
    missing = [gene for gene in loaded.genes if gene not in number]
    if missing:
        raise CheckpointError(
            f"{store.path}: lacks {len(missing)} of the model's {len(loaded.genes)} genes "
            f"({', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}); ingest a screen that has them"
        )
    return np.array([number[gene] for gene in loaded.genes], dtype=np.int64)


def predict_for_store(
    model: Registered,
    store: CellStore,
    perturbations: Sequence[str],
    *,
    cell_line: str,
    batches: Sequence[str] | None,
    out: Path,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> PredictionSummary:
    """Predict each perturbation for every batch of a cell line and write an h5ad with the control cells.

    One predicted row per (perturbation, batch), from the controls that the model was trained to start from
    (``train.conditions``), with ``predicted`` True in obs; the batches' control cells follow. Raises
    ``InputError`` for an unknown cell line, batch or gene, ``ConfigError`` or ``CheckpointError`` when model
    and store do not fit.
    """
    contexts = _contexts(store, cell_line, batches)
    genes = genes_in_store(model.loaded, store)
    names = [name for name in perturbations for _ in contexts]
    predicted_RG = _predicted(model, store, genes, names, contexts * len(perturbations), progress)
    clipped = int((predicted_RG < 0).sum())
    controls, control_context = _controls(store, contexts, genes)
    obs = pd.concat(
        [
            _obs(names, contexts * len(perturbations), store, predicted=True),
            _obs(["control"] * controls.shape[0], control_context, store, predicted=False),
        ],
        ignore_index=True,
    )
    obs.index = obs.index.astype(str)
    matrix = scipy.sparse.vstack(
        [scipy.sparse.csr_matrix(np.maximum(predicted_RG, 0)), controls], format="csr"
    )
    _write(matrix, obs, model, out)
    return PredictionSummary(out, len(perturbations), len(contexts), len(names), controls.shape[0], clipped)


def _predicted(
    model: Registered,
    store: CellStore,
    genes: NDArray[np.int64],
    names: Sequence[str],
    contexts: Sequence[int],
    progress: Callable[[str, int, int], None],
) -> NDArray[np.float32]:
    """(R, G) prediction of each perturbation in the context beside it."""
    loaded = model.loaded
    nodes_RM = perturbation_nodes(loaded.config.model, loaded.vocabulary, names)
    controls = controls_of_store(loaded, store, genes)
    predicted_RG = np.empty((len(names), len(genes)), np.float32)
    progress("predict", 0, len(names))
    for block, predicted_BG in predicted_conditions(
        loaded.model, model.z_PD, nodes_RM, np.array(contexts), controls
    ):
        predicted_RG[block] = predicted_BG.numpy()
        progress("predict", block.stop, len(names))
    return predicted_RG


def _contexts(store: CellStore, cell_line: str, batches: Sequence[str] | None) -> list[int]:
    lines = sorted({context.cell_line for context in store.contexts})
    if cell_line not in lines:
        raise InputError(f"{store.path}: no cell line {cell_line!r}; it has {', '.join(lines)}")
    of_line = {context.batch: i for i, context in enumerate(store.contexts) if context.cell_line == cell_line}
    unknown = [batch for batch in batches or () if batch not in of_line]
    if unknown:
        raise InputError(
            f"{store.path}: cell line {cell_line} has no batch {unknown[0]!r}; it has {', '.join(of_line)}"
        )
    return [code for batch, code in of_line.items() if batches is None or batch in batches]


def _controls(
    store: CellStore, contexts: list[int], genes: NDArray[np.int64]
) -> tuple[scipy.sparse.csr_matrix, list[int]]:
    rows = np.flatnonzero((store.perturbation == 0) & np.isin(store.context, contexts))
    cells = log1p_normalise(store.take(rows), input_scale=store.input_scale)
    ascending = np.sort(genes)
    viewed = select_genes(cells, gene_view(ascending, len(store.genes)))
    matrix = scipy.sparse.csr_matrix(
        (viewed.value, viewed.gene, viewed.indptr), shape=(len(rows), len(genes))
    )
    return matrix[:, np.searchsorted(ascending, genes)].astype(np.float32), store.context[rows].tolist()


def _obs(names: Sequence[str], contexts: Sequence[int], store: CellStore, *, predicted: bool) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "perturbation": list(names),
            "cell_line": [store.contexts[code].cell_line for code in contexts],
            "batch": [store.contexts[code].batch for code in contexts],
            "predicted": predicted,
        }
    )


def _write(matrix: scipy.sparse.csr_matrix, obs: pd.DataFrame, model: Registered, out: Path) -> None:
    data = anndata.AnnData(X=matrix, obs=obs, var=pd.DataFrame(index=list(model.loaded.genes)))
    data.uns["txpert"] = {
        "scale": "log1p(4000 * count / library_size)",
        "snapshot": model.loaded.snapshot.id,
        "control": "control",
    }
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        data.write_h5ad(partial, compression="gzip")
        partial.replace(out)
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); choose another --out"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
