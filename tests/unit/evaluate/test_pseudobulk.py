"""Mean responses for graphs: against the dense cells, and blind to everything outside the training split."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests.unit.evaluate.conftest import SINGLES, DenseScreen
from tests.unit.train.small_screen import CONTEXTS, NUM_CELLS, PERTURBED, write_store
from txpert_dist.errors import InputError
from txpert_dist.loader.pseudobulk import DELTA_STEP, source_files, training_pseudobulk
from txpert_dist.store.cells import open_store
from txpert_dist.store.splits import split_perturbations


def training_singles(screen: DenseScreen) -> list[str]:
    split = dict(zip(screen.store.perturbations, screen.store.split.tolist(), strict=True))
    return [name for name in SINGLES if name in split and split[name] == 0]


@pytest.mark.parametrize("held_out", [(), ("RPE1",)])
@pytest.mark.parametrize("max_values", [1, 100, 10**6])
def test_profiles_are_the_mean_centred_cells_of_training_singles(screen, held_out, max_values):
    store = screen.store
    found = training_pseudobulk(
        store.path, held_out_cell_lines=held_out, minimum_cells=3, genes="all", max_values=max_values
    )
    kept = ~np.isin(screen.line, held_out)
    cells = {name: (screen.name == name) & kept for name in training_singles(screen)}
    expected = [name for name, mask in cells.items() if mask.sum() >= 3]
    assert found.genes == tuple(expected)
    assert found.delta_PG.dtype == np.float32
    for gene, delta_G in zip(found.genes, found.delta_PG, strict=True):
        mean_G = (screen.y_BG - screen.control_BG)[cells[gene]].mean(0)
        np.testing.assert_allclose(delta_G, mean_G, atol=2e-6)
    multiples = found.delta_PG / np.float32(DELTA_STEP)
    assert (multiples == np.rint(multiples)).all()
    doubles = {name for name in screen.name[screen.in_split(0) & kept] if "+" in name}
    assert found.details == {
        "cells": sum(int(cells[name].sum()) for name in expected),
        "perturbations of other splits, not read": int((store.split != 0).sum()),
        "perturbations of several genes, left out": len(doubles),
        "perturbations of too few cells, left out": len(cells) - len(expected),
    }


def test_the_selected_genes_are_those_of_training(screen):
    every = training_pseudobulk(screen.store.path, genes="all")
    selected = training_pseudobulk(screen.store.path)
    assert selected.delta_PG.tobytes() == every.delta_PG[:, screen.store.selected].tobytes()


def test_the_origin_says_what_was_read(screen):
    store = screen.store
    source = source_files(store.path)
    assert len(source) == 1
    for held_out, lines in (((), ["K562", "RPE1"]), (("K562",), ["RPE1"])):
        origin = training_pseudobulk(store.path, held_out_cell_lines=held_out).origin
        assert origin == {
            "store": store.manifest_hash,
            "split": store.split_hash,
            "sources": json.dumps(sorted(source)),
            "cell_lines": json.dumps(lines),
        }


def test_what_cannot_be_read_is_refused(screen):
    with pytest.raises(InputError, match=r"no cell line 'RPE'; did you mean RPE1\?"):
        training_pseudobulk(screen.store.path, held_out_cell_lines=["RPE"])
    with pytest.raises(InputError, match="no single-gene perturbation has 1000 training cells"):
        training_pseudobulk(screen.store.path, minimum_cells=1000)
    with pytest.raises(InputError, match="hold out less"):
        training_pseudobulk(screen.store.path, held_out_cell_lines=["K562", "RPE1"])


def test_cells_outside_the_training_split_change_nothing(tmp_path):
    """The library sizes of cells that may not be read, all others equal, are spoilt."""
    plain = write_store(tmp_path / "plain.zarr")
    store = open_store(plain)
    line = np.array([CONTEXTS[code].cell_line for code in store.context])
    split = split_perturbations(("control", *PERTURBED), seed=0)[store.perturbation]
    forbidden = (split != 0) | ((line == "RPE1") & (store.perturbation != 0))
    assert 100 < forbidden.sum() < NUM_CELLS - 100

    def spoilt(name: str, cells: np.ndarray) -> bytes:
        def spoil(library_size: np.ndarray) -> None:
            library_size[cells] *= 3

        path = write_store(tmp_path / name, spoil=spoil)
        return training_pseudobulk(path, held_out_cell_lines=["RPE1"]).delta_PG.tobytes()

    expected = training_pseudobulk(plain, held_out_cell_lines=["RPE1"]).delta_PG.tobytes()
    assert spoilt("forbidden.zarr", forbidden) == expected
    allowed = np.flatnonzero(~forbidden & (store.perturbation != 0))
    assert spoilt("allowed.zarr", allowed[:1]) != expected


DIGEST = """
import hashlib, sys
from pathlib import Path
from txpert_dist.loader.pseudobulk import training_pseudobulk
found = training_pseudobulk(Path(sys.argv[1]), minimum_cells=1, genes="all")
sys.stdout.write(hashlib.sha256(found.delta_PG.tobytes()).hexdigest())
"""


def test_other_threads_and_kernels_of_blas_give_the_same_bytes(screen):
    changes = [{"OMP_NUM_THREADS": "1"}, {"OMP_NUM_THREADS": "2", "OPENBLAS_CORETYPE": "Nehalem"}]
    command = [sys.executable, "-W", "ignore", "-c", DIGEST, str(screen.store.path)]
    runs = [
        subprocess.Popen(command, env={**os.environ, **change}, stdout=subprocess.PIPE, text=True)
        for change in changes
    ]
    found = [run.communicate()[0] for run in runs]
    assert len(found[0]) == 64
    assert found[0] == found[1]
