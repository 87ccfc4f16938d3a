"""Several models on the same split, side by side, from their reports alone.

Enters: folders of reports. Leaves: a ``Compared``. Invariants: reports of another store, split, held-out cell
lines, genes or seed are refused; every difference is paired, over the units where both are defined, and all
intervals are over the same resampled perturbations; a row that the reports share is there once, and one that
they do not is there for each of them.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from txpert_dist.errors import InputError
from txpert_dist.evaluate.blocks import Scored
from txpert_dist.evaluate.markdown import VARIANTS
from txpert_dist.evaluate.report import JSON_FILE, SCHEMA, TABLE_FILE, Comparison, Kind, Summary
from txpert_dist.evaluate.reproducibility import PER_BATCH, POOLED
from txpert_dist.evaluate.scores import METRICS
from txpert_dist.evaluate.summaries import GROUP, paired, summaries
from txpert_dist.metrics.bootstrap import Bootstrap

SAME = {
    "store_hash": "another store",
    "split": "another split",
    "split_hash": "another division into splits",
    "held_out_cell_lines": "other held-out cell lines",
    "genes_hash": "other genes",
    "seed": "another seed",
}
"""Of the provenance, what must be the same, and what it is called when it is not."""
_UNIT = ["perturbation", "cell_line"]
_TOLERANCE = 1e-9


class LoadedReport(NamedTuple):
    """A report read back."""

    label: str
    """Name of its model among the others."""
    folder: Path
    content: Mapping[str, Any]
    table: pd.DataFrame

    def rows(self) -> dict[str, Kind]:
        """Kind of each row whose values are of (perturbation, cell line)."""
        found = self.table[["predictor", "kind"]].drop_duplicates()
        return {name: kind for name, kind in found.itertuples(index=False) if name != PER_BATCH}


class Compared(NamedTuple):
    """Several models on one split."""

    reports: tuple[LoadedReport, ...]
    rows: tuple[Summary, ...]
    """Models first, then baselines, then reproducibility."""
    differences: tuple[Comparison, ...]
    """Every pair of models, then every model against the general baseline and the split halves."""
    table: pd.DataFrame
    """As a report's, the rows named as in ``rows``."""
    bootstrap: Bootstrap

    @property
    def models(self) -> list[str]:
        """Names of the models."""
        return [row.name for row in self.rows if row.kind == "model"]


def compare(folders: Sequence[Path]) -> Compared:
    """Read the reports and set their models side by side.

    Raises ``InputError`` naming the folder that is no report, or is one on something else than the first.
    """
    if len(folders) < 2:
        raise InputError("compare: one report has nothing to be compared with; give two or more")
    reports = _labelled([_read(folder) for folder in folders])
    for other in reports[1:]:
        _check_same(reports[0], other)
    table = _joined(reports)
    kinds: dict[str, Kind] = dict(table[["predictor", "kind"]].drop_duplicates().itertuples(index=False))
    scored = _scored(table, kinds)
    bootstrap = Bootstrap(seed=reports[0].content["provenance"]["seed"])
    models = [name for name, kind in kinds.items() if kind == "model"]
    pairs = list(combinations(models, 2))
    pairs += [(name, other) for other in ("general", POOLED) if other in kinds for name in models]
    return Compared(
        tuple(reports),
        summaries(scored, kinds, GROUP, bootstrap),
        paired(scored, pairs, bootstrap),
        table,
        bootstrap,
    )


def _read(folder: Path) -> LoadedReport:
    try:
        content = json.loads((folder / JSON_FILE).read_text("utf-8"))
        schema = content["schema"]
        table = pd.read_parquet(folder / TABLE_FILE)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: is no report of txpert evaluate ({error}); give its folder") from None
    if schema != SCHEMA:
        raise InputError(
            f"{folder}: is a report of another version (schema {schema}, not {SCHEMA}); evaluate again"
        )
    return LoadedReport(folder.name, folder, content, table.assign(kind=table["kind"].astype(str)))


