"""Splits by perturbation: every perturbation belongs to exactly one of train, validation and test.

Enters: perturbation names and a seed. Leaves: one code per perturbation. Invariants: the proportions are met
exactly (largest remainder), the control is train, and a perturbation's split depends on the set of names and
the seed only, never on the order of the names.
"""

import hashlib
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "validation", "test")
"""Names of the split codes 0, 1 and 2."""
TRAIN, VALIDATION, TEST = range(3)

CONTROL = "control"
"""The canonical name of unperturbed cells; always perturbation code 0."""

PROPORTIONS = (0.5625, 0.1875, 0.25)
"""Train, validation, test: a quarter is test, and a quarter of the rest validation (the methods)."""


def split_perturbations(
    names: Sequence[str], *, seed: int, proportions: tuple[float, float, float] = PROPORTIONS
) -> NDArray[np.uint8]:
    """(len(names),) split code of each perturbation; the control, where listed, is train.

    Perturbations are ranked by a hash of (seed, name); the first share is train, the next validation, the
    rest test. A split may come out empty when there are fewer than four perturbations.
    """
    perturbed = sorted((name for name in set(names) if name != CONTROL), key=lambda name: _rank(seed, name))
    counts = largest_remainder(len(perturbed), proportions)
    code = {CONTROL: TRAIN}
    for split, start, count in zip(range(3), (0, counts[0], counts[0] + counts[1]), counts, strict=True):
        code |= dict.fromkeys(perturbed[start : start + count], split)
    return np.array([code[name] for name in names], np.uint8)


def largest_remainder(total: int, proportions: Sequence[float]) -> tuple[int, ...]:
    """Whole numbers that sum to ``total``, nearest to its ``proportions``; ties go to the earlier one."""
    exact = [total * share / math.fsum(proportions) for share in proportions]
    counts = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: (counts[i] - exact[i], i))
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return tuple(counts)


def split_hash(names: Sequence[str], split: NDArray[np.uint8]) -> str:
    """SHA-256 (hex) of which perturbation is in which split; the order of the names does not matter."""
    lines = sorted(f"{name}\t{SPLITS[code]}\n" for name, code in zip(names, split.tolist(), strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _rank(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}\t{name}".encode()).digest()
