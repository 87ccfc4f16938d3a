"""The process in which a graph service builds one snapshot, with what reads cell stores (not a verb)."""

from graph_store.graph import GraphError
from graph_store.service.build_worker import main
from graph_store.source_config import PerturbSeqSource
from graph_store.sources.screen import ScreenProfiles
from txpert_dist.cli import perturb_seq
from txpert_dist.errors import TxPertError


def _read_screen(spec: PerturbSeqSource) -> ScreenProfiles:
    try:
        return perturb_seq.read_screen(spec)
    except TxPertError as error:
        raise GraphError(str(error)) from None


if __name__ == "__main__":
    main(_read_screen)
