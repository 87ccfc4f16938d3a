"""What reaches the model against the store's own dense cells."""

from typing import get_args

import numpy as np
import pytest
import torch

from tests.unit.train.small_screen import EMBEDDING, NUM_GENES, configuration, write_inputs
from txpert_dist.config import ControlMatching
from txpert_dist.loader.loader import CellLoader
from txpert_dist.loader.pairing import control_table
from txpert_dist.store.expression import dense, log1p_normalise
from txpert_dist.train.batch import dense_batch, resident_controls
from txpert_dist.train.inputs import open_inputs

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs_folder(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("embedding", [None, EMBEDDING])
@pytest.mark.parametrize("matching", get_args(ControlMatching))
@pytest.mark.parametrize("genes", ["selected", "all"])
def test_cells_and_controls_are_the_stores(inputs_folder, matching, genes, embedding):
    config = configuration(inputs_folder, inputs_folder, data={"control_matching": matching, "genes": genes})
    inputs = open_inputs(config)
    store = inputs.store
    table = control_table(store, matching, inputs.genes, embedding)
    controls = resident_controls(table, num_genes=len(inputs.genes), device=CPU)
    loader = CellLoader(
        store,
        inputs.training,
        genes=inputs.genes,
        nodes_RM=inputs.nodes_RM,
        data=config.data,
        table=table,
        seed=0,
        rank=0,
        world=1,
        minibatch_size=32,
    )
    cells = log1p_normalise(store.read(0, store.num_cells), input_scale="counts")
    y_BG = dense(cells, NUM_GENES)[:, inputs.genes]
    x_BN = y_BG if embedding is None else store.take_embedding(embedding, np.arange(store.num_cells))
    known = {row.tobytes(): number for number, row in enumerate(np.round(y_BG, 4))}
    control_rows = np.flatnonzero(store.perturbation == 0)
    for minibatch in loader.epoch(0):
        batch = dense_batch(minibatch, controls, device=CPU)
        observed = np.round(batch.observed_BG.numpy(), 4)
        rows = np.array([known[row.tobytes()] for row in observed])
        assert np.isin(rows, inputs.training).all()
        assert (batch.perturbations_BM.numpy() == inputs.nodes_RM[store.perturbation[rows]]).all()
        lines = [store.contexts[code].cell_line for code in store.context]
        for row, control in zip(rows, batch.control_BN.numpy(), strict=True):
            by_line = [c for c in control_rows if lines[c] == lines[row]]
            by_batch = [c for c in control_rows if store.context[c] == store.context[row]]
            candidates = by_line if matching in ("random", "mean") else by_batch
            if matching in ("mean", "matched_mean"):
                np.testing.assert_allclose(control, x_BN[candidates].mean(0), rtol=1e-4, atol=1e-5)
            else:
                assert np.abs(x_BN[candidates] - control).max(1).min() < 1e-5


def test_wide_counts_keep_their_value():
    from txpert_dist.train.batch import _tensor

    for kind in (np.uint8, np.uint16, np.uint32, np.float32):
        array = np.array([1, 200], kind)
        tensor = _tensor(array)
        assert tensor[torch.tensor([1, 0])].tolist() == [200, 1]
