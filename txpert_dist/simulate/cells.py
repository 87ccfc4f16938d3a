"""Which cell is what: context, perturbation, guide, and how well the guide worked.

Enters: a configuration and row numbers. Leaves: labels of exactly those rows. Invariants: context and
perturbation of a row depend on the configuration and the row only, so any block can be drawn alone; every
batch begins with a control.

Rows lie batch by batch, as sequencing delivers them. Controls are spread evenly within a batch. The other
cells of a line are dealt from a shuffled deck that holds every perturbation at least once, some more often,
so that perturbations have unequal numbers of cells and none goes missing in a screen of reasonable size.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.simulate.config import Purpose, SimulateConfig, generator

GUIDES = 2
"""Guides of each perturbation, and of the controls."""


class Cells(NamedTuple):
    """Labels of B cells."""

    context: NDArray[np.int64]
    """cell line * batches + batch."""
    perturbation: NDArray[np.int64]
    """Position in ``Truth.perturbations``; 0 is control."""
    guide: NDArray[np.int64]
    """0 .. GUIDES - 1."""
    strength: NDArray[np.float32]
    """Share of the perturbation's log fold change that the cell shows: 1, 0, or between."""


class Layout(NamedTuple):
    """Where batches begin, and what is dealt to their cells."""

    config: SimulateConfig
    first_cell: NDArray[np.int64]
    """(C + 1,) first row of each context."""
    first_dealt: NDArray[np.int64]
    """(C,) how many perturbed cells of its line precede each context."""
    deck: NDArray[np.int64]
    """Perturbations, each as often as its share of the cells asks."""
    efficiency_PG: NDArray[np.float64]
    """(perturbations, GUIDES) share of fully perturbed cells."""


def lay_out(config: SimulateConfig, num_perturbations: int) -> Layout:
    """Place ``config.cells`` cells of ``num_perturbations`` labels, control among them."""
    first_cell = np.arange(config.num_contexts + 1) * config.cells // config.num_contexts
    size_LB = np.diff(first_cell).reshape(config.cell_lines, config.batches)
    dealt_LB = size_LB - _controls_before(size_LB, config.control_fraction)
    first_dealt_LB = np.cumsum(dealt_LB, axis=1) - dealt_LB
    rng = generator(config.seed, Purpose.GUIDE)
    share = rng.lognormal(0.0, 0.5, num_perturbations - 1)
    copies = np.maximum(1, np.round(2 * share)).astype(np.int64)
    noise_PG = rng.normal(0.0, 0.08, (num_perturbations, GUIDES))
    return Layout(
        config=config,
        first_cell=first_cell,
        first_dealt=first_dealt_LB.ravel(),
        deck=np.repeat(np.arange(1, num_perturbations), copies),
        efficiency_PG=np.clip(config.guide_efficiency + noise_PG * (config.guide_efficiency < 1), 0.0, 1.0),
    )


def label_cells(layout: Layout, start: int, stop: int, rng: np.random.Generator) -> Cells:
    """Labels of rows start .. stop; ``rng`` draws guides and their success, the rest needs no draw."""
    rows = np.arange(start, stop)
    context = np.searchsorted(layout.first_cell, rows, side="right") - 1
    within = rows - layout.first_cell[context]
    fraction = layout.config.control_fraction
    before = _controls_before(within, fraction)
    is_control = _controls_before(within + 1, fraction) > before
    dealt = layout.first_dealt[context] + within - before
    perturbation = np.where(is_control, 0, _deal(layout, context // layout.config.batches, dealt))
    guide = rng.integers(GUIDES, size=len(rows))
    chance, success = rng.random(len(rows)), layout.efficiency_PG[perturbation, guide]
    # Of the cells whose guide fails, half are untouched and half show part of the effect.
    partly = np.where(chance < (1 + success) / 2, rng.uniform(0.2, 0.8, len(rows)), 0.0)
    strength = np.where(chance < success, 1.0, partly)
    return Cells(context, perturbation, guide, strength.astype(np.float32))


def _controls_before(position: NDArray[np.int64], fraction: float) -> NDArray[np.int64]:
    """Controls among the first ``position`` cells of a batch: the first cell, then every 1 / fraction."""
    before: NDArray[np.int64] = np.ceil(position * fraction).astype(np.int64)
    return before


def _deal(layout: Layout, line: NDArray[np.int64], number: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ``number``-th perturbed cell of a line takes that card; a deck dealt out is shuffled anew."""
    out = np.empty_like(number)
    game, slot = np.divmod(number, len(layout.deck))
    key = line * (int(game.max(initial=0)) + 1) + game
    for one in np.unique(key):
        here = np.flatnonzero(key == one)
        first = here[0]
        rng = generator(layout.config.seed, Purpose.DECK, int(line[first]), int(game[first]))
        out[here] = rng.permutation(layout.deck)[slot[here]]
    return out
