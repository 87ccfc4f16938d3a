"""The simulated h5ad: same bytes for the same configuration, a plausible screen, bounded memory."""

import hashlib
import subprocess
import sys
from pathlib import Path

import anndata
import numpy as np
import pytest
import scipy.stats
from pydantic import ValidationError

from txpert_dist.errors import InputError
from txpert_dist.simulate.cells import label_cells, lay_out
from txpert_dist.simulate.config import Purpose, SimulateConfig, generator
from txpert_dist.simulate.counts import DISPERSIONS, QUANTILES, draw_noise, poisson
from txpert_dist.simulate.effects import draw_truth
from txpert_dist.simulate.network import hidden_network
from txpert_dist.simulate.run import SimulateSummary, draw_block, simulate

SMALL = SimulateConfig(cells=3_000, genes=300, perturbations=20, doubles=6, programmes=5, batches=3, seed=3)
FILES = ("screen.h5ad", "truth.npz", "kg_interactions.csv", "kg_pathways.gmt", "graphs.yaml")


def hashes(folder: Path) -> list[str]:
    return [hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES]


@pytest.fixture(scope="module")
def screen(tmp_path_factory: pytest.TempPathFactory) -> tuple[SimulateSummary, anndata.AnnData]:
    out = tmp_path_factory.mktemp("screen") / "screen.h5ad"
    summary = simulate(SMALL, out=out)
    return summary, anndata.read_h5ad(out)


def test_same_configuration_gives_the_same_bytes_and_another_seed_does_not(
    screen: tuple[SimulateSummary, anndata.AnnData], tmp_path: Path
) -> None:
    simulate(SMALL, out=tmp_path / "screen.h5ad")
    again, first = hashes(tmp_path), hashes(screen[0].screen.parent)
    assert again == first
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    simulate(SMALL.model_copy(update={"seed": 4}), out=tmp_path / "screen.h5ad", overwrite=True)
    assert not set(hashes(tmp_path)) & set(first)


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_compression_changes_the_file_only(
    screen: tuple[SimulateSummary, anndata.AnnData], tmp_path: Path, compression: str
) -> None:
    summary = simulate(SMALL.model_copy(update={"compression": compression}), out=tmp_path / "screen.h5ad")
    other = anndata.read_h5ad(summary.screen)
    assert (other.X != screen[1].X).nnz == 0
    assert other.obs.equals(screen[1].obs)


def test_the_file_holds_what_the_summary_says(screen: tuple[SimulateSummary, anndata.AnnData]) -> None:
    summary, data = screen
    assert data.shape == (summary.cells, summary.genes) == (3_000, 300)
    assert data.X.nnz == summary.nonzeros
    assert data.X.has_sorted_indices
    assert (data.X.data > 0).all()
    assert (data.X.data == np.rint(data.X.data)).all()
    assert set(data.obs["perturbation"].cat.categories) == {"control", *data.obs["perturbation"]}
    assert summary.perturbations == 26
    assert sum("+" in name for name in data.obs["perturbation"].cat.categories) == 6
    assert data.var_names[7] == "GENE0007"
    assert data.obs_names.is_unique


def test_every_batch_of_every_line_has_its_share_of_controls(
    screen: tuple[SimulateSummary, anndata.AnnData],
) -> None:
    obs = screen[1].obs
    share = obs["perturbation"].eq("control").groupby([obs["cell_line"], obs["batch"]], observed=True).mean()
    assert len(share) == 6
    np.testing.assert_allclose(share, SMALL.control_fraction, atol=0.003)


def test_every_perturbation_is_in_every_line_with_two_guides(
    screen: tuple[SimulateSummary, anndata.AnnData],
) -> None:
    obs = screen[1].obs
    cells = obs.groupby(["cell_line", "perturbation"], observed=True).size()
    assert len(cells) == 2 * 27
    guides = obs.groupby("perturbation", observed=True)["guide"].nunique()
    assert (guides == 2).all()


def test_median_depth_is_the_configured_one() -> None:
    config = SMALL.model_copy(update={"genes": 6_000, "cells": 600})
    assert config.depth == 10_000
    counts = blocks(config)
    assert np.median(counts.sum(axis=1)) == pytest.approx(10_000, rel=0.1)


