"""The screen that the files hold together: which cells, genes, perturbations, contexts, controls and split.

Enters: opened sources and the configuration. Leaves: one ``Screen`` of labels, before any expression is read.
Invariants: cells keep the order of files and rows; code 0 is the control, other perturbations follow by name,
contexts by (cell line, batch); every cell line has controls.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.columns import Coded, coded, flags, merged, safe_coded
from txpert_dist.ingest.config import IngestConfig, Keys
from txpert_dist.ingest.labels import (
    canonical_perturbation,
    listing,
    looks_like_several_guides,
    require_control,
)
from txpert_dist.ingest.source import Source, find_column
from txpert_dist.store.controls import Context, ControlIndex, build_control_index
from txpert_dist.store.splits import CONTROL, SPLITS, split_perturbations
from txpert_dist.store.write import LabelRow

ONE_BATCH = "all"
"""Name of the batch of a cell line whose batches are not known."""

_UNLABELLED = "fill it in, or leave those cells out with --unlabelled drop"


class Perturbations(NamedTuple):
    """Which perturbation each kept cell got."""

    rows: list[NDArray[np.int64]]
    """Per file: rows kept, ascending."""
    names: tuple[str, ...]
    code: NDArray[np.int32]
    label_rows: tuple[LabelRow, ...]
    dropped: dict[str, int]
    """Perturbations left out for having too few cells -> how many they had."""
    notes: tuple[str, ...]


class Contexts(NamedTuple):
    """Where each kept cell was measured."""

    names: tuple[Context, ...]
    code: NDArray[np.int32]
    notes: tuple[str, ...]


class Screen(NamedTuple):
    """Labels of every cell of the store."""

    rows: list[NDArray[np.int64]]
    perturbations: Perturbations
    contexts: Contexts
    controls: ControlIndex
    split: NDArray[np.uint8]

    @property
    def num_cells(self) -> int:
        """Cells of the store, controls included."""
        return len(self.perturbations.code)

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """(num_cells,) whether a cell is unperturbed."""
        return np.equal(self.perturbations.code, 0)


def read_screen(
    sources: Sequence[Source], rows: list[NDArray[np.int64]], config: IngestConfig, keys: Keys
) -> Screen:
    """Label the cells in ``rows`` of every file.

    Raises ``InputError`` for missing columns and labels, no control, nothing but controls, or too few
    perturbations to split.
    """
    where = ", ".join(str(source.path) for source in sources)
    perturbations = _perturbations(sources, rows, config, keys)
    split = split_perturbations(perturbations.names, seed=config.split_seed)
    _require_splits(split, perturbations, where)
    contexts = _contexts(sources, perturbations.rows, config, keys)
    try:
        controls = build_control_index(contexts.code, perturbations.code == 0, contexts.names)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Screen(perturbations.rows, perturbations, contexts, controls, split)


def _require_splits(split: NDArray[np.uint8], perturbations: Perturbations, where: str) -> None:
    perturbed = len(perturbations.names) - 1
    if not perturbed:
        raise InputError(
            f"{where}: every cell is a control, there is no perturbation to learn; check the column"
        )
    counts = np.bincount(split[1:], minlength=len(SPLITS))
    if not counts.all():
        raise InputError(
            f"{where}: {perturbed} perturbations ({listing(perturbations.names[1:])}) are too few to split "
            f"into {', '.join(SPLITS)}; at least 4 are needed"
        )


def _perturbations(
    sources: Sequence[Source], rows: list[NDArray[np.int64]], config: IngestConfig, keys: Keys
) -> Perturbations:
    columns, canonical = [], dict[str, str]()
    for source, kept in zip(sources, rows, strict=True):
        column = find_column(source, "obs", keys.perturbation) or ""
        columns.append(coded(source, kept, column, _UNLABELLED))
        marked = find_column(source, "obs", keys.control)
        controls = _marked_controls(source, column, columns[-1], kept, marked)
        meant = _canonical_names(source, column, columns[-1], kept, config, controls)
        _require_agreement(source, marked, meant, controls)
        _require_one_meaning(source, canonical, meant)
        canonical |= meant
    labels = merged(columns)
    where = f"{sources[0].path}: obs column {keys.perturbation.name!r}"
    require_control(labels.texts, canonical.values(), given=config.control_label, where=where)
    times = np.bincount(labels.code, minlength=len(labels.texts)).tolist()
    table = tuple(LabelRow(text, canonical[text], n) for text, n in zip(labels.texts, times, strict=True))
    num_cells: Counter[str] = Counter()
    for row in table:
        num_cells[row.perturbation] += row.num_cells
    dropped = {n: c for n, c in num_cells.items() if c < config.min_cells and n != CONTROL}
    names = (CONTROL, *sorted(name for name in num_cells if name not in dropped and name != CONTROL))
    number = {name: position for position, name in enumerate(names)}
    code = np.array([number.get(row.perturbation, -1) for row in table], np.int32)[labels.code]
    kept_rows = [
        kept[mask >= 0]
        for kept, mask in zip(rows, np.split(code, np.cumsum([len(r) for r in rows])[:-1]), strict=True)
    ]
    return Perturbations(kept_rows, names, code[code >= 0], table, dropped, _label_notes(table, config))


def _marked_controls(
    source: Source, column: str, found: Coded, rows: NDArray[np.int64], marked: str | None
) -> frozenset[str] | None:
    """The labels whose cells obs ``marked`` says are controls; None without such a column."""
    if marked is None:
        return None
    flag = flags(source, rows, marked)
    true, total = (np.bincount(found.code, weight, len(found.texts)) for weight in (flag, None))
    mixed = np.flatnonzero((true > 0) & (true < total))
    if len(mixed):
        label = found.texts[mixed[0]]
        raise InputError(
            f"{source.path}: obs column {marked!r} says that {int(true[mixed[0]])} of the "
            f"{int(total[mixed[0]])} cells that {column!r} labels {label!r} are controls; correct one of them"
        )
    return frozenset(found.texts[code] for code in np.flatnonzero(true))


def _require_agreement(
    source: Source, marked: str | None, names: dict[str, str], controls: frozenset[str] | None
) -> None:
    if controls is None:
        return
    wrong = [label for label, name in names.items() if name == CONTROL and label not in controls]
    if wrong:
        raise InputError(
            f"{source.path}: obs column {marked!r} says that cells labelled {wrong[0]!r} are no controls; "
            "correct it, or name another column with --control-key"
        )


def _require_one_meaning(source: Source, before: dict[str, str], names: dict[str, str]) -> None:
    for label, name in names.items():
        if before.get(label, name) != name:
            raise InputError(
                f"{source.path}: label {label!r} is {name} here and {before[label]} in another file; "
                "rename one of them"
            )


def _canonical_names(
    source: Source,
    column: str,
    found: Coded,
    rows: NDArray[np.int64],
    config: IngestConfig,
    controls: frozenset[str] | None,
) -> dict[str, str]:
    names = {}
    codes, first = np.unique(found.code, return_index=True)
    for label, position in zip((found.texts[code] for code in codes), first, strict=True):
        if controls is not None and label in controls:
            names[label] = CONTROL
            continue
        try:
            names[label] = canonical_perturbation(
                label, control_label=config.control_label, separator=config.separator
            )
        except ValueError as error:
            raise InputError(
                f"{source.path}: obs column {column!r} labels {source.cell(int(rows[position]))} {label!r}: "
                f"{error}; rename it"
            ) from None
    return names


def _label_notes(table: tuple[LabelRow, ...], config: IngestConfig) -> tuple[str, ...]:
    odd = [row.label for row in table if looks_like_several_guides(row.label) and row.perturbation != CONTROL]
    if not odd or config.separator:
        return ()
    return (
        f"{len(odd)} labels hold '_', ',', ';' or '|' and were taken as one gene each ({listing(odd, 3)}); "
        "if they name several genes, give --separator",
    )


def _contexts(
    sources: Sequence[Source], rows: list[NDArray[np.int64]], config: IngestConfig, keys: Keys
) -> Contexts:
    lines, batches, notes = [], [], []
    for source, kept in zip(sources, rows, strict=True):
        line, batch = find_column(source, "obs", keys.cell_line), find_column(source, "obs", keys.batch)
        lines.append(_named(source, kept, line, config.cell_line or source.path.stem))
        batches.append(_named(source, kept, batch, ONE_BATCH))
        if line is None and config.cell_line is None:
            notes.append(
                f"{source.path.name}: no cell-line column, all its cells are of {source.path.stem!r}"
            )
        if batch is None:
            notes.append(f"{source.path.name}: no batch column, each of its cell lines is one batch")
    all_lines, all_batches = merged(lines), merged(batches)
    width = len(all_batches.texts)
    pairs, code = np.unique(all_lines.code * width + all_batches.code, return_inverse=True)
    names = [divmod(int(pair), width) for pair in pairs]
    return Contexts(
        tuple(Context(all_lines.texts[i], all_batches.texts[j]) for i, j in names),
        code.astype(np.int32),
        tuple(notes),
    )


def _named(source: Source, rows: NDArray[np.int64], column: str | None, otherwise: str) -> Coded:
    if column is None:
        return Coded(np.zeros(len(rows), np.int64), [otherwise])
    return safe_coded(source, rows, column)
