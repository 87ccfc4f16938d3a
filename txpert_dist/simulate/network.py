"""The hidden gene regulatory network of a simulated screen.

Enters: a configuration. Leaves: programmes (communities of genes) and directed, signed, weighted edges from
regulators to targets, most of them within a programme and near each other on it, so that a programme has
finer structure of its own. Invariant: no self edge, no edge twice, sorted by (target, source).
"""

from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from txpert_dist.simulate.config import Purpose, SimulateConfig, generator

REGULATORS = 0.3
"""Share of the genes that regulate others."""
WITHIN_PROGRAMME = 0.9
"""Share of the edges whose target is of the regulator's own programme."""
NEAR = 0.1
"""How far targets lie from their regulator, as a share of the programme (standard deviation)."""
ACTIVATING = 0.75
"""Share of the edges with positive weight."""


class Network(NamedTuple):
    """A directed regulatory network over genes 0 .. G - 1."""

    programme: NDArray[np.int32]
    """(G,) the programme of each gene."""
    regulators: NDArray[np.int64]
    """Genes with outgoing edges, ascending."""
    edges_2E: NDArray[np.int32]
    """(2, E) regulator, target."""
    weight_E: NDArray[np.float32]
    """(E,) signed strength."""

    @property
    def num_genes(self) -> int:
        """Number of genes G."""
        return len(self.programme)

    def regulation(self) -> sp.csr_matrix:
        """(target, regulator) signed weights, each target's absolute weights summing to at most one."""
        source, target = self.edges_2E
        shape = (self.num_genes, self.num_genes)
        matrix = sp.csr_matrix((self.weight_E.astype(np.float64), (target, source)), shape=shape)
        total = np.maximum(np.asarray(abs(matrix).sum(axis=1)).ravel(), 1e-12)
        return sp.csr_matrix(sp.diags(1 / total) @ matrix)

    def neighbourhood(self) -> sp.csr_matrix:
        """(gene, gene) symmetric absolute weights, every row summing to one (or zero without neighbours)."""
        directed = abs(self.regulation())
        both = directed + directed.T
        total = np.asarray(both.sum(axis=1)).ravel()
        return sp.csr_matrix(sp.diags(1 / np.maximum(total, 1e-12)) @ both)


def hidden_network(config: SimulateConfig) -> Network:
    """Draw programmes of unequal size, regulators of unequal reach, and their targets."""
    rng = generator(config.seed, Purpose.NETWORK)
    programme = _programmes(rng, config.genes, config.programmes)
    regulators = np.sort(rng.choice(config.genes, max(2, round(REGULATORS * config.genes)), replace=False))
    reach = rng.lognormal(0.0, 0.7, len(regulators))
    source = rng.choice(regulators, config.edges_per_gene * config.genes, p=reach / reach.sum())
    target = np.where(
        rng.random(len(source)) < WITHIN_PROGRAMME,
        _nearby(rng, programme, source),
        rng.integers(config.genes, size=len(source)),
    )
    key = np.unique(target * np.int64(config.genes) + source)
    target, source = np.divmod(key, config.genes)
    target, source = target[target != source], source[target != source]
    sign = np.where(rng.random(len(source)) < ACTIVATING, 1.0, -1.0)
    weight = sign * rng.lognormal(-0.5, 0.6, len(source))
    return Network(
        programme, regulators, np.stack([source, target]).astype(np.int32), weight.astype(np.float32)
    )


def _programmes(rng: np.random.Generator, num_genes: int, num_programmes: int) -> NDArray[np.int32]:
    share = rng.lognormal(0.0, 0.3, num_programmes)
    programme = rng.choice(num_programmes, num_genes, p=share / share.sum())
    programme[:num_programmes] = np.arange(num_programmes)  # none is empty
    return rng.permutation(programme).astype(np.int32)


def _nearby(
    rng: np.random.Generator, programme: NDArray[np.int32], source: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A gene near each source on the ring that the genes of its programme form, in order of their numbers."""
    order = np.argsort(programme, kind="stable")
    size = np.bincount(programme)
    start = np.cumsum(size) - size
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - start[programme[order]]
    own = programme[source]
    step = np.rint(NEAR * size[own] * rng.standard_normal(len(source))).astype(np.int64)
    nearby: NDArray[np.int64] = order[start[own] + (place[source] + step) % size[own]]
    return nearby
