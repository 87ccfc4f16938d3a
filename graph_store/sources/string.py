"""STRING's link files (protein.links, .detailed, .full), or tables made from them that name genes already.

Enters: the links, perhaps STRING's table of protein names. Leaves: a ``SourceGraph`` weighted by the combined
score, up to 1000. Invariants: a protein that has no single name there stays under its id; memory is bounded
by the proteins and by the rows at or above the minimum.

When channels are left out, the score of the others is computed by STRING's rule (``string_score``), of which
there are two forms: the one is used that gives the file's own scores from all of its channels more often, and
the rows where even that one does not are counted. Two proteins of one gene make a self loop.
"""

from collections import Counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from graph_store.genes import Aliases, resolve
from graph_store.graph import GraphError
from graph_store.source_config import StringSource
from graph_store.sources.columns import Batch, Table, as_names, as_weights, batches, need, open_table
from graph_store.sources.source import Counts, SourceGraph, sorted_genes
from graph_store.sources.string_names import ProteinNames, read_protein_names
from graph_store.sources.string_score import CHANNELS, HOMOLOGY, MAX_SCORE, TRANSFERRED, combine
from graph_store.sparsify import Edges, merge_duplicates

UNNAMED = "proteins without a name in STRING's table"
SEVERAL_NAMES = "proteins with several names in STRING's table"
OTHER_SCORE = "rows whose score STRING's rule does not give"

_ENDS = (("protein1", "protein2"), ("gene1", "gene2"))
_SCORE = "combined_score"
_EXPERIMENTS = ("experiments", "experimental")
"""How the full and the detailed files spell the same channel."""
_TOLERANCE = 1
"""STRING computes with unrounded channels; from rounded ones the last digit may come out differently."""


class _Layout(NamedTuple):
    """Columns of the link file that are read."""

    ends: tuple[str, str]
    columns: dict[str, str]
    """Channel (or homology) -> its column; empty when the file's own score is used."""
    kept: frozenset[str]
    """Channels that are not left out."""

    @property
    def forms(self) -> tuple[bool, ...]:
        """Whether homology is corrected for, in each form of the rule that the file allows."""
        return (True, False) if HOMOLOGY in self.columns else (False,)


class _Seen(NamedTuple):
    """Proteins of the rows read so far; both grow."""

    gene_of: dict[str, int]
    """Protein -> number of its gene."""
    genes: dict[str, int]
    """Approved symbol (or the name as it was) -> number."""


class _Rows(NamedTuple):
    """What is left of one batch."""

    num_rows: int
    num_loops: int
    edges_2E: NDArray[np.int32]
    """(2, E) gene numbers of the rows that reach the minimum in some form of the rule."""
    score_FE: NDArray[np.float32]
    """(F, E) their score by each form."""
    other_F: NDArray[np.int64]
    """(F,) rows of the batch whose own score each form does not give."""


def read_string(spec: StringSource, aliases: Aliases | None) -> SourceGraph:
    """Read the links; ``GraphError`` names file, row or column of what cannot be used."""
    table = open_table(spec.path)
    layout = _layout(table, spec)
    names = read_protein_names(spec)
    seen = _Seen({}, {})
    columns = [*layout.ends, _SCORE, *layout.columns.values()]
    parts = [_rows(batch, layout, spec, names, aliases, seen) for batch in batches(table, columns)]
    if not any(part.num_rows for part in parts):
        raise GraphError(f"{spec.path}: holds no link; it has a header and no rows")
    other_F = np.sum([part.other_F for part in parts], axis=0)
    form = int(np.argmin(other_F))
    genes, number = sorted_genes(tuple(seen.genes))
    rows = Edges(
        number[np.concatenate([part.edges_2E for part in parts], axis=1)],
        np.concatenate([part.score_FE[form] for part in parts]),
    )
    strong = rows.take(_is_strong(rows.weight_E, spec))
    pairs = merge_duplicates(strong, directed=False)
    num_rows = sum(part.num_rows for part in parts)
    num_loops = sum(part.num_loops for part in parts)
    counts = Counts(
        rows=num_rows,
        self_loops=num_loops,
        duplicates=strong.num_edges - pairs.num_edges,
        below_minimum=num_rows - num_loops - strong.num_edges,
    )
    raw = dict.fromkeys(names.by_protein.get(protein, protein) for protein in seen.gene_of)
    details = Counter({OTHER_SCORE: int(other_F[form])}) + _naming(names, seen)
    return SourceGraph(genes, pairs, counts, resolve(tuple(raw), aliases), dict(details))


