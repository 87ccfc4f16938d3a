"""Counts of labelled cells.

Enters: the truth, labels and a generator. Leaves: integer counts (B, G). Invariant: the mean of a count is
the cell's depth times the gene's share of expression; its variance is that of a negative binomial.

A cell's depth is lognormal. Each expected count is multiplied by a gamma factor of mean one and variance
equal to the gene's dispersion, then a Poisson count is drawn, which makes a negative binomial. Dispersions
take a few levels, and gamma factors come from a table of 4,096 quantiles of each level: that is several times
faster and hardly different (the largest factor is the 99.99 % quantile).
"""

from typing import NamedTuple

import numpy as np
import scipy.special
from numpy.typing import NDArray

from txpert_dist.simulate.cells import Cells
from txpert_dist.simulate.config import Purpose, SimulateConfig, generator
from txpert_dist.simulate.effects import Truth

DEPTH_SPREAD = 0.4
"""Standard deviation of log depth over cells."""
STATE_SPREAD = 0.15
"""Log fold change, per gene, of one standard deviation of the cell's own state (such as the cell cycle)."""
DISPERSIONS = (0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.9, 1.4)
"""Variance = mean + dispersion * mean ** 2."""
QUANTILES = 4096
LARGEST_INVERTED = 16.0
"""Expected counts up to here are drawn by inversion."""


class Noise(NamedTuple):
    """How cells of one context scatter; the same for the whole screen."""

    depth: float
    state_G: NDArray[np.float32]
    level_G: NDArray[np.uint16]
    """Dispersion level of each gene, times QUANTILES: where its quantiles begin."""
    gamma: NDArray[np.float32]
    """(levels * QUANTILES,) quantiles of gamma distributions of mean one."""


def draw_noise(config: SimulateConfig) -> Noise:
    """Dispersions and cell-state loadings of every gene."""
    rng = generator(config.seed, Purpose.CELLS)
    level_G = rng.choice(len(DISPERSIONS), config.genes)
    state_G = STATE_SPREAD * rng.standard_normal(config.genes)
    middle = (np.arange(QUANTILES) + 0.5) / QUANTILES
    shape = 1 / np.array(DISPERSIONS)[:, None]
    gamma = scipy.special.gammaincinv(shape, middle) / shape
    gamma /= gamma.mean(axis=1, keepdims=True)
    return Noise(
        depth=config.depth,
        state_G=state_G.astype(np.float32),
        level_G=(level_G * QUANTILES).astype(np.uint16),
        gamma=gamma.astype(np.float32).ravel(),
    )


def draw_counts(truth: Truth, noise: Noise, cells: Cells, rng: np.random.Generator) -> NDArray[np.uint16]:
    """Counts (B, G) of the labelled cells."""
    mean_BG = _expected(truth, noise, cells, rng)
    index_BG = rng.integers(QUANTILES, size=mean_BG.shape, dtype=np.uint16)
    index_BG += noise.level_G
    mean_BG *= noise.gamma[index_BG]
    return poisson(mean_BG.ravel(), rng).reshape(mean_BG.shape)


def _expected(truth: Truth, noise: Noise, cells: Cells, rng: np.random.Generator) -> NDArray[np.float32]:
    num_batches = len(truth.log_context_CG) // len(truth.log_baseline_LG)
    row = cells.context // num_batches * len(truth.perturbations) + cells.perturbation
    mean_BG: NDArray[np.float32] = truth.log_effect_RG[row]
    mean_BG *= cells.strength[:, None]
    mean_BG += truth.log_context_CG[cells.context]
    mean_BG += rng.standard_normal((len(row), 1), dtype=np.float32) * noise.state_G
    np.exp(mean_BG, out=mean_BG)
    depth_B = noise.depth * rng.lognormal(0.0, DEPTH_SPREAD, len(row))
    mean_BG *= (depth_B / mean_BG.sum(axis=1, dtype=np.float64)).astype(np.float32)[:, None]
    return mean_BG


def poisson(mean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.uint16]:
    """Poisson draws, at most 65,535, several times faster than numpy's where most means are small.

    Means up to 16: the smallest k whose cumulative probability exceeds a uniform draw. All entries step
    through k together and leave when they are done, so most cost one exponential and one comparison. Larger
    means: a normal draw with the Cornish-Fisher term for skewness, mean + sqrt(mean) z + (z ** 2 - 1) / 6.
    """
    uniform = rng.random(len(mean), dtype=np.float32)
    probability = np.exp(-mean)
    counts = np.zeros(len(mean), np.uint16)
    active = np.flatnonzero((uniform >= probability) | (mean > LARGEST_INVERTED))
    uniform, probability, mean = uniform[active], probability[active], mean[active]
    large = mean > LARGEST_INVERTED
    counts[active[large]] = _poisson_of_large_mean(mean[large], rng)
    small = np.flatnonzero(~large)
    active, uniform, probability, mean = active[small], uniform[small], probability[small], mean[small]
    cumulative, k = probability.copy(), 0
    while len(active):
        k += 1
        probability *= mean / np.float32(k)
        cumulative += probability
        counts[active] = k
        # Rounding may keep the sum below a uniform draw near one: a vanishing term past the mode ends it.
        left = np.flatnonzero((uniform >= cumulative) & ((k < mean) | (probability > 1e-9)))
        active, mean, uniform = active[left], mean[left], uniform[left]
        probability, cumulative = probability[left], cumulative[left]
    return counts


def _poisson_of_large_mean(mean: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    z = rng.standard_normal(len(mean), dtype=np.float32)
    return np.clip(np.rint(mean + np.sqrt(mean) * z + (z * z - 1) / 6), 0, np.iinfo(np.uint16).max)
