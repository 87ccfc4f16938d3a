"""`txpert evaluate` of a model that was trained without the perturbed cells of a cell line."""

import json
import sys

import numpy as np
import pytest

from tests.unit.train.small_screen import configuration, write_inputs, write_run, write_store
from txpert_dist.cli.app import main
from txpert_dist.store.cells import open_store
from txpert_dist.store.controls import Context


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def evaluated(run, report, *options, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["txpert", "evaluate", str(run), f"--report={report}", *options])
    with pytest.raises(SystemExit) as ending:
        main()
    assert not ending.value.code
    return json.loads((report / "report.json").read_text())


@pytest.mark.parametrize("matching", ["matched_mean", "random"])
def test_only_the_held_out_line_is_scored(inputs, tmp_path, monkeypatch, capsys, matching):
    config = configuration(
        inputs,
        tmp_path / "runs",
        data={"held_out_cell_lines": ["RPE1"], "control_matching": matching},
        model={"latent": 8, "perturbation": {"kind": "embedding"}},
    )
    run, store = write_run(config), open_store(inputs / "screen.zarr")
    in_line = np.array([context.cell_line == "RPE1" for context in store.contexts])[store.context]
    for split, code in (("test", 2), ("train", 0)):
        content = evaluated(run, tmp_path / split, "--split", split, monkeypatch=monkeypatch)
        of_split = (store.perturbation != 0) & (store.split[store.perturbation] == code)
        assert content["provenance"]["held_out_cell_lines"] == ["RPE1"]
        assert content["counts"]["cells"] == (of_split & in_line).sum()
        of_train = (store.perturbation != 0) & (store.split[store.perturbation] == 0)
        assert content["counts"]["training_cells"] == (of_train & ~in_line).sum()
        assert content["provenance"]["model_hash"]
        assert f"{split} split of held-out RPE1" in capsys.readouterr().out


def test_a_store_without_that_line_is_scored_as_any_other(inputs, tmp_path, monkeypatch):
    config = configuration(
        inputs,
        tmp_path / "runs",
        data={"held_out_cell_lines": ["RPE1"]},
        model={"latent": 8, "perturbation": {"kind": "embedding"}},
    )
    lines = (Context("K562", "1"), Context("K562", "2"), Context("HELA", "1"))
    store = write_store(tmp_path / "other.zarr", contexts=lines)
    content = evaluated(write_run(config), tmp_path / "report", f"--store={store}", monkeypatch=monkeypatch)
    assert content["provenance"]["held_out_cell_lines"] == []
    assert content["counts"]["groups"] == 2 * content["counts"]["perturbations"]
