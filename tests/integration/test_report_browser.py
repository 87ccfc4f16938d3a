"""Reports and comparisons in a real browser: nothing asked for, no complaints, tables sort and filter."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.browsers import browser, open_page
from tests.real_screens import NORMAN, PAPALEXI, RealScreen
from tests.unit.train.small_screen import configuration, write_inputs, write_run
from txpert_dist.cli.app import app
from txpert_dist.loader.conditions import condition_moments, perturbed_rows
from txpert_dist.store.cells import CellStore, open_store

MCFALINE = RealScreen(
    "McFaline-Figueroa 2023 (three glioblastoma lines)",
    PAPALEXI.file.with_name("real_perturbseq.h5ad"),
    (
        "--where=dataset=mcfaline23",
        "--perturbation-key=condition",
        "--cell-line-key=cell_type",
        "--library-size-key=libsize_recovered",
        "--select-genes=0",
    ),
    1,
)
HOSTILE = "<img src=http://127.0.0.1:9/x onerror=alert(1)>"
SCREENS = {"papalexi": (PAPALEXI, ()), "norman": (NORMAN, ()), "mcfaline": (MCFALINE, ("U87MG",))}

pytestmark = pytest.mark.process


def txpert(*arguments: object) -> None:
    """A verb in this process, which has everything imported."""
    done = CliRunner().invoke(app, [*map(str, arguments)])
    assert done.exit_code == 0, (done.output, done.exception)


@pytest.fixture(scope="module")
def started() -> Iterator[Any]:
    with browser() as found:
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with a map, tiers and a hostile name, and a comparison of two."""
    folder = tmp_path_factory.mktemp("browser")
    run = write_run(configuration(write_inputs(folder / "inputs"), folder / "runs"))
    tiers = "".join(f"P{number:02d},{number / 16}\n" for number in range(14))
    (folder / "tiers.csv").write_text(f"gene,rank\n{tiers}")
    (folder / "sets.gmt").write_text(f"{HOSTILE}\t\tP00\tP01\tP02\nother\t\tP05\tP06\n")
    options = ("--tiers", folder / "tiers.csv", "--pathways", folder / "sets.gmt", "--split", "test")
    txpert("evaluate", run, "--report", folder / "one", *options)
    txpert("evaluate", run, "--report", folder / "two", "--map", "none")
    txpert("compare", folder / "one", folder / "two", "--out", folder / "compared")
    return folder


def column(page: Any, number: int) -> list[str]:
    """The texts of a column of the rows that are shown."""
    texts: list[str] = page.eval_on_selector_all(
        "#units tbody tr:not([hidden])", f"rows => rows.map(row => row.cells[{number}].textContent)"
    )
    return texts


