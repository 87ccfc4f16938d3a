"""Knowledge tiers: how well known the perturbed genes are, from a table of scores.

Enters: a csv or tsv file with a column ``gene`` and scores. Leaves: a level of each gene, 0 (least known) to
4. Invariants: levels are fifths of equal width of the combined rank (methods, "Pharos knowledge rank"); a
gene that is not in the table has no level and is counted by whoever asks.
"""

import csv
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from txpert_dist.errors import InputError

LEVELS = 5
RANK = "rank"
"""A column of this name is the combined rank itself, from 0 to 1."""


class Tiers(NamedTuple):
    """How well known each gene of a table is."""

    rank: dict[str, float]
    """Combined rank from 0 (least known) to 1."""

    def level(self, perturbation: str) -> int | None:
        """Level of the least known gene of a perturbation (components joined with +); None without one."""
        ranks = [self.rank.get(gene) for gene in perturbation.split("+")]
        known = [rank for rank in ranks if rank is not None]
        return min(int(LEVELS * min(known)), LEVELS - 1) if len(known) == len(ranks) else None


def read_tiers(path: Path) -> Tiers:
    """Read the table: column gene, and ``rank`` (0 to 1, taken as it is) or one or more scores.

    Several scores are ranked one by one and their ranks averaged; higher scores are better known. Raises
    ``InputError`` naming the line that cannot be used.
    """
    genes, names, values_GS = _read(path)
    if names == [RANK]:
        outside = np.flatnonzero((values_GS[:, 0] < 0) | (values_GS[:, 0] > 1))
        if len(outside):
            raise InputError(f"{path}: rank of {genes[outside[0]]} is not between 0 and 1; correct the table")
        return Tiers(dict(zip(genes, values_GS[:, 0].tolist(), strict=True)))
    if len(genes) < LEVELS:
        raise InputError(f"{path}: has {len(genes)} genes; {LEVELS} tiers need at least {LEVELS}")
    combined = ((rankdata(values_GS, axis=0) - 1) / (len(genes) - 1)).mean(1)
    return Tiers(dict(zip(genes, combined.tolist(), strict=True)))


def _read(path: Path) -> tuple[list[str], list[str], NDArray[np.float64]]:
    separator = "\t" if path.suffix.lower() in (".tsv", ".txt") else ","
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, delimiter=separator, strict=True)
            names = _scores(path, list(reader.fieldnames or ()))
            found = dict[str, list[float]]()
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                gene = (row["gene"] or "").strip()
                if not gene or gene in found:
                    problem = f"{gene} is there twice; keep one line of it" if gene else "has no gene"
                    raise InputError(f"{where}: {problem}")
                found[gene] = [_number(where, name, row[name]) for name in names]
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; give a csv or tsv table of genes and scores") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); give a csv or tsv table of genes and scores"
        ) from None
    return list(found), names, np.array(list(found.values()), np.float64).reshape(len(found), len(names))


def _scores(path: Path, columns: list[str]) -> list[str]:
    scores = [RANK] if RANK in columns else [name for name in columns if name != "gene"]
    if "gene" not in columns or not scores:
        raise InputError(
            f"{path}: its first line has no column gene and score; give a csv or tsv file with both"
        )
    return scores


def _number(where: str, name: str, text: str | None) -> float:
    try:
        value = float(text or "")
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise InputError(f"{where}: {name} {text!r} is not a number; correct it, or leave the line out")
    return value
