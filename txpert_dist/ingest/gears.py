"""The split of GEARS for a screen: from labels as files have them to a split of its perturbations.

Enters: perturbations in the order of their first cells, and the labels that became them. Leaves: a
``GivenSplit`` with sub-groups. Invariants: GEARS draws among conditions as files spell them (``ctrl+A``
beside ``A+ctrl``, pairs in the order they are written), and so does this; a perturbation has one split all
the same.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from txpert_dist.errors import InputError
from txpert_dist.ingest.labels import JOIN, listing
from txpert_dist.ingest.split_table import GivenSplit
from txpert_dist.store.gears import CTRL, GearsMode, gears_split
from txpert_dist.store.splits import CONTROL, TRAIN
from txpert_dist.store.write import LabelRow


class Gears(NamedTuple):
    """Which of GEARS' splits."""

    seed: int
    mode: GearsMode = "simulation"


def split_as_gears(
    gears: Gears,
    perturbations: Sequence[str],
    first_seen: Sequence[str],
    labels: Iterable[LabelRow],
    *,
    where: str,
) -> GivenSplit:
    """The split of ``perturbations``; ``first_seen`` are the same in the order of their first cells.

    Raises ``InputError``, which ``where`` begins, for perturbations of more than two genes and for a mode
    that leaves some out of every split.
    """
    spelled = _conditions(first_seen, labels)
    try:
        found = gears_split(list(spelled), seed=gears.seed, mode=gears.mode)
    except ValueError as error:
        raise InputError(f"{where}: {error}; choose another split") from None
    missing = sorted({name for condition, name in spelled.items() if condition not in found.split})
    if missing:
        raise InputError(
            f"{where}: GEARS' {gears.mode} leaves {len(missing)} perturbations out of every split "
            f"({listing(missing)}), and a store leaves none out; choose another mode, or filter these cells"
        )
    split = {spelled[condition]: code for condition, code in found.split.items()} | {CONTROL: TRAIN}
    subgroups = {spelled[condition]: group for condition, group in found.subgroup.items()}
    return GivenSplit(np.array([split[name] for name in perturbations], np.uint8), (), subgroups)


def _conditions(first_seen: Sequence[str], labels: Iterable[LabelRow]) -> dict[str, str]:
    """GEARS' condition -> perturbation, in the order of the first cells.

    A pair that is written in both orders counts once, as the alphabet has it.
    """
    texts = defaultdict[str, list[str]](list)
    for row in labels:
        texts[row.perturbation].append(row.label.strip())
    spelled: dict[str, str] = {}
    for name in first_seen:
        if name == CONTROL:
            spelled[CTRL] = name
            continue
        conditions = sorted(_condition(name, text) for text in texts[name])
        kept = conditions if JOIN not in name else conditions[:1]
        spelled |= dict.fromkeys(kept, name)
    return spelled


def _condition(name: str, label: str) -> str:
    genes = name.split(JOIN)
    first, last = genes[0], genes[-1]
    if len(genes) == 1:
        return f"{name}{JOIN}{CTRL}" if label.startswith(name) else f"{CTRL}{JOIN}{name}"
    if len(genes) == 2 and label.startswith(last) and label.endswith(first):
        return f"{last}{JOIN}{first}"
    return name