def blocks(config: SimulateConfig) -> np.ndarray:
    truth = draw_truth(config, hidden_network(config))
    layout, noise = lay_out(config, len(truth.perturbations)), draw_noise(config)
    parts, done = [], 0
    while done < config.cells:
        parts.append(draw_block(layout, truth, noise, len(parts))[1].astype(np.int64))
        done += len(parts[-1])
    return np.concatenate(parts)


def test_counts_of_one_condition_are_over_dispersed_and_sparse(
    screen: tuple[SimulateSummary, anndata.AnnData],
) -> None:
    data = screen[1]
    keep = data.obs["perturbation"].eq("control") & data.obs["cell_line"].eq("LINE1")
    counts = data[keep].X.toarray()
    mean, variance = counts.mean(axis=0), counts.var(axis=0)
    expressed = mean > 1
    assert (variance[expressed] > mean[expressed]).mean() > 0.95
    assert 0.3 < (counts == 0).mean() < 0.8


def test_genes_are_dispersed_each_in_its_own_measure() -> None:
    """(variance - mean) / mean ** 2 of depth-corrected counts of one batch recovers each gene's level."""
    config = SMALL.model_copy(
        update={
            "cells": 4_000,
            "cell_lines": 1,
            "batches": 1,
            "control_fraction": 0.99,
            "median_umi": 200_000,
        }
    )
    counts = blocks(config).astype(float)
    depth = counts.sum(axis=1, keepdims=True)
    scaled = counts / depth * depth.mean()
    mean = scaled.mean(axis=0)
    shot = mean * (depth.mean() / depth).mean()
    high = mean > 20
    dispersion = ((scaled.var(axis=0) - shot) / mean**2)[high]
    noise = draw_noise(config)
    level = np.array(DISPERSIONS)[noise.level_G // QUANTILES]
    expected = (level * np.exp(noise.state_G**2) + np.expm1(noise.state_G**2))[high]  # and the cell's state
    assert high.sum() > 50
    assert np.corrcoef(dispersion, expected)[0, 1] > 0.9
    assert np.median(dispersion / expected) == pytest.approx(1, abs=0.2)


def test_only_cells_with_a_working_guide_lose_their_gene() -> None:
    config = SMALL.model_copy(update={"cells": 6_000, "guide_efficiency": 0.5, "doubles": 0})
    truth = draw_truth(config, hidden_network(config))
    layout, noise = lay_out(config, len(truth.perturbations)), draw_noise(config)
    ratio: dict[float, list[float]] = {0.0: [], 1.0: []}
    drawn = [draw_block(layout, truth, noise, block) for block in range(3)]
    counts = np.concatenate([block[1] for block in drawn]).astype(float)
    counts /= counts.sum(axis=1, keepdims=True)
    perturbation = np.concatenate([block[0].perturbation for block in drawn])
    strength = np.concatenate([block[0].strength for block in drawn])
    control = counts[perturbation == 0].mean(axis=0)
    for code in range(1, len(truth.perturbations)):
        gene = truth.targets_P2[code, 0]
        if control[gene] * config.depth > 0.5:
            for value, found in ratio.items():
                mine = counts[(perturbation == code) & (strength == value), gene]
                found.append(mine.mean() / control[gene])
    assert len(ratio[1.0]) > 5
    assert np.median(ratio[0.0]) == pytest.approx(1, abs=0.25)
    assert np.median(ratio[1.0]) < 0.5


def test_a_block_needs_no_other_block(screen: tuple[SimulateSummary, anndata.AnnData]) -> None:
    data = screen[1]
    truth = draw_truth(SMALL, hidden_network(SMALL))
    layout = lay_out(SMALL, len(truth.perturbations))
    cells, counts = draw_block(layout, truth, draw_noise(SMALL), 1)
    start = (1 << 19) // SMALL.genes
    assert len(counts) == 3_000 - start
    np.testing.assert_array_equal(counts, data.X[start:].toarray())
    names = np.array(truth.perturbations)[cells.perturbation]
    np.testing.assert_array_equal(names, data.obs["perturbation"].to_numpy()[start:])


def test_labels_do_not_depend_on_where_blocks_are_cut() -> None:
    layout = lay_out(SMALL, 27)
    rng = generator(0, Purpose.CELLS)
    whole = label_cells(layout, 0, 3_000, rng)
    for start, stop in [(0, 1), (999, 1001), (2_500, 3_000)]:
        part = label_cells(layout, start, stop, rng)
        np.testing.assert_array_equal(part.context, whole.context[start:stop])
        np.testing.assert_array_equal(part.perturbation, whole.perturbation[start:stop])


def test_guides_fail_as_often_as_configured() -> None:
    config = SMALL.model_copy(update={"cells": 20_000, "guide_efficiency": 0.7})
    strength = label_cells(lay_out(config, 27), 0, 20_000, generator(0, Purpose.CELLS)).strength
    assert (strength == 1).mean() == pytest.approx(0.7, abs=0.05)
    assert (strength == 0).mean() == pytest.approx(0.15, abs=0.05)
    perfect = SMALL.model_copy(update={"guide_efficiency": 1.0})
    assert (label_cells(lay_out(perfect, 27), 0, 3_000, generator(0, Purpose.CELLS)).strength == 1).all()


@pytest.mark.parametrize("mean", [0.05, 1.3, 9.0, 15.9, 16.1, 60.0, 800.0])
def test_poisson_draws_follow_the_distribution(mean: float) -> None:
    num = 40_000
    draws = poisson(np.full(num, mean, np.float32), np.random.default_rng(0))
    expected = scipy.stats.poisson(mean)
    # Bin b holds counts from edges[b - 1] up to, but not including, edges[b].
    edges = np.unique(expected.ppf(np.linspace(0.02, 0.98, 15)) + 1)
    probability = np.diff(np.concatenate([[0], expected.cdf(edges - 1), [1]]))
    bins = np.searchsorted(edges, draws, side="right")
    chi = scipy.stats.chisquare(np.bincount(bins, minlength=len(probability)), num * probability)
    assert chi.pvalue > 1e-4
    assert draws.mean() == pytest.approx(mean, abs=5 * np.sqrt(mean / num))


def test_a_screen_that_cannot_be_is_refused(tmp_path: Path) -> None:
    for wrong in (
        {"perturbations": 3_000},
        {"doubles": 5_000},
        {"cells": 3},
        {"programmes": 1_000},
        {"control_fraction": 0.0},
        {"cell": 10},
    ):
        with pytest.raises(ValidationError):
            SimulateConfig.model_validate(wrong)
    with pytest.raises(InputError, match="end the path"):
        simulate(SMALL, out=tmp_path / "screen.csv")
    (tmp_path / "graphs.yaml").write_text("mine")
    with pytest.raises(InputError, match=r"graphs\.yaml: is already there"):
        simulate(SMALL, out=tmp_path / "screen.h5ad")
    assert [path.name for path in tmp_path.iterdir()] == ["graphs.yaml"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    class StopHereError(Exception):
        pass

    def stop(what: str, done: int, total: int) -> None:
        raise StopHereError

    with pytest.raises(StopHereError):
        simulate(SMALL, out=tmp_path / "screen.h5ad", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_progress_counts_the_cells(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    simulate(SMALL, out=tmp_path / "screen.h5ad", progress=lambda *step: seen.append(step))
    done = [step[1] for step in seen]
    assert done == sorted(set(done))
    assert seen[-1] == ("cells", 3_000, 3_000)


PEAK = """
import resource, sys
from pathlib import Path
from txpert_dist.simulate.config import SimulateConfig
from txpert_dist.simulate.run import simulate
config = SimulateConfig(cells=int(sys.argv[1]), genes=200, perturbations=20, programmes=4)
simulate(config, out=Path(sys.argv[2]) / "screen.h5ad")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.process
def test_memory_does_not_grow_with_cells(tmp_path: Path) -> None:
    def peak_megabytes(cells: int) -> float:
        folder = tmp_path / str(cells)
        command = [sys.executable, "-c", PEAK, str(cells), str(folder)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout) / 1024

    few, many = peak_megabytes(20_000), peak_megabytes(120_000)
    written = (tmp_path / "120000" / "screen.h5ad").stat().st_size / 2**20
    assert written > 60
    assert many - few < 15