def _labelled(reports: Sequence[LoadedReport]) -> list[LoadedReport]:
    """Each by the name of its run (its folder's, unless that is just "report"), by its path if need be."""
    names = [_name(report.folder.resolve()) for report in reports]
    taken = {name for name in names if names.count(name) > 1} | set(VARIANTS)
    labels = [
        str(report.folder) if name in taken else name for report, name in zip(reports, names, strict=True)
    ]
    repeated = next((label for label in labels if labels.count(label) > 1), None)
    if repeated is not None:
        raise InputError(f"{repeated}: given twice; name each report once")
    return [report._replace(label=label) for report, label in zip(reports, labels, strict=True)]


def _name(folder: Path) -> str:
    return folder.parent.name if folder.name == "report" and folder.parent.name else folder.name


def _check_same(first: LoadedReport, other: LoadedReport) -> None:
    ours, theirs = first.content["provenance"], other.content["provenance"]
    for key, what in SAME.items():
        if ours[key] != theirs[key]:
            raise InputError(
                f"{other.folder}: is a report on {what} than {first.folder} ({key} {_shown(theirs[key])}, "
                f"not {_shown(ours[key])}); evaluate both models on the same"
            )
    if not _units(first).equals(_units(other)):
        raise InputError(
            f"{other.folder}: its {TABLE_FILE} has other perturbations than that of {first.folder}; evaluate "
            "both again"
        )


def _shown(value: Any) -> str:
    return str(value)[:12] if isinstance(value, str) else str(value)


def _units(report: LoadedReport) -> pd.Index:
    return pd.MultiIndex.from_frame(report.table[_UNIT].drop_duplicates()).sort_values()


def _joined(reports: Sequence[LoadedReport]) -> pd.DataFrame:
    """One table: models, then what the reports share."""
    pieces: dict[Kind, list[pd.DataFrame]] = {"model": [], "baseline": [], "reproducibility": []}
    seen: dict[str, list[tuple[LoadedReport, Kind, pd.DataFrame]]] = {}
    for report in reports:
        models = [name for name, kind in report.rows().items() if kind == "model"]
        for name, kind in report.rows().items():
            part = report.table[report.table["predictor"] == name].sort_values(_UNIT, ignore_index=True)
            if kind == "model":
                label = report.label if len(models) == 1 else f"{report.label}: {name}"
                pieces[kind].append(part.assign(predictor=label))
            else:
                seen.setdefault(name, []).append((report, kind, part))
    for name, parts in seen.items():
        shared = all(_equal(part, parts[0][2]) for _, _, part in parts[1:])
        for report, kind, part in parts[:1] if shared else parts:
            pieces[kind].append(part.assign(predictor=name if shared else f"{name} ({report.label})"))
    if not pieces["model"]:
        raise InputError(f"{reports[0].folder}: none of the reports has a model; evaluate one")
    return pd.concat([part for some in pieces.values() for part in some], ignore_index=True)


def _equal(part: pd.DataFrame, other: pd.DataFrame) -> bool:
    values, others = (some[list(METRICS)].to_numpy(float) for some in (part, other))
    return bool(np.allclose(values, others, rtol=0, atol=_TOLERANCE, equal_nan=True))


def _scored(table: pd.DataFrame, kinds: Mapping[str, Kind]) -> Scored:
    by_row = {name: table[table["predictor"] == name] for name in kinds}
    first = by_row[next(iter(kinds))]
    return Scored(
        pd.factorize(first["perturbation"])[0].astype(np.int32),
        pd.factorize(first["cell_line"])[0].astype(np.int32),
        first["num_cells"].to_numpy(),
        {name: {metric: part[metric].to_numpy(float) for metric in METRICS} for name, part in by_row.items()},
        first["observed_size"].to_numpy(),
        {},
    )