def _layout(table: Table, spec: StringSource) -> _Layout:
    """The columns to read; ``GraphError`` when one is not there."""
    found = [ends for ends in _ENDS if set(ends) <= set(table.columns)]
    if not found:
        raise GraphError(
            f"{table.path}: has no columns protein1 and protein2 (it has {', '.join(table.columns)[:200]}); "
            "give STRING's protein.links file"
        )
    ends = (need(table, found[0][0]), need(table, found[0][1]))
    need(table, _SCORE)
    if not spec.without:
        return _Layout(ends, {}, frozenset())
    experiments = next((name for name in _EXPERIMENTS if name in table.columns), _EXPERIMENTS[0])
    spelt = {"experiments": experiments}
    channels = [name for channel in CHANNELS for name in (channel, channel + TRANSFERRED)]
    columns = {
        name: need(table, spelt.get(name, name))
        for name in (*channels, HOMOLOGY)
        if spelt.get(name, name) in table.columns
    }
    for name in spec.without:
        if name not in columns:
            raise GraphError(
                f"{table.path}: has no channel {name!r} to leave out (of {', '.join(columns) or 'none'}); "
                "give protein.links.detailed or, for transferred scores, protein.links.full"
            )
    kept = frozenset(
        name
        for name in columns
        if name != HOMOLOGY and not {name, name.removesuffix(TRANSFERRED)} & set(spec.without)
    )
    if not kept:
        raise GraphError(f"{table.path}: every channel is left out; leave one in")
    return _Layout(ends, columns, kept)


def _rows(
    batch: Batch,
    layout: _Layout,
    spec: StringSource,
    names: ProteinNames,
    aliases: Aliases | None,
    seen: _Seen,
) -> _Rows:
    """One batch over gene numbers; ``seen`` grows by the proteins not met before."""
    ends = []
    for array, column in zip(batch.columns[:2], layout.ends, strict=True):
        codes, proteins = as_names(array, path=spec.path, column=column, first_row=batch.first_row)
        ends.append(_gene_numbers(proteins, names, aliases, seen)[codes])
    edges_2E = np.stack(ends)
    score_E = {
        name: _score(batch, position, column, spec)
        for position, (name, column) in enumerate([(_SCORE, _SCORE), *layout.columns.items()], start=2)
    }
    own_E = score_E.pop(_SCORE)
    score_FE, other_F = own_E[None], np.zeros(1, np.int64)
    if layout.columns:
        left_E = {name: score for name, score in score_E.items() if name in layout.kept or name == HOMOLOGY}
        score_FE = np.stack([combine(left_E, homology=form) for form in layout.forms])
        again_FE = np.stack([combine(score_E, homology=form) for form in layout.forms])
        other_F = (np.abs(again_FE - own_E) > _TOLERANCE).sum(axis=1)
    loop_E = edges_2E[0] == edges_2E[1]
    strong_E = ~loop_E & _is_strong(score_FE.max(axis=0), spec)
    return _Rows(
        len(loop_E), int(loop_E.sum()), edges_2E[:, strong_E], score_FE[:, strong_E], other_F.astype(np.int64)
    )


def _is_strong(score_E: NDArray[np.float32], spec: StringSource) -> NDArray[np.bool_]:
    """Where the score reaches the minimum; a pair that no channel supports (0) never does."""
    strong_E: NDArray[np.bool_] = score_E >= max(spec.minimum_score, 1)
    return strong_E


def _gene_numbers(
    proteins: list[str], names: ProteinNames, aliases: Aliases | None, seen: _Seen
) -> NDArray[np.int32]:
    new = [protein for protein in proteins if protein not in seen.gene_of]
    genes = resolve([names.by_protein.get(protein, protein) for protein in new], aliases).names if new else ()
    for protein, gene in zip(new, genes, strict=True):
        seen.gene_of[protein] = seen.genes.setdefault(gene, len(seen.genes))
    return np.array([seen.gene_of[protein] for protein in proteins], np.int32)


def _score(batch: Batch, position: int, column: str, spec: StringSource) -> NDArray[np.float32]:
    score_E = as_weights(batch.columns[position], path=spec.path, column=column, first_row=batch.first_row)
    bad = (score_E < 0) | (score_E > MAX_SCORE)
    if bad.any():
        place = int(np.argmax(bad))
        raise GraphError(
            f"{spec.path} row {batch.first_row + place}: {column} {score_E[place]:g} is no score of STRING "
            "(0 to 1000); give STRING's own file"
        )
    return score_E


def _naming(names: ProteinNames, seen: _Seen) -> Counter[str]:
    """How many of the proteins in the links keep their id although there is a table of names."""
    if not names.by_protein and not names.several:
        return Counter()
    several = sum(protein in names.several for protein in seen.gene_of)
    named = sum(protein in names.by_protein for protein in seen.gene_of)
    return Counter({SEVERAL_NAMES: several, UNNAMED: len(seen.gene_of) - named - several})
