"""The splits of GEARS, drawn with the same numbers: combinations by how many of their genes were seen.

Enters: conditions as GEARS spells them (``ctrl``, ``A+ctrl``, ``ctrl+A``, ``A+B``), in the order of the first
cell of each, and a seed. Leaves: the split and the sub-group of each. Invariants: the same conditions and
seed give GEARS' own split, whatever NumPy's global state, which is neither read nor changed; a perturbation
never stands in two splits.

NumPy's legacy generator is what GEARS draws with, and its stream is frozen.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Literal, NamedTuple

import numpy as np

from txpert_dist.store.splits import TEST, TRAIN, VALIDATION

GearsMode = Literal["simulation", "simulation_single", "single", "combo_seen0", "combo_seen1", "combo_seen2"]
"""``simulation`` is what Norman's doubles are evaluated on."""

CTRL = "ctrl"
UNSEEN_SINGLE = "unseen_single"

_TRAIN_GENES, _TRAIN_PAIRS = 0.75, 0.75
"""Of all genes, and of the pairs of two of those, that are for training: when the test is drawn."""
_VALIDATION_GENES, _VALIDATION_PAIRS = 0.9, 0.9
"""When the validation is drawn from what is left."""
_SHARE = 0.1
"""Of the conditions, held out by the modes that are not simulations."""


class GearsSplit(NamedTuple):
    """Where each condition is."""

    split: dict[str, int]
    """Split code by condition; those that a mode leaves out of all splits are not in it."""
    subgroup: dict[str, str]
    """Of the conditions of validation and test: unseen_single, or combo_seenK with K genes seen before."""


class _Part(NamedTuple):
    kept: list[str]
    held_out: list[str]
    seen: frozenset[str]
    """Genes that training may hold."""


def gears_split(conditions: Sequence[str], *, seed: int, mode: GearsMode = "simulation") -> GearsSplit:
    """Split ``conditions`` as GEARS does; the control, where listed, is train.

    ``simulation`` holds out genes and, of the pairs of the others, some: every condition is in one split.
    ``simulation_single`` is the same for screens of single genes. The others hold out a tenth, drawn with
    repeats; ``single`` and ``combo_seen0`` leave out pairs with a held-out gene. Only for ``combo_seen2`` the
    order of the conditions counts. Raises ``ValueError`` for a condition that is neither control, one gene
    nor a pair, a pair that is there in both orders, and pairs in ``simulation_single``.
    """
    perturbed = _checked(conditions, mode)
    random = np.random.RandomState(seed)
    if mode in ("simulation", "simulation_single"):
        test = _simulate(perturbed, seed, _TRAIN_GENES, _TRAIN_PAIRS)
        validation = _simulate(test.kept, seed, _VALIDATION_GENES, _VALIDATION_PAIRS)
    else:
        draw = _DRAWS[mode]
        test = draw(perturbed, random)
        validation = draw(test.kept, random)
    split = {CTRL: TRAIN} if CTRL in conditions else {}
    split |= dict.fromkeys(validation.kept, TRAIN)
    split |= dict.fromkeys(validation.held_out, VALIDATION)
    split |= dict.fromkeys(test.held_out, TEST)
    subgroup = {name: _subgroup(name, part.seen) for part in (validation, test) for name in part.held_out}
    return GearsSplit(split, subgroup)


def genes_of(condition: str) -> tuple[str, ...]:
    """The genes of a condition, without the control."""
    return tuple(gene for gene in condition.split("+") if gene != CTRL)


def _checked(conditions: Sequence[str], mode: GearsMode) -> list[str]:
    pairs = dict[frozenset[str], str]()
    for condition in conditions:
        genes = genes_of(condition)
        if len(genes) > 2 or len(set(genes)) < len(genes) or not all(genes):
            raise ValueError(f"{condition!r}: splits of GEARS are of one gene or two different ones")
        if len(genes) == 2:
            other = pairs.setdefault(frozenset(genes), condition)
            if other != condition:
                raise ValueError(f"{other!r} and {condition!r} are one perturbation; keep one of them")
    if pairs and mode == "simulation_single":
        raise ValueError(f"{next(iter(pairs.values()))!r} is a pair: simulation_single is for single genes")
    return [condition for condition in dict.fromkeys(conditions) if genes_of(condition)]


