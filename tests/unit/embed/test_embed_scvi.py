"""scVI on a small screen: what it may see, what it gives, and what it leaves behind."""

import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray

from tests.bad_inputs import good_screen
from txpert_dist.embed.config import ScviConfig
from txpert_dist.embed.scvi import Embedded, embed_scvi
from txpert_dist.errors import InputError
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest, no_progress
from txpert_dist.loader.loader import training_rows
from txpert_dist.store.cells import CellStore, open_store, verify
from txpert_dist.store.splits import TRAIN

pytestmark = pytest.mark.process

NUM_CELLS = 400
QUICK = ScviConfig(latent=4, hidden=16, epochs=2)


def screen() -> anndata.AnnData:
    made = good_screen(NUM_CELLS)
    made.obs["line"] = pd.Categorical(np.where(np.arange(NUM_CELLS) % 3 == 0, "RPE1", "K562"))
    return made


def stored(folder: Path, made: anndata.AnnData, **settings: Any) -> CellStore:
    folder.mkdir(parents=True)
    made.write_h5ad(folder / "s.h5ad")
    config = IngestConfig(
        sources=(folder / "s.h5ad",),
        store=folder / "s.zarr",
        row_order="source",
        batch_key="batch",
        cell_line_key="line",
        **{"select_genes": 0, **settings},
    )
    ingest(config)
    return open_store(config.store)


def embedded(store: CellStore, config: ScviConfig = QUICK) -> NDArray[np.float32]:
    """The embedding of all cells; the store keeps it under the configuration's name."""
    embed_scvi(store.path, config, progress=no_progress)
    return open_store(store.path).take_embedding(config.name, np.arange(store.num_cells))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> CellStore:
    return stored(tmp_path_factory.mktemp("scvi") / "a", screen())


def test_the_embedding_is_the_mean_that_scvi_tools_itself_gives(store: CellStore) -> None:
    import scvi  # six seconds that only these tests should take

    config = QUICK.model_copy(update={"name": "X_mean", "seed": 5, "layers": 2})
    found = embedded(store, config)
    rows = training_rows(store, controls_as_targets=True)
    every = anndata.AnnData(screen().X, pd.DataFrame({"b": pd.Categorical(store.context.astype(str))}))
    every.obs_names = screen().obs_names
    scvi.settings.seed = 5
    cells = every[rows].copy()
    scvi.model.SCVI.setup_anndata(cells, batch_key="b")
    model = scvi.model.SCVI(cells, n_latent=4, n_layers=2, n_hidden=16)
    model.train(
        max_epochs=2,
        train_size=1.0,
        datasplitter_kwargs={"drop_last": True},
        logger=False,
        enable_progress_bar=False,
    )
    np.testing.assert_allclose(found, model.get_latent_representation(every), rtol=1e-4, atol=1e-5)
    assert found.std(axis=0).min() > 0
    verify(store.path)


def _rewritten(made: anndata.AnnData, cells: NDArray[np.bool_]) -> anndata.AnnData:
    """The same screen with other counts in ``cells``."""
    counts = made.X.toarray()
    counts[cells] = counts[cells][:, ::-1] + 3
    made.X = scipy.sparse.csr_matrix(counts)
    return made


def test_cells_that_were_held_out_do_not_influence_the_others(store: CellStore, tmp_path: Path) -> None:
    config = QUICK.model_copy(update={"held_out_cell_lines": ("RPE1",)})
    unseen = (store.split != TRAIN)[store.perturbation]
    line = np.array([store.contexts[code].cell_line for code in store.context])
    held_out = unseen | ((line == "RPE1") & (store.perturbation != 0))
    assert 0 < unseen.sum() < held_out.sum() < NUM_CELLS
    found = embedded(store, config)
    other = stored(tmp_path / "b", _rewritten(screen(), held_out))
    again = embedded(other, config)
    assert np.array_equal(again[~held_out], found[~held_out])
    assert not np.allclose(again[held_out], found[held_out])
    # The same for each kind of training cell shows that the comparison can fail.
    for cells in (store.perturbation == 0, ~held_out & (store.perturbation != 0)):
        one = np.zeros(NUM_CELLS, bool)
        one[np.flatnonzero(cells)[0]] = True
        changed = stored(tmp_path / str(cells.sum()), _rewritten(screen(), one))
        assert not np.array_equal(embedded(changed, config)[~one], found[~one])


def test_a_seed_gives_the_same_embedding_again(store: CellStore) -> None:
    first = embedded(store, QUICK.model_copy(update={"name": "X_a"}))
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002  what scvi-tools draws from
    assert np.array_equal(embedded(store, QUICK.model_copy(update={"name": "X_b"})), first)
    assert not np.array_equal(embedded(store, QUICK.model_copy(update={"name": "X_c", "seed": 1})), first)


def test_more_training_cells_than_wanted_are_a_seeded_sample(store: CellStore) -> None:
    config = QUICK.model_copy(update={"name": "X_few", "max_training_cells": 50})
    done = embed_scvi(store.path, config, progress=no_progress)
    assert (done.training_cells, done.available_cells) == (50, 250)
    opened = open_store(store.path)
    assert opened.embedding_origin("X_few") == {
        "made": f"scvi-tools {version('scvi-tools')}",
        "latent": 4,
        "layers": 1,
        "hidden": 16,
        "epochs": 2,
        "genes": "selected",
        "seed": 0,
        "held_out_cell_lines": [],
        "training_cells": 50,
    }
    first = opened.take_embedding("X_few", np.arange(NUM_CELLS))
    assert np.array_equal(embedded(store, config.model_copy(update={"name": "X_few2"})), first)


