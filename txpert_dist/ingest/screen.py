"""The screen that the files hold together: which cells, genes, perturbations, contexts, controls and split.

Enters: opened sources and the configuration; the store that their cells are to follow, if any. Leaves: one
``Screen`` of labels, before any expression is read. Invariants: cells keep the order of files and rows; code
0 is the control, other perturbations follow by name, contexts by (cell line, batch); every cell line has
controls.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from txpert_dist.errors import InputError
from txpert_dist.ingest.columns import Coded, coded, flags, merged, safe_coded
from txpert_dist.ingest.config import IngestConfig, Keys, Reading
from txpert_dist.ingest.gears import Gears, split_as_gears
from txpert_dist.ingest.labels import (
    canonical_perturbation,
    listing,
    looks_like_several_guides,
    require_control,
)
from txpert_dist.ingest.source import Source, find_column
from txpert_dist.ingest.split_table import GivenSplit
from txpert_dist.ingest.stored import Stored
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
    """Labels of every cell; where cells are to follow a store's, of these, in the codes of all."""

    rows: list[NDArray[np.int64]]
    perturbations: Perturbations
    contexts: Contexts
    controls: ControlIndex
    """Of all cells, the store's first."""
    split: NDArray[np.uint8]
    subgroups: dict[str, str]
    """Of the split, by perturbation, where it has any."""

    @property
    def num_cells(self) -> int:
        """Cells of the store, controls included."""
        return len(self.perturbations.code)

    @property
    def is_control(self) -> NDArray[np.bool_]:
        """(num_cells,) whether a cell is unperturbed."""
        return np.equal(self.perturbations.code, 0)


class Known(NamedTuple):
    """What a store says of labels, in which files whose cells are to follow have to agree."""

    meaning: Mapping[str, str]
    """Label -> canonical perturbation."""
    perturbations: tuple[str, ...]
    """Those that it has cells of."""


def read_screen(
    sources: Sequence[Source], rows: list[NDArray[np.int64]], config: IngestConfig, keys: Keys
) -> Screen:
    """Label the cells in ``rows`` of every file.

    Raises ``InputError`` for missing columns and labels, no control, nothing but controls, or too few
    perturbations to split.
    """
    where = ", ".join(str(source.path) for source in sources)
    perturbations = _perturbations(sources, rows, config, keys, Known({}, ()))
    given = _split(perturbations, config, where)
    _require_splits(given.split, perturbations, config, where)
    contexts = _contexts(sources, perturbations.rows, config, keys)
    try:
        controls = build_control_index(contexts.code, perturbations.code == 0, contexts.names)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return Screen(perturbations.rows, perturbations, contexts, controls, given.split, given.subgroups)


def read_following(
    sources: Sequence[Source],
    rows: list[NDArray[np.int64]],
    config: Reading,
    keys: Keys,
    before: Stored,
) -> Screen:
    """Label the cells in ``rows`` of every file, which are to follow those of the store ``before``.

    Perturbations of the store keep their split, and are kept however few cells follow; the others are split
    among themselves. Raises ``InputError`` for missing columns and labels, labels that mean something else in
    the store, a context that it has, and a cell line without any control.
    """
    cells, where = before.cells, ", ".join(str(source.path) for source in sources)
    known = Known({row.label: row.perturbation for row in before.label_rows}, cells.perturbations)
    perturbations = _perturbations(sources, rows, config, keys, known)
    if not len(perturbations.code):
        raise InputError(
            f"{where}: no cell is left to append; check --where, --min-cells, --unlabelled and --empty-cells"
        )
    split = dict(zip(cells.perturbations, cells.split, strict=True))
    added = [name for name in perturbations.names if name not in split]
    split |= dict(zip(added, split_perturbations(added, seed=config.split_seed), strict=True))
    own = _contexts(sources, perturbations.rows, config, keys)
    _require_new(own.names, before, where)
    names = tuple(sorted({*cells.contexts, *own.names}))
    contexts = own._replace(names=names, code=code_among(names, own.names)[own.code])
    follows = Screen(
        rows=perturbations.rows,
        perturbations=perturbations,
        contexts=contexts,
        controls=cells.controls,
        split=np.array([split[name] for name in perturbations.names], np.uint8),
        subgroups=before.summary.subgroups,
    )
    everything = with_stored(follows, before)
    try:
        controls = build_control_index(everything.contexts.code, everything.is_control, names)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return follows._replace(controls=controls)


def with_stored(screen: Screen, before: Stored) -> Screen:
    """The labels of all cells: those of the store ``before``, then those that ``screen`` has to follow."""
    cells, perturbations, contexts = before.cells, screen.perturbations, screen.contexts
    perturbation = code_among(perturbations.names, cells.perturbations)[cells.perturbation]
    context = code_among(contexts.names, cells.contexts)[cells.context]
    return screen._replace(
        perturbations=perturbations._replace(code=np.concatenate([perturbation, perturbations.code])),
        contexts=contexts._replace(code=np.concatenate([context, contexts.code])),
    )


