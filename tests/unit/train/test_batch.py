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
from txpert_dist.train.batch import (
    SparseCells,
    Staging,
    control_rows,
    dense_batch,
    resident_controls,
)
from txpert_dist.train.batch import _dense as dense_on_device
from txpert_dist.train.batch import _tensor as as_tensor
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


def some_minibatches(inputs_folder, matching, genes="selected"):
    config = configuration(inputs_folder, inputs_folder, data={"control_matching": matching, "genes": genes})
    inputs = open_inputs(config)
    table = control_table(inputs.store, matching, inputs.genes)
    loader = CellLoader(
        inputs.store,
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
    return list(loader.epoch(0)), table, len(inputs.genes)


@pytest.mark.parametrize("matching", ["matched", "matched_mean"])
def test_what_travels_to_a_device_and_is_made_dense_there_is_what_the_cpu_makes(inputs_folder, matching):
    """The way of a GPU, taken to the CPU: staged in one piece, widened, made dense by torch."""
    minibatches, table, num_genes = some_minibatches(inputs_folder, matching)
    controls = resident_controls(table, num_genes=num_genes, device=CPU)
    there = controls
    if table.cells is not None:
        there = controls._replace(cells=SparseCells(*(as_tensor(field) for field in table.cells)))
        assert there.cells.gene.dtype == torch.int16
    staging = Staging(CPU)
    for minibatch in minibatches:
        arrays = [minibatch.control, minibatch.perturbations_BM, *minibatch.cells]
        control, perturbations_BM, *cells = staging.copy(arrays)
        batch = dense_batch(minibatch, controls, device=CPU)
        torch.testing.assert_close(dense_on_device(SparseCells(*cells), controls), batch.observed_BG)
        torch.testing.assert_close(control_rows(there, control), batch.control_BN)
        assert torch.equal(perturbations_BM, batch.perturbations_BM)


def test_staged_arrays_are_copies_that_outlast_the_next_ones():
    """Sizes that change, more minibatches than slots, every type that travels, empty arrays too."""
    rng = np.random.default_rng(0)
    staging = Staging(CPU)
    kept = []
    for size in (5, 0, 700, 3, 64, 65, 2000, 1):
        arrays = [
            rng.integers(0, 200, size).astype(dtype) for dtype in ("u1", "u2", "u4", "i4", "i8", "f4")
        ] + [rng.integers(-1, 9, (size, 2)).astype(np.int32)]
        arrays[1] += np.uint16(65_300)
        kept.append((arrays, staging.copy(arrays)))
    for arrays, tensors in kept:
        for array, tensor in zip(arrays, tensors, strict=True):
            bits = np.int16 if array.dtype == np.uint16 else array.dtype
            assert np.array_equal(tensor.numpy(), array.view(bits) if bits == np.int16 else array)
            assert tensor.shape == array.shape


@pytest.mark.parametrize("matching", ["matched", "matched_mean"])
def test_memory_is_used_again_only_when_nobody_keeps_it(inputs_folder, matching):
    (first, second, *_), table, num_genes = some_minibatches(inputs_folder, matching)
    controls = resident_controls(table, num_genes=num_genes, device=CPU)
    expected = dense_batch(second, controls, device=CPU)
    kept = dense_batch(first, controls, device=CPU)
    before = kept.observed_BG.clone()
    places = {kept.observed_BG.data_ptr(), kept.control_BN.data_ptr()}
    again = dense_batch(second, controls, device=CPU)
    assert torch.equal(again.observed_BG, expected.observed_BG)
    assert torch.equal(again.control_BN, expected.control_BN)
    assert torch.equal(kept.observed_BG, before)
    assert places.isdisjoint({again.observed_BG.data_ptr(), again.control_BN.data_ptr()})
    row = kept.observed_BG[3]  # a view keeps the whole
    del kept
    dense_batch(second, controls, device=CPU)
    assert torch.equal(row, before[3])
    del row
    reused = dense_batch(second, controls, device=CPU)
    assert not places.isdisjoint({reused.observed_BG.data_ptr(), reused.control_BN.data_ptr()})
    assert torch.equal(reused.observed_BG, expected.observed_BG)