def numbers(texts: list[str]) -> list[float]:
    return [float(text.replace("\u2212", "-")) for text in texts if text != "\u2013"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("name", ["one/report.html", "compared/compare.html"])
def test_a_page_opens_on_any_screen_and_asks_for_nothing(
    started: Any, folder: Path, name: str, scheme: str, width: int
) -> None:
    viewport = {"width": width, "height": 800}
    opened = open_page(started, folder / name, color_scheme=scheme, viewport=viewport)
    assert opened.complaints == []
    assert opened.requests == [(folder / name).absolute().as_uri()]
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    assert opened.page.evaluate("document.scripts.length") == 1
    ground, ink = (
        opened.page.evaluate(f"getComputedStyle(document.body).{key}") for key in ("backgroundColor", "color")
    )
    brightness = [sum(map(int, text[4:-1].split(","))) for text in (ground, ink)]
    assert (brightness[0] > brightness[1]) == (scheme == "light")
    # text of figures is read at its size: no smaller than 6 px on the smallest screen, and in the page's ink
    smallest = opened.page.evaluate(
        "Math.min(...[...document.querySelectorAll('figure svg text')].map(t =>"
        " t.getBoundingClientRect().height).filter(h => h > 0))"
    )
    assert smallest >= 6
    assert opened.page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill") == ink
    opened.page.close()


def test_the_table_sorts_and_filters(started: Any, folder: Path) -> None:
    opened = open_page(started, folder / "one" / "report.html")
    page = opened.page
    heads = page.eval_on_selector_all("#units thead th", "all => all.map(th => th.textContent)")
    place = heads.index("Observed size")
    button = page.locator("#units thead th").nth(place).locator("button")
    button.click()
    assert numbers(column(page, place)) == sorted(numbers(column(page, place)), reverse=True)
    assert page.locator("#units thead th").nth(place).get_attribute("aria-sort") == "descending"
    button.press("Enter")
    assert numbers(column(page, place)) == sorted(numbers(column(page, place)))
    page.locator("#units thead th").nth(0).locator("button").click()
    assert column(page, 0) == sorted(column(page, 0))
    assert page.locator("#units [aria-sort]").count() == 1
    some = column(page, 0)[0]
    page.locator("#units-controls input").fill(some.lower())
    assert set(column(page, 0)) == {some}
    page.locator("#units-controls input").fill("no such gene")
    assert column(page, 0) == []
    assert page.locator("#units-controls output").text_content() == "0 of 0 rows"
    assert opened.complaints == []
    page.close()


def test_without_scripts_and_on_paper_everything_is_there(started: Any, folder: Path) -> None:
    table = pd.read_parquet(folder / "one" / "per_perturbation.parquet")
    opened = open_page(started, folder / "one" / "report.html", java_script_enabled=False)
    assert opened.page.locator("#units tbody tr").count() == (table["predictor"] == "model").sum()
    assert not opened.page.locator("#units-controls").is_visible()
    assert opened.page.locator("#units tbody tr").first.is_visible()
    assert len(opened.page.pdf()) > 10_000
    opened.page.close()


def test_hostile_names_are_shown_and_do_nothing(started: Any, folder: Path) -> None:
    opened = open_page(started, folder / "one" / "report.html")
    said = []
    opened.page.on("dialog", lambda dialog: said.append(dialog.message))
    assert HOSTILE[:20] in opened.page.locator("#map ~ .figures svg").first.text_content()
    assert opened.page.locator("img").count() == 0
    assert said == opened.complaints == []
    opened.page.close()


def mean_predictions(store: CellStore, file: Path) -> Path:
    """What a simple tool might predict: half of the way from the control to what was observed, and noise."""
    genes = np.arange(len(store.genes), dtype=np.int64)
    moments = condition_moments(store, perturbed_rows(store, "test"), genes=genes)
    control_RG = store.control_mean_CG[moments.context_R]
    change_RG = moments.sum_RG / moments.num_cells_R[:, None] - control_RG
    noise_RG = np.random.default_rng(0).normal(0, 0.1, change_RG.shape)
    obs = pd.DataFrame(
        {
            "perturbation": [store.perturbations[code] for code in moments.perturbation_R],
            "cell_line": [store.contexts[code].cell_line for code in moments.context_R],
            "batch": [store.contexts[code].batch for code in moments.context_R],
        },
        index=[str(row) for row in range(len(control_RG))],
    )
    predicted_RG = np.maximum(control_RG + 0.5 * change_RG + noise_RG, 0)
    anndata.AnnData(predicted_RG, obs, pd.DataFrame(index=list(store.genes))).write_h5ad(file)
    return file


@pytest.mark.real
@pytest.mark.parametrize("name", SCREENS)
def test_reports_of_real_screens_open(started: Any, tmp_path: Path, name: str) -> None:
    screen, held_out = SCREENS[name]
    if not screen.file.exists():
        pytest.skip(f"TXPERT_SHARED_DATA lacks {screen.file.name}")
    txpert("ingest", screen.file, "--store", tmp_path / "screen.zarr", *screen.ingest)
    file = mean_predictions(open_store(tmp_path / "screen.zarr"), tmp_path / "predicted.h5ad")
    options = [f"--held-out-cell-line={line}" for line in held_out]
    txpert(
        *("evaluate", "--predictions", file, "--store", tmp_path / "screen.zarr", "--genes", "all"),
        *("--report", tmp_path / "report", *options),
    )
    content = json.loads((tmp_path / "report" / "report.json").read_text())
    assert content["provenance"]["held_out_cell_lines"] == list(held_out)
    opened = open_page(started, tmp_path / "report" / "report.html")
    assert opened.complaints == []
    assert len(opened.requests) == 1
    shown = opened.page.locator("#units tbody tr").count()
    assert shown == content["counts"]["groups"]
    assert opened.page.locator("figure").count() > 12
    opened.page.close()
