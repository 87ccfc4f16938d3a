"""A split that somebody else decided: which perturbation is for training, validation, test.

Enters: a table ``perturbation,split``, perhaps with ``subgroup``, and the names of a store's perturbations.
Leaves: a split code of each, and its sub-group. Invariants: every perturbation of the store is in the table
exactly once, under any of its spellings; what the table has besides is counted.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.labels import canonical_perturbation, listing
from txpert_dist.store.splits import CONTROL, SPLITS, TRAIN

_COLUMNS = ("perturbation", "split")
_SUBGROUP = "subgroup"
_SPELLINGS = {**{name: code for code, name in enumerate(SPLITS)}, "val": 1, "valid": 1}


class GivenSplit(NamedTuple):
    """What a table says of a store's perturbations."""

    split: NDArray[np.uint8]
    """(perturbations,) split codes; the control is train."""
    unknown: tuple[str, ...]
    """Perturbations of the table that the store does not have."""
    subgroups: dict[str, str]
    """Names of groups that are evaluated apart (combo_seen1 ...), by perturbation, where there are any."""


class _Row(NamedTuple):
    split: int
    subgroup: str


def read_split_table(path: Path, perturbations: tuple[str, ...]) -> GivenSplit:
    """The split of ``perturbations`` (canonical names) that the csv or tsv file ``path`` gives.

    Raises ``InputError`` naming the line of a label or split that cannot be used, and the first perturbation
    that the table lacks.
    """
    found = _read(path)
    known = set(perturbations)
    missing = [name for name in perturbations if name not in found and name != CONTROL]
    if missing:
        raise InputError(
            f"{path}: {len(missing)} of the store's {len(perturbations) - 1} perturbations are not in it "
            f"({listing(missing)}); give every perturbation a split"
        )
    found.setdefault(CONTROL, _Row(TRAIN, ""))
    unknown = tuple(sorted(set(found) - known))
    subgroups = {name: row.subgroup for name, row in found.items() if row.subgroup and name in known}
    split = np.array([found[name].split for name in perturbations], np.uint8)
    return GivenSplit(split, unknown, subgroups)


def _read(path: Path) -> dict[str, _Row]:
    separator = "\t" if path.suffix.lower() in (".tsv", ".txt") else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            absent = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if absent:
                raise InputError(
                    f"{path}: its first line has no column {absent[0]!r}; give a csv or tsv file with the "
                    "columns perturbation and split"
                )
            found: dict[str, _Row] = {}
            for row in reader:
                texts = ((row.get(name) or "").strip() for name in (*_COLUMNS, _SUBGROUP))
                _add(found, path, reader.line_num, *texts)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a csv or tsv table of splits") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a csv or tsv table of splits") from None
    return found


def _add(found: dict[str, _Row], path: Path, line: int, label: str, split: str, subgroup: str) -> None:
    where = f"{path}: line {line}"
    try:
        name = canonical_perturbation(label, control_label=None, separator=None)
    except ValueError as error:
        raise InputError(f"{where}: label {label!r}: {error}; correct it") from None
    code = _SPELLINGS.get(split.lower())
    if code is None:
        raise InputError(f"{where}: {split!r} is no split; write one of {', '.join(SPLITS)}")
    if name == CONTROL and code != TRAIN:
        raise InputError(f"{where}: controls are for training whatever the split; leave the line out")
    if name in found and found[name] != (code, subgroup):
        what = "another split" if found[name].split != code else "another subgroup"
        raise InputError(f"{where}: {label!r} ({name}) is in {what} further up; keep one line of it")
    found[name] = _Row(code, subgroup)
