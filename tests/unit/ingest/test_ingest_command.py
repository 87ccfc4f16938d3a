"""`txpert ingest` and its options as a user meets them."""

from pathlib import Path

import anndata
import numpy as np
import pytest
import zarr

from tests.bad_inputs import good_screen
from txpert_dist.cli.app import main
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import open_store


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "s.h5ad"
    good_screen().write_h5ad(path)
    return path


def txpert(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr("sys.argv", ["txpert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_options_reach_the_store(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "s.zarr"
    options = ("--row-order=source", "--hvg-flavour=cell_ranger", "--select-genes=5", "--memory-gib=1")
    options = (*options, "--require-knockdown=0.001", "--batch-key=batch", "--cell-line=K562")
    screen = good_screen()
    x_BG = screen.X.toarray()
    for label in set(screen.obs["perturbation"]) - {"ctrl"}:
        own = np.flatnonzero(screen.obs["perturbation"] == label)
        x_BG[np.ix_(own, screen.var_names.get_indexer(label.split("+")))] = 0
    screen.X = x_BG
    screen.write_h5ad(source)
    assert txpert(monkeypatch, "ingest", source, "--store", store, *options, "--empty-cells=drop") == 0
    shown = capsys.readouterr().out
    assert "perturbed genes that were measured" in shown
    assert "knock-down of 0.001 or more (0 perturbations have less) keeps 64 cells" in shown
    assert anndata.read_zarr(store).obs_names.tolist() == screen.obs_names.tolist()
    assert zarr.open_group(str(store), mode="r")["uns/txpert/row_order"][()] == "source"
    selected = {}
    for flavour in ("cell_ranger", "seurat"):
        other = tmp_path / f"{flavour}.zarr"
        ingest(IngestConfig(sources=(source,), store=other, select_genes=5, hvg_flavour=flavour))
        selected[flavour] = open_store(other).selected.tolist()
    assert open_store(store).selected.tolist() == selected["cell_ranger"] != selected["seurat"]


@pytest.mark.parametrize(
    ("option", "fragment"),
    [
        ("--memory-gib=0.5", "--memory-gib"),
        ("--workers=0", "--workers"),
        ("--require-knockdown=30", "--require-knockdown"),
        ("--hvg-flavour=pearson", "seurat_v3"),
        ("--row-order=random", "split"),
    ],
)
def test_an_option_that_cannot_be_is_an_error_of_the_user(
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    option: str,
    fragment: str,
) -> None:
    assert txpert(monkeypatch, "ingest", source, "--store", tmp_path / "s.zarr", option) == 2
    assert fragment in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["s.h5ad"]
