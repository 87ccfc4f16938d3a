"""Predictions on request: the same as an evaluation's, whatever the model starts from."""

from typing import get_args

import anndata
import numpy as np
import pytest

from tests.unit.train.small_screen import EMBEDDING, WIDTH, configuration, write_inputs, write_run
from txpert_dist.config import ControlMatching
from txpert_dist.errors import ConfigError, InputError
from txpert_dist.evaluate.predict import predictor_of_store
from txpert_dist.serve.predict import genes_in_store, predict_for_store, predict_profiles
from txpert_dist.serve.registered import open_checkpoint
from txpert_dist.serve.registry import _example
from txpert_dist.store.cells import open_store

EMBEDDED = {"kind": "embedding", "key": EMBEDDING, "hidden": 16}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def ready(folder, tmp_path, matching="matched_mean", **model):
    parts = {
        "latent": 8,
        "perturbation": {"kind": "embedding"},
        "decoder": {"activation": "softplus"},
        **model,
    }
    config = configuration(folder, tmp_path, data={"control_matching": matching}, model=parts)
    return open_checkpoint(write_run(config)), open_store(folder / "screen.zarr")


@pytest.mark.parametrize("basal", [{"kind": "vae", "hidden": 16}, EMBEDDED], ids=["vae", "embedding"])
@pytest.mark.parametrize("matching", get_args(ControlMatching))
def test_a_file_holds_what_an_evaluation_predicts_and_the_controls(folder, tmp_path, matching, basal):
    model, store = ready(folder, tmp_path, matching, basal=basal)
    out = tmp_path / "predicted.h5ad"
    done = predict_for_store(model, store, ["P03", "P00"], cell_line="K562", batches=None, out=out)
    assert (done.perturbations, done.contexts, done.predicted_rows, done.clipped) == (2, 2, 4, 0)
    written = anndata.read_h5ad(out)
    assert written.var_names.tolist() == list(model.loaded.genes)
    rows = written.obs["predicted"].to_numpy(bool)
    genes = genes_in_store(model.loaded, store)
    codes = [store.perturbations.index(name) for name in written.obs["perturbation"][rows]]
    batches = [
        (str(line), str(batch)) for line, batch in written.obs[["cell_line", "batch"]][rows].to_numpy()
    ]
    contexts = [store.contexts.index(pair) for pair in batches]
    assert sorted(zip(codes, contexts, strict=True)) == [(1, 0), (1, 1), (4, 0), (4, 1)]
    expected = predictor_of_store(model.loaded, store, genes).predict(np.array(codes), np.array(contexts))
    np.testing.assert_allclose(written.X[rows].toarray(), expected, rtol=1e-5)
    in_line = [store.contexts[code].cell_line == "K562" for code in store.context]
    assert done.control_cells == (~rows).sum() == ((store.perturbation == 0) & in_line).sum()


def test_a_profile_is_what_the_basal_encoder_reads(folder, tmp_path):
    for part, width, wanted in (
        (EMBEDDED, WIDTH, rf"starts from embedding {EMBEDDING}; give its {WIDTH} values"),
        ({"kind": "mlp"}, 12, "the model has 12 genes; give one value for each"),
    ):
        model, _ = ready(folder, tmp_path / part["kind"], basal=part)
        names = ["P00", "P01", "control"]
        assert predict_profiles(model, np.zeros((3, width), np.float32), names).shape == (3, 12)
        assert len(_example(model.loaded)["control"][0]) == width
        for shape in ((3, width + 1), (width,)):
            with pytest.raises(InputError, match=wanted) as caught:
                predict_profiles(model, np.zeros(shape, np.float32), names)
            assert "\n" not in str(caught.value)


def test_genes_may_be_given_in_any_order(folder, tmp_path):
    fusion = {"kind": "sequential", "order": "by_name", "hidden": 8}
    model, _ = ready(folder, tmp_path, fusion=fusion)
    x_RN = np.random.default_rng(0).random((3, 12)).astype(np.float32)[[0, 0, 0]]
    first, second, other = predict_profiles(model, x_RN, ["P02+P00+Q1", "Q1+P02+P00", "P02+Q2"])
    assert first.tolist() == second.tolist()
    assert first.tolist() != other.tolist()


def test_more_genes_than_the_fusion_can_order_are_refused(folder, tmp_path):
    model, store = ready(folder, tmp_path, fusion={"kind": "sequential", "order": "all", "hidden": 8})
    out = tmp_path / "predicted.h5ad"
    five = "P00+P01+P02+P03+P04"
    with pytest.raises(ConfigError, match=r"at most 4 genes, but P00\+P01\+P02\+P03\+P04 has 5"):
        predict_for_store(model, store, [five], cell_line="K562", batches=None, out=out)
    assert not out.exists()
