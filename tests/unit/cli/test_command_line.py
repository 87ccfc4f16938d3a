"""The command line as a newcomer meets it: help, exit codes, one-line errors, nothing left behind."""

import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.bad_inputs import CASES, BadInput
from txpert_dist.cli.app import main

TXPERT = [sys.executable, "-c", "from txpert_dist.cli.app import main; main()"]


def txpert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TXPERT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated screen with its store and graphs, made by the commands themselves."""
    made = tmp_path_factory.mktemp("journey")
    sizes = ("--cells=600", "--genes=60", "--perturbations=20", "--cell-lines=1", "--batches=2")
    for arguments in (
        ("simulate", made / "screen.h5ad", *sizes),
        ("ingest", made / "screen.h5ad", "--store", made / "screen.zarr", "--preset", "scperturb"),
        ("graph", "build", made / "graphs.yaml", "--out", made / "graphs", "--store", made / "screen.zarr"),
    ):
        done = txpert(*arguments)
        assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize(
    "verb",
    [
        (),
        ("simulate",),
        ("ingest",),
        ("store", "info"),
        ("store", "verify"),
        ("store", "append"),
        ("graph", "build"),
        ("graph", "info"),
        ("graph", "diff"),
        ("graph", "serve"),
        ("graph", "fetch"),
        ("graph", "list"),
        ("graph", "embeddings", "put"),
        ("graph", "embeddings", "nearest"),
        ("graph", "embeddings", "compare"),
        ("train",),
        ("tune",),
        ("evaluate",),
        ("compare",),
        ("register",),
        ("predict",),
        ("pipeline",),
        ("submit",),
        ("jobs", "list"),
        ("jobs", "logs"),
        ("jobs", "stop"),
        ("config",),
        ("doctor",),
    ],
)
def test_every_verb_explains_itself(verb: tuple[str, ...]) -> None:
    done = txpert(*verb, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout
    assert len(done.stdout) > 300


def test_a_host_without_torch_builds_graphs_and_says_what_training_needs(folder: Path) -> None:
    """The base install has no torch: a finder that hides the train extra stands in for its absence."""
    hidden = ("torch", "ray", "deepspeed", "mlflow", "safetensors", "seaborn")
    hide = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.partition('.')[0] in {hidden}:\n"
        "            raise ModuleNotFoundError(name=name.partition('.')[0])\n"
        "sys.meta_path.insert(0, Hide())\n"
        "from txpert_dist.cli.app import main\n"
        "main()\n"
    )

    def bare(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", hide, *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)

    built = bare("graph", "build", folder / "graphs.yaml", "--out", folder / "graphs")
    assert built.returncode == 0, built.stderr
    (folder / "bare.yaml").write_text(
        f"data: {{store: {folder / 'screen.zarr'}}}\ngraph: {{location: {folder / 'graphs'}}}\n"
    )
    trained = bare("train", folder / "bare.yaml", f"output={folder / 'bare-runs'}")
    assert trained.returncode == 2
    assert "txpert-dist[train]" in trained.stderr.strip().splitlines()[-1]


def test_graph_build_names_isolated_genes_and_is_idempotent(folder: Path) -> None:
    again = txpert("graph", "build", folder / "graphs.yaml", "--out", folder / "graphs")
    assert again.returncode == 0
    assert "built before" in again.stdout
    shown = txpert("graph", "info", folder / "graphs", "--store", folder / "screen.zarr")
    assert "isolated" in shown.stdout


def test_store_verify_finds_a_flipped_bit(folder: Path) -> None:
    assert txpert("store", "verify", folder / "screen.zarr").returncode == 0
    shard = max((folder / "screen.zarr" / "X").rglob("c/*"), key=lambda path: path.stat().st_size)
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    original = shard.read_bytes()
    shard.write_bytes(bytes(content))
    try:
        done = txpert("store", "verify", folder / "screen.zarr")
    finally:
        shard.write_bytes(original)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1
    assert shard.parent.parent.name in done.stderr


def _truncate(folder: Path) -> Path:
    file = folder / "cut.h5ad"
    file.write_bytes((folder / "screen.h5ad").read_bytes()[:5000])
    return file


def _negative(folder: Path) -> Path:
    file = folder / "negative.h5ad"
    file.write_bytes((folder / "screen.h5ad").read_bytes())
    with h5py.File(file, "r+") as handle:
        values = handle["X/data"][:]
        handle["X/data"][7] = -np.abs(values[7])
    return file


INGEST = ("--store", "{folder}/bad.zarr", "--preset", "scperturb")
RUN = ("data.store={folder}/screen.zarr", "graph.location={folder}/graphs", "output={folder}/runs")
BAD = [
    (("ingest", "{folder}/nowhere.h5ad", *INGEST), ["nowhere.h5ad"]),
    (("ingest", _truncate, *INGEST), ["cut.h5ad"]),
    (("ingest", _negative, *INGEST), ["negative.h5ad", "row", "gene"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--perturbation-key=target"), ["target", "perturbation"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--control-label=wildtype"), ["wildtype", "control"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--batch-key=gem"), ["gem"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--where=dataset=x"), ["dataset"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--layer=counts"), ["counts"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--library-size-key=total"), ["total"]),
    (("ingest", "{folder}/screen.h5ad", *INGEST, "--select-genes=-3"), ["--select-genes", "-3"]),
    (("ingest", "{folder}/screen.h5ad", "--store", "{folder}/graphs", "--preset=scperturb"), ["graphs"]),
    (("graph", "build", "{folder}/nowhere.yaml", "--out", "{folder}/bad-graphs"), ["nowhere.yaml"]),
    (("graph", "info", "{folder}/graphs", "--snapshot", "../../etc"), ["../../etc"]),
    (("graph", "info", "{folder}/screen.zarr"), ["screen.zarr"]),
    (("config", "{folder}/nowhere.yaml"), ["nowhere.yaml"]),
    (("train", "{folder}/run.yaml", *RUN, "train.epoch=3"), ["train.epoch", "did you mean train.epochs?"]),
    (("train", "{folder}/run.yaml", *RUN, "data.store={folder}/graphs"), ["graphs"]),
    (("train", "{folder}/run.yaml", *RUN, "graph.snapshot=abc"), ["abc"]),
    (("train", "{folder}/run.yaml", *RUN, "graph.use=[strin]"), ["strin"]),
    (("train", "{folder}/run.yaml", *RUN, "train.minibatch_size=100000"), ["100000"]),
    (("train", "{folder}/run.yaml", *RUN, "data.held_out_cell_lines=[LINE2]"), ["LINE2", "mean LINE1?"]),
    (("train", "{folder}/run.yaml", *RUN, "data.held_out_cell_lines=[LINE1]"), ["LINE1", "hold out fewer"]),
    (
        ("train", "{folder}/run.yaml", *RUN, "model.basal={{kind: embedding, key: X_scvi}}"),
        ["model.basal.key=X_scvi", "it has none", "txpert embed", "--embedding"],
    ),
    (
        ("train", "{folder}/run.yaml", *RUN, "model.perturbation={{kind: exphormer, expander_cycles: 999}}"),
        ["expander_cycles=999"],
    ),
    (("tune", "{folder}/nowhere.yaml"), ["nowhere.yaml"]),
    (("tune", "{folder}/run.yaml", *RUN, "train.epoch=3"), ["train.epoch", "did you mean train.epochs?"]),
    (("tune", "{folder}/run.yaml", *RUN, "--space={folder}/none.yaml"), ["none.yaml", "a preset: default,"]),
    (("tune", "{folder}/run.yaml", *RUN, "--space={folder}/run.yaml"), ["run.yaml: name", "one rule of"]),
    (("tune", "{folder}/run.yaml", *RUN, "--space=graphs"), ["graph.use", "string", "it has"]),
    (("tune", "{folder}/run.yaml", *RUN, "data.store={folder}/graphs"), ["graphs"]),
    (("evaluate", "{folder}/nowhere"), ["nowhere"]),
    (("evaluate", "models:/nobody@champion", "--report", "{folder}/report"), ["nobody"]),
    (("evaluate", "models:/nobody@champion"), ["--report"]),
    (("register", "{folder}/nowhere"), ["nowhere"]),
    (
        ("predict", "models:/nobody@champion", "--store", "{folder}/screen.zarr", "--perturbations=GENE0001",
         "--out", "{folder}/p.h5ad"),
        ["nobody"],
    ),
    (
        ("predict", "models:/nobody@champion", "--store", "{folder}/screen.zarr", "--perturbations= ,",
         "--out", "{folder}/p.h5ad"),
        ["--perturbations"],
    ),
    (("simulate", "{folder}/screen.h5ad"), ["kg_interactions.csv", "already there"]),
    (("simulate", "{folder}/new.h5ad", "--control-fraction=2"), ["--control-fraction", "2"]),
    (("simulate", "{folder}/new.txt"), ["new.txt"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "expected"), BAD, ids=[f"{case[0][0]}-{i}" for i, case in enumerate(BAD)]
)
def test_bad_input_is_one_line_exit_code_2_and_leaves_nothing(
    folder: Path,
    arguments: tuple[object, ...],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (folder / "run.yaml").write_text("name: bad\n")
    (folder / "registry.db").touch()
    filled = [str(part(folder)) if callable(part) else str(part).format(folder=folder) for part in arguments]
    before = sorted(folder.iterdir())
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/registry.db")
    monkeypatch.setattr(sys, "argv", ["txpert", *filled])
    with pytest.raises(SystemExit) as ending:
        main()
    shown = capsys.readouterr().err
    assert ending.value.code == 2, shown
    lines = shown.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert "Traceback" not in shown
    for fragment in expected:
        assert fragment in lines[-1]
    assert sorted(folder.iterdir()) == before


def _options(settings: dict[str, object]) -> list[str]:
    """Settings of an ingest as a user types them."""
    arguments = [str(path) for path in settings["sources"]]
    for key, value in settings.items():
        if key != "sources":
            values = value if isinstance(value, tuple) else (value,)
            arguments += [f"--{key.replace('_', '-')}={each}" for each in values]
    return arguments


# Without any source the parser itself shows the usage.
SCREENS = [case for case in CASES if case.name != "no source"]


@pytest.mark.parametrize("case", SCREENS, ids=[case.name for case in SCREENS])
def test_every_listed_bad_screen_ends_the_command_with_one_line(
    case: BadInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    options = _options(case.build(tmp_path / "in"))
    store = tmp_path / "out" / "screen.zarr"
    monkeypatch.setattr(sys, "argv", ["txpert", "ingest", *options, f"--store={store}"])
    with pytest.raises(SystemExit) as ending:
        main()
    assert ending.value.code == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    for fragment in case.fragments:
        assert " ".join(fragment.split()) in errors[0]
    assert not store.exists()
    assert not store.parent.exists() or not list(store.parent.iterdir())