def test_genes_are_the_selected_ones_or_all(tmp_path: Path) -> None:
    made = screen()
    counts = made.X.toarray()
    counts[:, 0] -= 1  # so that no gene is in every cell, and others in few
    counts *= np.random.default_rng(1).random(counts.shape) < 0.6
    made.X = scipy.sparse.csr_matrix(counts)
    store = stored(tmp_path / "a", made, select_genes=2)
    silent = np.flatnonzero(counts[:, store.selected].sum(1) == 0)
    trained_on = training_rows(store, controls_as_targets=True)
    done = embed_scvi(store.path, QUICK, progress=no_progress)
    assert 0 < done.training_cells == len(trained_on) - np.isin(trained_on, silent).sum()
    assert done.training_cells < done.available_cells == len(trained_on)
    assert np.isfinite(open_store(store.path).take_embedding("X_scvi", silent)).all()
    all_genes = QUICK.model_copy(update={"name": "X_all", "genes": "all"})
    assert embed_scvi(store.path, all_genes, progress=no_progress).training_cells == done.available_cells


def test_a_context_without_training_cells_is_embedded_too(tmp_path: Path) -> None:
    made = screen()
    made.obs["batch"] = made.obs["batch"].astype(str)
    lonely = np.flatnonzero((made.obs["line"] == "RPE1") & (made.obs["perturbation"] != "ctrl"))[:2]
    made.obs.iloc[lonely, made.obs.columns.get_loc("batch")] = "alone"
    store = stored(tmp_path / "a", made)
    found = embedded(store, QUICK.model_copy(update={"held_out_cell_lines": ("RPE1",)}))
    assert np.isfinite(found).all()
    assert len(store.contexts) == 5


def test_progress_is_ours_and_nothing_is_left_or_said(
    store: CellStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(store.path.parent.iterdir())
    seen: dict[str, list[tuple[int, int]]] = {}
    done = embed_scvi(
        store.path,
        QUICK.model_copy(update={"name": "X_quiet"}),
        progress=lambda what, at, total: seen.setdefault(what, []).append((at, total)),
    )
    assert done == Embedded(
        name="X_quiet",
        width=4,
        num_cells=NUM_CELLS,
        training_cells=250,
        available_cells=250,
        epochs=2,
        manifest_before=done.manifest_before,
        manifest_after=open_store(store.path).manifest_hash,
    )
    assert seen == {"train scVI (epochs)": [(1, 2), (2, 2)], "write X_quiet": [(NUM_CELLS, NUM_CELLS)]}
    assert list(tmp_path.iterdir()) == []
    assert sorted(store.path.parent.iterdir()) == before
    assert capfd.readouterr() == ("", "")


def test_an_interrupt_ends_the_training_and_changes_nothing(store: CellStore) -> None:
    before, beside = open_store(store.path).manifest_hash, sorted(store.path.parent.iterdir())
    script = "from txpert_dist.cli.app import main; main()"
    options = ("embed", "scvi", str(store.path), "--name=X_never", "--epochs=1000000")
    process = subprocess.Popen([sys.executable, "-c", script, *options], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline().startswith("train scVI (epochs): 1 of")
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.splitlines()[-1].startswith("interrupted; give the same command again")
    assert "Exception" not in said
    assert open_store(store.path).manifest_hash == before
    assert sorted(store.path.parent.iterdir()) == beside


def test_log1p_values_are_refused(tmp_path: Path) -> None:
    made = screen()
    made.X = np.log1p(made.X)
    store = stored(tmp_path / "a", made, input_scale="log1p")
    with pytest.raises(InputError, match=r"holds log1p values, and scVI models counts; .*embed add"):
        embed_scvi(store.path, QUICK, progress=no_progress)


def test_a_name_that_is_taken_is_refused_before_training(store: CellStore) -> None:
    config = QUICK.model_copy(update={"name": "X_taken"})
    embedded(store, config)

    def fail(what: str, done: int, total: int) -> None:
        raise AssertionError(f"{what} was reached")

    with pytest.raises(InputError, match=r"has an embedding 'X_taken' already"):
        embed_scvi(store.path, config, progress=fail)
    embedded(store, config.model_copy(update={"overwrite": True}))


def test_a_store_that_changed_during_training_is_refused(tmp_path: Path) -> None:
    store = stored(tmp_path / "a", screen())
    inner = QUICK.model_copy(update={"name": "X_inner", "epochs": 1})

    def meanwhile(what: str, done: int, total: int) -> None:
        if what.startswith("train") and done == 1 and "X_inner" not in open_store(store.path).embeddings:
            embed_scvi(store.path, inner, progress=no_progress)

    with pytest.raises(InputError, match="was changed while scVI was trained"):
        embed_scvi(store.path, QUICK, progress=meanwhile)
    assert open_store(store.path).embeddings == {"X_inner": 4}
