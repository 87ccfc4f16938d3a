"""What a simulated screen is made of.

Enters: values of the user. Leaves: a frozen ``SimulateConfig`` whose numbers fit each other, and the seeded
generators every other module draws from. Invariant: equal configurations give equal bytes.
"""

from enum import IntEnum
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, model_validator

GENES_OF_FULL_DEPTH = 5_000
"""Genes that share ``median_umi``; a measurement of fewer genes gets their share of it."""

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Purpose(IntEnum):
    """What a generator is for: every purpose has its own stream, so none disturbs another."""

    NETWORK = 1
    PERTURBED = 2
    EFFECT = 3
    BASELINE = 4
    GUIDE = 5
    DECK = 6
    CELLS = 7
    INTERACTIONS = 8
    PATHWAYS = 9


class SimulateConfig(BaseModel):
    """One simulated screen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cells: PositiveInt = 20_000
    genes: Annotated[int, Field(ge=20, le=100_000)] = 2_000
    perturbations: PositiveInt = 100
    """Genes that are perturbed one at a time."""
    doubles: NonNegativeInt = 0
    """Pairs of them that are perturbed together."""
    cell_lines: PositiveInt = 2
    batches: PositiveInt = 4
    """Experimental batches of each cell line."""
    control_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.1
    median_umi: PositiveInt = 10_000
    """Median counts of a cell at 5,000 genes and more; fewer genes take their share."""
    guide_efficiency: Annotated[float, Field(gt=0, le=1)] = 0.85
    """Share of a perturbation's cells that are fully perturbed; the others partly or not at all."""
    programmes: Annotated[int, Field(ge=2)] = 12
    """Gene programmes, which are the communities of the hidden network."""
    edges_per_gene: PositiveInt = 8
    """Mean number of regulators of a gene in the hidden network, before repeated draws are dropped."""
    effect_sharing: Annotated[float, Field(ge=0, le=1)] = 0.8
    """How alike a perturbation's effects in two cell lines are (1: the same)."""
    graph_missing: Fraction = 0.3
    """Share of the hidden edges, and of gene-set members, that the knowledge graphs lack."""
    graph_false: Fraction = 0.2
    """Share of the knowledge graphs' edges, and gene-set members, that are not true."""
    compression: Literal["none", "gzip"] = "none"
    """Of the counts in the h5ad: gzip takes a fifth of the space and twice the time."""
    seed: NonNegativeInt = 0

    @property
    def depth(self) -> float:
        """Median counts of a cell over the simulated genes."""
        return self.median_umi * min(1.0, self.genes / GENES_OF_FULL_DEPTH)

    @property
    def num_contexts(self) -> int:
        """Number of (cell line, batch) pairs."""
        return self.cell_lines * self.batches

    @model_validator(mode="after")
    def _fits_together(self) -> "SimulateConfig":
        if self.perturbations > self.genes:
            raise ValueError(f"perturbations={self.perturbations} is more than genes={self.genes}; lower it")
        if self.doubles > self.perturbations * (self.perturbations - 1) // 2:
            raise ValueError(f"doubles={self.doubles} is more than the pairs of {self.perturbations} genes")
        if self.programmes * 5 > self.genes:
            raise ValueError(f"programmes={self.programmes} needs at least {5 * self.programmes} genes")
        if self.cells < 2 * self.num_contexts:
            raise ValueError(
                f"cells={self.cells} cannot fill {self.cell_lines} cell lines x {self.batches} batches; "
                f"give at least {2 * self.num_contexts}"
            )
        return self


def generator(seed: int, purpose: Purpose, *number: int) -> np.random.Generator:
    """The stream of one purpose, and of one block of it; independent of every other."""
    # SeedSequence takes (1,) and (1, 0) for the same words, so the count of numbers is part of the key.
    return np.random.default_rng((seed, int(purpose), len(number), *number))
