"""The door to scvi-tools: scVI (Lopez et al. 2018) trained on a store's own counts, embedding all its cells.

Enters: a store of counts and an ``ScviConfig``. Leaves: the store with the means of scVI's latent
distribution as an embedding. Invariants: the model sees training perturbations' cells and controls only,
never cells of validation or test perturbations nor perturbed cells of held-out lines; memory holds the
training cells and one block; on CPU the same store, configuration and number of threads give the same values;
nothing is pickled and no file is left behind.

The model's batch is the context (cell line and batch). Its encoder does not see the batch, so a context
without training cells is embedded as any other.
"""

import contextlib
import io
import logging
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import anndata
import numpy as np
import pandas as pd
import scipy.sparse
from numpy.typing import NDArray

from txpert_dist.embed.commit import commit, open_whole, require_place
from txpert_dist.embed.config import ScviConfig
from txpert_dist.errors import InputError, TrainingError
from txpert_dist.ingest.claim import claimed
from txpert_dist.ingest.statistics import Progress
from txpert_dist.loader.loader import training_rows
from txpert_dist.loader.rows import read_rows
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import dense, gene_view, select_genes

_MINIBATCH = 128
_BLOCK_CELLS = 1024
"""Cells embedded at once: with 20,000 genes some 80 MB of dense counts."""
_SAMPLE_STREAM = 2
"""Second word of the generator's seed: which cells train, as apart from any other draw."""


class Embedded(NamedTuple):
    """What was done."""

    name: str
    width: int
    num_cells: int
    training_cells: int
    """Cells that have a count in the genes used."""
    available_cells: int
    """Cells of training perturbations and controls, of which those were drawn."""
    epochs: int
    manifest_before: str
    manifest_after: str


def embed_scvi(path: Path, config: ScviConfig, *, progress: Progress) -> Embedded:
    """Train scVI on the store in ``path`` and add the embedding of all its cells.

    ``progress`` is called with (what, done, total) in epochs, then cells. Raises ``InputError`` when
    scvi-tools is not installed, the store holds no counts or a name is taken, ``TrainingError`` when the
    training fails, ``StoreError`` for a damaged store.
    """
    store = open_whole(path)
    require_place(store, config.name, overwrite=config.overwrite)
    if store.input_scale != "counts":
        raise InputError(
            f"{path}: holds log1p values, and scVI models counts; ingest the counts, or compute another "
            "embedding and add it with txpert embed add"
        )
    rows, available = _training_cells(store, config)
    scvi = _scvi()
    with _quiet():
        cells = _counts(store, rows, config)
        model, epochs = _train(scvi, cells, store, config, progress)
        origin = {"made": f"scvi-tools {scvi.__version__}", **_settings(config, epochs, cells.n_obs)}
        with claimed(path) as claim:
            if claim.store.manifest_hash != store.manifest_hash:
                raise InputError(f"{path}: was changed while scVI was trained; run again")
            blocks = _encode(model, store, config, progress)
            after = commit(claim, config.name, config.latent, blocks, origin=origin)
    return Embedded(
        name=config.name,
        width=config.latent,
        num_cells=store.num_cells,
        training_cells=cells.n_obs,
        available_cells=available,
        epochs=epochs,
        manifest_before=store.manifest_hash,
        manifest_after=after,
    )


def _scvi() -> Any:
    try:
        with _quiet():
            import scvi
    except ModuleNotFoundError as error:
        raise InputError(
            f"{error.name} is not installed; scVI needs it: pip install 'txpert-dist[scvi]'"
        ) from None
    return scvi


def _settings(config: ScviConfig, epochs: int, training_cells: int) -> dict[str, Any]:
    settings = config.model_dump(mode="json", exclude={"name", "max_training_cells", "overwrite"})
    return {**settings, "epochs": epochs, "training_cells": training_cells}


def _training_cells(store: CellStore, config: ScviConfig) -> tuple[NDArray[np.int64], int]:
    """Rows to train on, ascending, and how many could have been."""
    rows = training_rows(store, controls_as_targets=True, held_out_cell_lines=config.held_out_cell_lines)
    if len(rows) > config.max_training_cells:
        rng = np.random.default_rng((config.seed, _SAMPLE_STREAM))
        chosen = np.sort(rng.choice(rows, config.max_training_cells, replace=False))
        return chosen, len(rows)
    return rows, len(rows)


