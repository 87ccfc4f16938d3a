"""The last step of an append: from a store, and shards and labels of more cells, to the longer store.

Enters: the store, what was found in the files and what the tasks made. Leaves: the folder of the store of all
cells and its summary. Invariants: every label follows its cell to the row that it got; codes are those of the
sorted names of all cells; what either side lacks is noted or counted.
"""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable

import numpy as np

from txpert_dist.errors import InputError
from txpert_dist.ingest.build import obs_of_cells, summarise
from txpert_dist.ingest.claim import Claim
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.embeddings import embedding_blocks, reordered, stored_blocks
from txpert_dist.ingest.existing import Inputs
from txpert_dist.ingest.follow import whole_shards
from txpert_dist.ingest.frames import longer_table, var_table
from txpert_dist.ingest.labels import listing
from txpert_dist.ingest.order import inverse
from txpert_dist.ingest.screen import Screen, with_stored
from txpert_dist.ingest.source import open_source
from txpert_dist.ingest.stored import Stored
from txpert_dist.ingest.summary import IngestSummary
from txpert_dist.ingest.work import Expression, Found, Work
from txpert_dist.store import layout, manifest
from txpert_dist.store.cells import CellStore
from txpert_dist.store.controls import build_control_index
from txpert_dist.store.splits import SPLITS
from txpert_dist.store.write import LabelRow, Labels, StoreWriter, embedding_shards

_ALGORITHM = 1
"""Raised whenever the same store, files and settings give another store."""


def build_longer(
    work: Work, claim: Claim, before: Stored, found: Found, made: Expression, inputs: Inputs
) -> IngestSummary:
    """Write the store of all cells, old ones first, into the claim's folder."""
    cells, everything = before.cells, with_stored(found.screen, before)
    row = np.concatenate([np.arange(cells.num_cells), cells.num_cells + found.source_row])
    perturbation, context = everything.perturbations.code[row], everything.contexts.code[row]
    new_obs, replaced = obs_of_cells(found, made.statistics)
    tables = open_source(cells.path, "X")
    obs, notes = longer_table(tables.obs, new_obs)
    summary = _summary(work, before, found, made, inputs, replaced, notes)
    writer = StoreWriter(
        claim.built,
        num_cells=everything.num_cells,
        num_genes=len(cells.genes),
        num_entries=int(made.indptr[-1]),
        dtype=made.dtype,
        gene_dtype=made.gene_dtype,
        shards=work.sizes.shards,
    )
    writer.adopt(np.diff(made.indptr), made.shards)
    _write_embeddings(writer, work, cells, found)
    new_sizes = made.statistics.library_size[found.source_row].astype(np.float32)
    labels = Labels(
        input_scale=cells.input_scale,
        perturbations=everything.perturbations.names,
        contexts=everything.contexts.names,
        perturbation=perturbation,
        context=context,
        library_size=np.concatenate([cells.library_size, new_sizes]),
        split=everything.split,
        selected=made.selected,
        controls=build_control_index(context, perturbation == 0, everything.contexts.names),
        control_mean_CG=made.statistics.control_mean_CG,
        label_rows=summary.labels,
        source_row=np.concatenate([before.source_row, cells.num_cells + found.source_row]),
        row_order=summary.row_order,
        knockdown_rows=made.knockdown,
        summary=summary.to_json(),
    )
    old = manifest.read(claim.target)
    writer.finish(
        obs=obs,
        var=var_table((tables, *found.sources), (cells.genes, *found.gene_names), found.genes),
        labels=labels,
        fingerprint=_fingerprint(old.fingerprint, inputs),
        appended_to=(*old.appended_to, cells.manifest_hash),
    )
    _require_one_form(claim, found)
    return summary


