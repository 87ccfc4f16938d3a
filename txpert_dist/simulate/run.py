"""Simulate a Perturb-seq screen whose truth is known.

Enters: a ``SimulateConfig`` and the path of an h5ad. Leaves, side by side: the h5ad, two knowledge-graph
files with the recipe of their snapshot, and ``truth.npz``. Invariants: equal configurations give equal bytes
on one machine; memory is bounded whatever the number of cells (it grows with conditions x genes); every file
is complete or absent, the h5ad appearing last.

Realistic: over-dispersed sparse counts, lognormal depth, batch effects, several cell lines, guides that fail,
unequal numbers of cells, effects with a shared, a programme and a gene-specific part, knowledge that is
partial and partly wrong. Simplified: genes answer linearly on the log scale, once, at equilibrium; no
perturbation changes how many counts or cells there are; dispersion is a property of the gene alone; no
ambient RNA, doublets, cell types or time.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.simulate import knowledge
from txpert_dist.simulate.cells import GUIDES, Cells, Layout, label_cells, lay_out
from txpert_dist.simulate.config import Purpose, SimulateConfig, generator
from txpert_dist.simulate.counts import Noise, draw_counts, draw_noise
from txpert_dist.simulate.effects import CONTROL, Truth, draw_truth
from txpert_dist.simulate.h5ad import Column, H5adWriter
from txpert_dist.simulate.network import Network, hidden_network
from txpert_dist.store.expression import TARGET_SUM

TRUTH = "truth.npz"
ENTRIES_PER_BLOCK = 1 << 19
"""Cells x genes that are drawn at once; decides memory and, as blocks have their own seeds, the data."""

Progress = Callable[[str, int, int], None]


class SimulateSummary(NamedTuple):
    """What was written."""

    screen: Path
    truth: Path
    graphs: Path
    """Recipe for ``txpert graph build``; the two knowledge-graph files lie beside it."""
    cells: int
    genes: int
    perturbations: int
    """Distinct labels, control not counted."""
    nonzeros: int
    median_counts: float
    """Median over cells of the total counts (of the first million cells)."""
    interactions: int
    """Edges in the interactions file."""
    gene_sets: int


def _silent(what: str, done: int, total: int) -> None:
    """No progress is wanted."""


def simulate(
    config: SimulateConfig, *, out: Path, overwrite: bool = False, progress: Progress = _silent
) -> SimulateSummary:
    """Write the screen to ``out`` (an .h5ad) and truth, knowledge graphs and recipe into the same folder.

    Raises ``InputError`` when ``out`` is no .h5ad path, or a file is there and ``overwrite`` is not set.
    """
    names = (knowledge.INTERACTIONS, knowledge.PATHWAYS, knowledge.GRAPHS, TRUTH, out.name)
    _refuse(out, names, overwrite)
    network = hidden_network(config)
    truth = draw_truth(config, network)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as name:
        folder = Path(name)
        interactions = knowledge.write_interactions(
            folder / knowledge.INTERACTIONS, config, network, truth.genes
        )
        gene_sets = knowledge.write_pathways(folder / knowledge.PATHWAYS, config, network, truth.genes)
        knowledge.write_recipe(folder / knowledge.GRAPHS, config)
        _write_truth(folder / TRUTH, config, network, truth)
        nonzeros, median = _write_cells(folder / out.name, config, truth, progress)
        for written in names:
            os.replace(folder / written, out.parent / written)
    return SimulateSummary(
        screen=out,
        truth=out.parent / TRUTH,
        graphs=out.parent / knowledge.GRAPHS,
        cells=config.cells,
        genes=config.genes,
        perturbations=len(truth.perturbations) - 1,
        nonzeros=nonzeros,
        median_counts=median,
        interactions=interactions,
        gene_sets=gene_sets,
    )


def draw_block(layout: Layout, truth: Truth, noise: Noise, block: int) -> tuple[Cells, NDArray[np.uint16]]:
    """Labels and counts (B, G) of one block of cells; needs no other block."""
    size = _block_size(layout.config)
    start, stop = block * size, min((block + 1) * size, layout.config.cells)
    rng = generator(layout.config.seed, Purpose.CELLS, block)
    cells = label_cells(layout, start, stop, rng)
    return cells, draw_counts(truth, noise, cells, rng)


def _block_size(config: SimulateConfig) -> int:
    return max(64, ENTRIES_PER_BLOCK // config.genes)


def _write_cells(path: Path, config: SimulateConfig, truth: Truth, progress: Progress) -> tuple[int, float]:
    layout, noise = lay_out(config, len(truth.perturbations)), draw_noise(config)
    num_blocks = -(-config.cells // _block_size(config))
    columns = _columns(config, truth)
    nonzeros, done, totals = 0, 0, []
    with H5adWriter(path, truth.genes, columns, compression=config.compression) as writer:
        for block in range(num_blocks):
            cells, counts_BG = draw_block(layout, truth, noise, block)
            line, batch = np.divmod(cells.context, config.batches)
            codes = (cells.perturbation, line, batch, cells.perturbation * GUIDES + cells.guide)
            nonzeros += writer.append(counts_BG, codes)
            if done < 1_000_000:
                totals.append(counts_BG.sum(axis=1, dtype=np.int64))
            done += len(counts_BG)
            progress("cells", done, config.cells)
    return nonzeros, float(np.median(np.concatenate(totals)))


def _columns(config: SimulateConfig, truth: Truth) -> list[Column]:
    guides = [
        f"{'non-targeting' if name == CONTROL else name}_g{guide + 1}"
        for name in truth.perturbations
        for guide in range(GUIDES)
    ]
    return [
        Column("perturbation", truth.perturbations),
        Column("cell_line", _line_names(config)),
        Column("batch", [f"batch{batch + 1}" for batch in range(config.batches)]),
        Column("guide", guides),
    ]


def _line_names(config: SimulateConfig) -> list[str]:
    return [f"LINE{line + 1}" for line in range(config.cell_lines)]


def _write_truth(path: Path, config: SimulateConfig, network: Network, truth: Truth) -> None:
    """Expression is log1p(TARGET_SUM * expected share of counts), as in cell stores.

    Rows of the (R, G) arrays: every perturbation of the first cell line, then of the next.
    """
    expression_RG = truth.expression(TARGET_SUM)
    per_line = len(truth.perturbations)
    control_RG = np.repeat(expression_RG[::per_line], per_line, axis=0)
    lines = _line_names(config)
    np.savez(
        path,
        allow_pickle=False,
        genes=np.array(truth.genes),
        perturbation=np.array(truth.perturbations * len(lines)),
        cell_line=np.repeat(np.array(lines), per_line),
        expression=expression_RG,
        delta=expression_RG - control_RG,
        programme=network.programme,
        edges=network.edges_2E,
        edge_weight=network.weight_E,
        targets=truth.targets_P2,
    )


def _refuse(out: Path, names: tuple[str, ...], overwrite: bool) -> None:
    if out.suffix != ".h5ad":
        raise InputError(f"{out}: a screen is written as .h5ad; end the path with it")
    there = [name for name in names if (out.parent / name).exists()]
    if there and not overwrite:
        raise InputError(
            f"{out.parent / there[0]}: is already there; choose another folder or allow it to be overwritten"
        )