def _counts(store: CellStore, rows: NDArray[np.int64], config: ScviConfig) -> anndata.AnnData:
    """The cells ``rows`` that have a count in the genes used, as scvi-tools wants them."""
    genes = store.training_genes(config.genes)
    cells = read_rows(store, rows, genes)
    parts = (cells.value.astype(np.float32), cells.gene, cells.indptr)
    counts = scipy.sparse.csr_matrix(parts, shape=(len(rows), len(genes)))
    # Every context is a category, so that the model does not depend on which of them have training cells.
    contexts = pd.Index([str(code) for code in range(len(store.contexts))])
    batch = pd.Categorical.from_codes(store.context[rows], contexts)
    obs = pd.DataFrame({"batch": batch}, index=[str(row) for row in rows])
    found = np.diff(cells.indptr) > 0
    if found.sum() < 2:
        raise InputError(
            f"{store.path}: {found.sum()} training cells have counts in the {len(genes)} genes used; give "
            "--genes all, or hold out fewer cell lines"
        )
    return anndata.AnnData(counts[found], obs[found])


def _train(
    scvi: Any, cells: anndata.AnnData, store: CellStore, config: ScviConfig, progress: Progress
) -> tuple[Any, int]:
    from lightning.pytorch.callbacks import LambdaCallback

    scvi.settings.seed = config.seed
    scvi.model.SCVI.setup_anndata(cells, batch_key="batch")
    model = scvi.model.SCVI(cells, n_latent=config.latent, n_layers=config.layers, n_hidden=config.hidden)
    epochs = config.epochs or int(scvi.model.get_max_epochs_heuristic(cells.n_obs))

    def show(trainer: Any, _: Any) -> None:
        if interrupted:
            raise KeyboardInterrupt
        progress("train scVI (epochs)", trainer.current_epoch + 1, epochs)

    try:
        with tempfile.TemporaryDirectory() as scratch, _remembered_interrupts() as interrupted:
            model.train(
                max_epochs=epochs,
                train_size=1.0,
                batch_size=_MINIBATCH,
                # Batch norm cannot take a last minibatch of one cell; the order changes from epoch to epoch.
                datasplitter_kwargs={"drop_last": cells.n_obs > _MINIBATCH},
                logger=False,
                enable_progress_bar=False,
                callbacks=[LambdaCallback(on_train_epoch_end=show)],
                default_root_dir=scratch,
            )
    except SystemExit:  # what Lightning makes of an interrupt
        raise KeyboardInterrupt from None
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise TrainingError(f"{store.path}: scVI's training failed ({reason}); try another seed") from error
    return model, epochs


def _encode(
    model: Any, store: CellStore, config: ScviConfig, progress: Progress
) -> Iterator[NDArray[np.float32]]:
    """(cells of a block, latent) the means of all cells, in order."""
    import torch

    genes = store.training_genes(config.genes)
    view = gene_view(genes, len(store.genes))
    for start in range(0, store.num_cells, _BLOCK_CELLS):
        stop = min(start + _BLOCK_CELLS, store.num_cells)
        cells = select_genes(store.read(start, stop), view)
        x_BG = torch.from_numpy(dense(cells, len(genes)))
        batch_B1 = torch.from_numpy(store.context[start:stop, None].astype(np.float32))
        mean_BN = model.get_latent_representation(dataloader=iter([{"X": x_BG, "batch": batch_B1}]))
        if not np.isfinite(mean_BN).all():
            raise TrainingError(f"{store.path}: scVI diverged, an embedding is not finite; try another seed")
        yield mean_BN
        progress(f"write {config.name}", stop, store.num_cells)


@contextlib.contextmanager
def _remembered_interrupts() -> Iterator[list[int]]:
    """Signals of an interrupt, as they arrive; each also raises ``KeyboardInterrupt`` where it finds us.

    An interrupt that arrives within a finaliser is printed and forgotten by Python: the list is not.
    """
    seen: list[int] = []

    def note(number: int, _frame: Any) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield seen  # signals go to the main thread alone
        return
    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep scvi-tools' and Lightning's own words off the screen."""
    loggers = [logging.getLogger(name) for name in ("scvi", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            for logger in loggers:
                logger.setLevel(logging.ERROR)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
