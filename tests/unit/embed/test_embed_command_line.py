"""`txpert embed` and `ingest --embedding` as a user meets them: output, exit codes, one-line errors."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bad_inputs import EMBEDDING_CASES, BadInput, good_embedding, good_screen
from tests.unit.embed.bad_files import FILE_CASES, BadFile
from txpert_dist.cli.app import main
from txpert_dist.store.cells import open_store

TXPERT = [sys.executable, "-c", "from txpert_dist.cli.app import main; main()"]


def txpert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TXPERT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line with which the command ends."""
    monkeypatch.setattr(sys, "argv", ["txpert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        main()
    shown = capsys.readouterr().err
    assert ending.value.code == 2, shown
    errors = [line for line in shown.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, shown
    assert "Traceback" not in shown
    return errors[0]


def succeeds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """What the command shows on stdout."""
    monkeypatch.setattr(sys, "argv", ["txpert", *map(str, arguments)])
    with pytest.raises(SystemExit) as ending:
        main()
    shown = capsys.readouterr()
    assert ending.value.code == 0, shown.err
    return shown.out


@pytest.mark.parametrize("verb", [(), ("add",), ("scvi",)])
def test_every_verb_explains_itself(verb: tuple[str, ...]) -> None:
    done = txpert("embed", *verb, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert len(done.stdout) > 300


def test_add_says_what_it_did_and_info_shows_it(
    store: Path, file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = txpert("embed", "add", store, file, "--name=X_scgpt")
    assert done.returncode == 0, done.stderr
    for words in ("X_scgpt, 3 wide", "64", "cannot go on", open_store(store).manifest_hash[:12]):
        assert words in done.stdout
    assert "arn" not in done.stderr  # no library warns
    shown = succeeds(monkeypatch, capsys, "store", "info", store)
    assert "embedding X_scgpt" in shown
    assert "3 wide; made elsewhere, file a.csv" in shown
    line = refused(monkeypatch, capsys, "embed", "add", store, file, "--name=X_scgpt")
    assert line.endswith("choose another --name, or give --overwrite")
    succeeds(monkeypatch, capsys, "embed", "add", store, file, "--name=X_scgpt", "--overwrite")


def test_ingest_keeps_the_embeddings_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    screen = good_screen()
    screen.obsm["X_pca"], screen.obsm["X_umap"] = good_embedding(), good_embedding(width=2)
    screen.write_h5ad(tmp_path / "s.h5ad")
    store = tmp_path / "s.zarr"
    names = ("--embedding=X_pca", "--embedding=X_umap", "--row-order=source")
    shown = succeeds(monkeypatch, capsys, "ingest", tmp_path / "s.h5ad", "--store", store, *names)
    assert "embedding X_umap" in shown
    assert np.array_equal(open_store(store).take_embedding("X_pca", np.arange(64)), good_embedding())


@pytest.mark.parametrize("case", FILE_CASES, ids=[case.name for case in FILE_CASES])
def test_every_listed_bad_file_ends_the_command_with_one_line(
    case: BadFile,
    untouched: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / case.file
    case.write(file)
    line = refused(monkeypatch, capsys, "embed", "add", untouched, file, "--name=X_new", *case.options)
    for fragment in (case.file, *case.fragments):
        assert fragment in line
    assert open_store(untouched).embeddings == {}


@pytest.mark.parametrize("case", EMBEDDING_CASES, ids=[case.name for case in EMBEDDING_CASES])
def test_every_listed_bad_embedding_ends_ingest_with_one_line(
    case: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    settings = case.build(tmp_path / "in")
    options = [f"--embedding={name}" for name in settings["embeddings"]]
    store = tmp_path / "out" / "screen.zarr"
    line = refused(monkeypatch, capsys, "ingest", *settings["sources"], "--store", store, *options)
    for fragment in case.fragments:
        assert fragment in line
    assert not store.parent.exists() or not list(store.parent.iterdir())


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (("--latent=0",), ["--latent", "0"]),
        (("--max-training-cells=-5",), ["--max-training-cells", "-5"]),
        (("--seed=-1",), ["--seed"]),
        (("--name=../X",), ["'../X'", "letters, digits"]),
        (("--held-out-cell-line=K526",), ["K526", "K562"]),
    ],
)
def test_what_scvi_cannot_be_told(
    untouched: Path,
    options: tuple[str, ...],
    fragments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = refused(monkeypatch, capsys, "embed", "scvi", untouched, *options)
    for fragment in fragments:
        assert fragment in line


def test_without_scvi_tools_one_line_says_what_to_install(untouched: Path) -> None:
    """A finder that hides the package stands in for its absence."""
    hide = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('scvi', 'lightning', 'torch'):\n"
        "            raise ModuleNotFoundError(name=name.partition('.')[0])\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from txpert_dist.cli.app import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", hide, "embed", "scvi", str(untouched)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert done.stderr == "error: scvi is not installed; scVI needs it: pip install 'txpert-dist[scvi]'\n"