def code_among(names: Sequence[Hashable], some: Sequence[Hashable]) -> NDArray[np.int32]:
    """(some,) where each of ``some`` stands in ``names``."""
    place = {name: code for code, name in enumerate(names)}
    return np.array([place[name] for name in some], np.int32)


def _require_new(contexts: Sequence[Context], before: Stored, where: str) -> None:
    there = sorted(set(contexts) & set(before.cells.contexts))
    if there:
        more = f" and {len(there) - 1} more" if there[1:] else ""
        raise InputError(
            f"{where}: {before.cells.path} has batch {there[0].batch!r} of cell line {there[0].cell_line!r} "
            f"already{more}; only new batches can be appended: leave these out with --where, or ingest all "
            "files together"
        )


def _split(perturbations: Perturbations, config: IngestConfig, where: str) -> GivenSplit:
    names = perturbations.names
    if config.split == "random":
        return GivenSplit(split_perturbations(names, seed=config.split_seed), (), {})
    codes, first = np.unique(perturbations.code, return_index=True)
    first_seen = [names[code] for code in codes[np.argsort(first)]]
    gears = Gears(config.split_seed, config.gears_mode)
    return split_as_gears(gears, names, first_seen, perturbations.label_rows, where=where)


def _require_splits(
    split: NDArray[np.uint8], perturbations: Perturbations, config: IngestConfig, where: str
) -> None:
    perturbed = len(perturbations.names) - 1
    if not perturbed:
        raise InputError(
            f"{where}: every cell is a control, there is no perturbation to learn; check the column"
        )
    counts = np.bincount(split[1:], minlength=len(SPLITS))
    if not counts.all():
        least = "at least 4 are needed" if config.split == "random" else "GEARS' split leaves one empty"
        raise InputError(
            f"{where}: {perturbed} perturbations ({listing(perturbations.names[1:])}) are too few to split "
            f"into {', '.join(SPLITS)}; {least}"
        )


def _perturbations(
    sources: Sequence[Source],
    rows: list[NDArray[np.int64]],
    config: Reading,
    keys: Keys,
    known: Known,
) -> Perturbations:
    columns, canonical = [], dict[str, str]()
    for source, kept in zip(sources, rows, strict=True):
        column = find_column(source, "obs", keys.perturbation) or ""
        columns.append(coded(source, kept, column, _UNLABELLED))
        marked = find_column(source, "obs", keys.control)
        controls = _marked_controls(source, column, columns[-1], kept, marked)
        meant = _canonical_names(source, column, columns[-1], kept, config, controls)
        _require_agreement(source, marked, meant, controls)
        _require_one_meaning(source, canonical, meant, "another file")
        _require_one_meaning(source, known.meaning, meant, "the store")
        canonical |= meant
    labels = merged(columns)
    where = f"{sources[0].path}: obs column {keys.perturbation.name!r}"
    texts, meanings = (*labels.texts, *known.meaning), (*canonical.values(), *known.meaning.values())
    require_control(texts, meanings, given=config.control_label, where=where)
    times = np.bincount(labels.code, minlength=len(labels.texts)).tolist()
    table = tuple(LabelRow(text, canonical[text], n) for text, n in zip(labels.texts, times, strict=True))
    num_cells: Counter[str] = Counter()
    for row in table:
        num_cells[row.perturbation] += row.num_cells
    stay = {CONTROL, *known.perturbations}
    dropped = {n: c for n, c in num_cells.items() if c < config.min_cells and n not in stay}
    names = (CONTROL, *sorted({*num_cells, *stay} - {*dropped, CONTROL}))
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


def _require_one_meaning(
    source: Source, before: Mapping[str, str], names: dict[str, str], where: str
) -> None:
    for label, name in names.items():
        if before.get(label, name) != name:
            raise InputError(
                f"{source.path}: label {label!r} is {name} here and {before[label]} in {where}; "
                "rename one of them, or give the options that make them one"
            )


def _canonical_names(
    source: Source,
    column: str,
    found: Coded,
    rows: NDArray[np.int64],
    config: Reading,
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


def _label_notes(table: tuple[LabelRow, ...], config: Reading) -> tuple[str, ...]:
    odd = [row.label for row in table if looks_like_several_guides(row.label) and row.perturbation != CONTROL]
    if not odd or config.separator:
        return ()
    return (
        f"{len(odd)} labels hold '_', ',', ';' or '|' and were taken as one gene each ({listing(odd, 3)}); "
        "if they name several genes, give --separator",
    )


def _contexts(
    sources: Sequence[Source], rows: list[NDArray[np.int64]], config: Reading, keys: Keys
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