def _genes(conditions: Collection[str]) -> list[str]:
    return sorted({gene for condition in conditions for gene in genes_of(condition)})


def _pairs(conditions: Sequence[str]) -> list[str]:
    return [condition for condition in conditions if len(genes_of(condition)) == 2]


def _simulate(conditions: Sequence[str], seed: int, genes_share: float, pairs_share: float) -> _Part:
    """Hold out what has a gene outside a random share of them, and a share of the other pairs."""
    genes = np.array(_genes(conditions), object)
    chosen = np.random.RandomState(seed).choice(genes, int(len(genes) * genes_share), replace=False)
    seen = frozenset(chosen)
    inside = [condition for condition in conditions if seen.issuperset(genes_of(condition))]
    # Sorted, and from a fresh stream: what GEARS draws from.
    pairs = np.array(sorted(_pairs(inside)), object)
    kept_pairs = np.random.RandomState(seed).choice(pairs, int(len(pairs) * pairs_share), replace=False)
    kept = {*inside} - {*pairs} | {*kept_pairs}
    return _Part(
        [condition for condition in conditions if condition in kept],
        [condition for condition in conditions if condition not in kept],
        seen,
    )


def _drawn_genes(conditions: Sequence[str], random: np.random.RandomState) -> frozenset[str]:
    """Held-out genes: a tenth as many draws as there are conditions of one gene, repeats and all."""
    singles = len(conditions) - len(_pairs(conditions))
    return frozenset(random.choice(np.array(_genes(conditions), object), int(singles * _SHARE)))


def _with_genes(
    conditions: Sequence[str], random: np.random.RandomState, *, most_seen: int, pairs: bool
) -> _Part:
    """Hold out what has a drawn gene; leave out pairs with more than ``most_seen`` other genes."""
    unseen = _drawn_genes(conditions, random)
    touched = [condition for condition in conditions if not unseen.isdisjoint(genes_of(condition))]
    held_out = [
        condition
        for condition in touched
        if len(genes_of(condition)) == 1 or (pairs and len({*genes_of(condition)} - unseen) <= most_seen)
    ]
    kept = [condition for condition in conditions if condition not in set(touched)]
    return _Part(kept, held_out, frozenset(_genes(conditions)) - unseen)


def _single(conditions: Sequence[str], random: np.random.RandomState) -> _Part:
    return _with_genes(conditions, random, most_seen=0, pairs=False)


def _seen0(conditions: Sequence[str], random: np.random.RandomState) -> _Part:
    return _with_genes(conditions, random, most_seen=0, pairs=True)


def _seen1(conditions: Sequence[str], random: np.random.RandomState) -> _Part:
    return _with_genes(conditions, random, most_seen=1, pairs=True)


def _seen2(conditions: Sequence[str], random: np.random.RandomState) -> _Part:
    # The genes are drawn, and not used, here as there: the stream has to stand where it does there.
    _drawn_genes(conditions, random)
    pairs = np.array(_pairs(conditions), object)
    held_out = set(random.choice(pairs, int(len(pairs) * _SHARE))) if len(pairs) else set()
    kept = [condition for condition in conditions if condition not in held_out]
    return _Part(kept, [c for c in conditions if c in held_out], frozenset(_genes(kept)))


_DRAWS: dict[str, Callable[[Sequence[str], np.random.RandomState], _Part]] = {
    "single": _single,
    "combo_seen0": _seen0,
    "combo_seen1": _seen1,
    "combo_seen2": _seen2,
}


def _subgroup(condition: str, seen: Collection[str]) -> str:
    genes = genes_of(condition)
    return UNSEEN_SINGLE if len(genes) == 1 else f"combo_seen{sum(gene in seen for gene in genes)}"