def _fingerprint(before: str, inputs: Inputs) -> str:
    parts = ["append", _ALGORITHM, layout.VERSION, before, inputs.fingerprint]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _write_embeddings(writer: StoreWriter, work: Work, cells: CellStore, found: Found) -> None:
    """Those that the new cells have too; full shards of the old ones stay."""
    for embedding in found.embeddings:
        name, width, size = embedding.name, embedding.width, embedding_shards(embedding.width).shard
        kept, scratch = cells.num_cells // size, work.scratch / f"{name}.rows"
        new = embedding_blocks(embedding, found.screen.rows, work.scratch, work.progress)
        ordered = reordered(new, (found.screen.num_cells, width), inverse(found.source_row), scratch)
        before = cells.embedding_origin(name)
        writer.write_embedding(
            name,
            width,
            itertools.chain(stored_blocks(cells, name, kept * size), ordered),
            origin={**before, "appended": [*before.get("appended", []), embedding.origin["file"]]},
            adopted=whole_shards(cells, f"{layout.OBSM}/{name}", kept, 2),
        )


def _require_one_form(claim: Claim, found: Found) -> None:
    """``InputError`` when files of the old store would be read by metadata that does not describe them."""
    embeddings = (f"{layout.OBSM}/{embedding.name}" for embedding in found.embeddings)
    for name in (layout.VALUE, layout.GENE, *embeddings):
        old, new = (
            json.loads((folder / name / "zarr.json").read_text(encoding="utf-8"))
            for folder in (claim.target, claim.built)
        )
        if {**old, "shape": 0, "attributes": 0} != {**new, "shape": 0, "attributes": 0}:
            raise InputError(
                f"{claim.store.path}: {name} was written in another form, to which this software cannot "
                "append; write the store anew with txpert store split"
            )


def _summary(
    work: Work,
    before: Stored,
    found: Found,
    made: Expression,
    inputs: Inputs,
    replaced: list[str],
    notes: Iterable[str],
) -> IngestSummary:
    """Of the whole store."""
    old, screen = before.summary, with_stored(found.screen, before)
    whole = summarise(work, found._replace(screen=screen), made, inputs, replaced)
    all_notes = (*old.notes, *whole.notes, *notes, *_notes(before, found, work.config))
    return whole.model_copy(
        update={
            "sources": (*old.sources, *whole.sources),
            "filters": (*old.filters, *whole.filters),
            "dropped_perturbations": old.dropped_perturbations + whole.dropped_perturbations,
            "dropped_cells": old.dropped_cells + whole.dropped_cells,
            "labels": _all_labels(before.label_rows, found.screen.perturbations.label_rows),
            "notes": tuple(dict.fromkeys(all_notes)),
        }
    )


def new_perturbations(before: Stored, screen: Screen) -> dict[str, int]:
    """How many perturbations the store had no cells of, by the split that they got."""
    known = set(before.cells.perturbations)
    names = zip(screen.perturbations.names, screen.split, strict=True)
    times = Counter(SPLITS[code] for name, code in names if name not in known)
    return {name: times[name] for name in SPLITS}


def _all_labels(old: Iterable[LabelRow], new: Iterable[LabelRow]) -> tuple[LabelRow, ...]:
    num_cells: Counter[tuple[str, str]] = Counter()
    for row in (*old, *new):
        num_cells[row.label, row.perturbation] += row.num_cells
    return tuple(LabelRow(*names, times) for names, times in sorted(num_cells.items()))


def _notes(before: Stored, found: Found, config: IngestConfig) -> list[str]:
    cells, screen = before.cells, found.screen
    files = ", ".join(source.path.name for source in found.sources)
    batches = len(np.unique(screen.contexts.code))
    notes = [f"{files}: {screen.num_cells:,} cells of {batches:,} new batches were appended"]
    split = new_perturbations(before, screen)
    if sum(split.values()):
        shares = ", ".join(f"{number:,} {name}" for name, number in split.items())
        notes[0] += f"; {sum(split.values()):,} new perturbations split by seed {config.split_seed}: {shares}"
    left_out = {row.perturbation for row in before.label_rows} - set(cells.perturbations)
    if back := sorted(left_out & set(screen.perturbations.names)):
        notes.append(f"{len(back):,} perturbations left out before have new cells only: {listing(back)}")
    if len(cells.selected) < len(cells.genes):
        notes.append(
            f"the {len(cells.selected):,} genes for training were selected before {files} came; txpert store "
            "split selects anew"
        )
    if lost := sorted(set(cells.embeddings) - {embedding.name for embedding in found.embeddings}):
        notes.append(f"embeddings {listing(lost)} were left out when {files} came")
    return notes
