"""What `txpert graph build` hands to the graph store, which does not know cell stores: their reader."""

from graph_store.source_config import PerturbSeqSource
from graph_store.sources.screen import ScreenProfiles


def read_screen(spec: PerturbSeqSource) -> ScreenProfiles:
    """Mean responses of the training split, as ``spec`` asks; raises what ``training_pseudobulk`` raises."""
    from txpert_dist.loader.pseudobulk import training_pseudobulk

    found = training_pseudobulk(
        spec.store,
        held_out_cell_lines=spec.held_out_cell_lines,
        minimum_cells=spec.minimum_cells,
        genes=spec.genes,
    )
    return ScreenProfiles(found.genes, found.delta_PG, found.origin, found.details)
