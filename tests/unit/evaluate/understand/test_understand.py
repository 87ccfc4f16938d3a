"""The verb from end to end: what it writes, the same twice, what it refuses; on real screens too."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.unit.evaluate.conftest import DenseScreen
from tests.unit.evaluate.understand.go_files import GoFiles, write_go
from txpert_dist.errors import InputError
from txpert_dist.evaluate.report import write_report
from txpert_dist.evaluate.run import evaluate
from txpert_dist.evaluate.tiers import read_tiers
from txpert_dist.evaluate.understand import contexts, selection
from txpert_dist.evaluate.understand.run import Asked, understand
from txpert_dist.evaluate.understand.write import to_json, write_understanding
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
from txpert_dist.store.cells import open_store
from txpert_dist.store.splits import TRAIN

SHARED = Path(os.environ.get("TXPERT_SHARED_DATA", "../shared/data"))
TXPERT = [sys.executable, "-c", "from txpert_dist.cli.app import main; main()"]
FILES = {
    *("understand.json", "understand.md", "contexts.parquet", "meta_baseline.parquet"),
    *("metric_selection.parquet", "contexts.png", "metric_selection.png"),
}
QUICK = selection.Effort(repeats=1)


def txpert(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*TXPERT, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def go(tmp_path_factory: pytest.TempPathFactory) -> GoFiles:
    return write_go(tmp_path_factory.mktemp("go"))


@pytest.fixture(scope="module")
def tiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiers") / "tiers.csv"
    pd.DataFrame({"gene": list("ABCDEFGHI"), "score": np.arange(9) ** 2}).to_csv(path, index=False)
    return path


@pytest.fixture(scope="module")
def report(screen: DenseScreen, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "report"
    genes = np.arange(len(screen.store.genes), dtype=np.int64)
    write_report(evaluate(screen.store, [], split="test", genes=genes), folder)
    return folder


def test_the_verb_writes_everything_and_says_what_it_found(
    screen: DenseScreen, go: GoFiles, tiers: Path, report: Path, tmp_path: Path
) -> None:
    out = tmp_path / "understood"
    options = ("--go", go.obo, go.gaf, "--tiers", tiers, "--report", report)
    done = txpert("understand", screen.store.path, "--out", out, *options)
    assert done.returncode == 0, done.stderr
    assert "mean response:" in done.stdout
    assert f"understood: {out}/understand.md" in done.stdout
    files = {path.name for path in out.iterdir()}
    assert files >= FILES | {"enrichment.parquet", "tiers.parquet", "tiers.png"}
    content = json.loads((out / "understand.json").read_text())
    assert content["provenance"]["store_hash"] == screen.store.manifest_hash
    assert content["enrichment"]["ontology"] == "releases/2026-01-01"
    levels = content["tiers"]["perturbations"]
    assert sum(levels.values()) == len(screen.store.perturbations) - 1
    named = [name for name in screen.store.perturbations[1:] if set(name.split("+")) <= set("ABCDEFGHI")]
    assert levels["none"] == len(screen.store.perturbations) - 1 - len(named)
    table = pd.read_parquet(out / "contexts.parquet")
    rows = {(row["kind"], row["relation"]): row["mean"] for row in content["contexts"]["rows"]}
    for key, part in table.groupby(["kind", "relation"]):
        assert rows[key] == pytest.approx(part["correlation"].mean(), abs=1e-12)
    page = (out / "understand.md").read_text()
    assert all(f"]({name})" in page for name in files if name.endswith(".png"))
    again = txpert("understand", screen.store.path, "--out", out, *options)
    assert again.returncode == 0
    assert json.loads((out / "understand.json").read_text()) == content
    assert [path.name for path in tmp_path.iterdir()] == ["understood"]


def test_scores_of_a_report_are_averaged_by_tier(screen: DenseScreen, tiers: Path, report: Path) -> None:
    scores = pd.read_parquet(report / "per_perturbation.parquet")
    known = read_tiers(tiers)
    found = understand(screen.store, Asked(metrics=QUICK, tiers=known, scores=scores)).tiers
    assert found is not None
    assert found.table is not None
    level = scores["perturbation"].map(known.level)
    for row in found.table.itertuples():
        chosen = level.isna() if row.group == "none" else level == float(row.group)
        own = scores[chosen & (scores["predictor"] == row.predictor)][row.metric]
        assert row.mean == pytest.approx(own.mean(), abs=1e-12, nan_ok=True)
        assert row.num_values + row.num_nan == len(own)


def test_nothing_but_training_cells_counts_unless_asked(screen: DenseScreen) -> None:
    """The meta baseline is the mean over lines of the mean over training perturbations."""
    of_train = screen.in_split(TRAIN)
    for which, chosen in (("train", of_train), ("all", screen.perturbed)):
        found = understand(screen.store, Asked(which=which, metrics=QUICK))  # type: ignore[arg-type]
        by_line = []
        for line in ("K562", "RPE1"):
            own = chosen & (screen.line == line)
            deltas = [
                (screen.y_BG - screen.control_BG)[own & (screen.name == name)].mean(0)
                for name in sorted(set(screen.name[own]))
            ]
            by_line.append(np.mean(deltas, axis=0))
        expected = dict(zip(screen.store.genes, np.mean(by_line, axis=0), strict=True))
        assert dict(zip(found.meta["gene"], found.meta["delta"], strict=True)) == pytest.approx(
            expected, abs=2e-6
        )
        assert found.meta["delta"].abs().is_monotonic_decreasing
        names = set(found.ranks["perturbation"])
        assert names <= set(screen.name[chosen])


def test_a_folder_that_is_something_else_stays(screen: DenseScreen, tmp_path: Path) -> None:
    found = understand(screen.store, Asked(metrics=QUICK))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="is no understanding of a screen"):
        write_understanding(found, tmp_path / "other")
    assert (tmp_path / "other" / "mine.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="is no understanding of a screen"):
        write_understanding(found, tmp_path / "file")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--tiers", "none.csv"), "none.csv: no such file"),
        (("--go", "none.obo", "none.gaf"), "none.obo: no such file"),
        (("--report", "none"), "--report: its scores are averaged by knowledge tier; give --tiers too"),
    ],
)
def test_bad_input_is_one_line(
    screen: DenseScreen, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    done = txpert("understand", screen.store.path, "--out", tmp_path / "out", *options)
    assert done.returncode == 2
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert message in line
    assert list(tmp_path.iterdir()) == []


def test_a_report_on_another_split_is_refused(
    screen: DenseScreen, tiers: Path, report: Path, tmp_path: Path
) -> None:
    other = tmp_path / "report"
    other.mkdir()
    content = json.loads((report / "report.json").read_text())
    content["provenance"]["split_hash"] = "0"
    (other / "report.json").write_text(json.dumps(content))
    (other / "per_perturbation.parquet").write_bytes((report / "per_perturbation.parquet").read_bytes())
    for folder, message in ((other, "is a report on another split"), (tmp_path, "is no report")):
        done = txpert(
            *("understand", screen.store.path, "--out", tmp_path / "out"),
            *("--tiers", tiers, "--report", folder),
        )
        assert done.returncode == 2
        assert message in done.stderr


def real_screen(tmp_path: Path, dataset: str, **keys: str) -> Path:
    path = SHARED / "real_perturbseq.h5ad"
    if not path.exists():
        pytest.skip(f"{path.name} is not in TXPERT_SHARED_DATA")
    config = IngestConfig(
        sources=(path,),
        store=tmp_path / "s.zarr",
        where=(f"dataset={dataset}",),
        perturbation_key="condition",
        library_size_key="libsize_recovered",
        select_genes=0,
        **keys,
    )
    ingest(config)
    return config.store


@pytest.mark.real
def test_mcfaline_lines_differ_and_their_mean_responses_too(tmp_path: Path) -> None:
    """Three glioblastoma lines on variable genes: halves of a line agree, lines do not."""
    store = open_store(real_screen(tmp_path, "mcfaline23", cell_line_key="cell_type"))
    found = understand(store, Asked(which="all"))
    mean = contexts.summarise(found.contexts).set_index(["kind", "relation"])["mean"]
    assert mean["controls_line", "within"] > 0.9
    assert mean["controls_line", "across"] < 0.5
    assert mean["mean_baseline", "within"] > 0.6
    assert mean["mean_baseline", "across"] < 0.5
    assert found.context_kind == "cell_line"
    assert len(found.ranks[["first", "second"]].drop_duplicates()) == 3
    assert (found.ranks.groupby(["representation", "similarity"]).size() == 9 * 3 * 3).all()


@pytest.mark.real
def test_norman_batches_are_alike_and_delta_finds_strong_perturbations(tmp_path: Path) -> None:
    store = open_store(real_screen(tmp_path, "norman19", batch_key="gem_group", cell_line="K562"))
    found = understand(store, Asked(which="all"))
    mean = contexts.summarise(found.contexts).set_index(["kind", "relation"])["mean"]
    assert mean["controls_batch", "across"] > 0.9
    assert mean["controls_line", "within"] > 0.98
    best = selection.summarise(found.ranks).iloc[0]
    assert best["quantile"] > 0.75
    assert best["chance_quantile"] < 0.6
    assert to_json(found)["metric_selection"]["contexts"] == "batch"
    write_understanding(found, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
