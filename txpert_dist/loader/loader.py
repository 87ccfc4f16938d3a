"""From a cell store to the minibatches of one rank.

Enters: an open store, the training rows, the perturbation nodes and a resident control table. Leaves: an
iterator of ``Minibatch``. Invariants: state is (epoch, step) and nothing else; a cell is read at most once an
epoch, by the one rank that serves it; at most two windows are in memory, the one being served and the one
being read (the latter twice while its cells are put in order).
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass

import numpy as np
from numpy.typing import NDArray

from txpert_dist.config import Data
from txpert_dist.errors import ConfigError, InputError
from txpert_dist.loader.conditions import cells_of_lines
from txpert_dist.loader.pairing import ControlTable, pair
from txpert_dist.loader.plan import plan_epoch, remaining, steps_per_epoch
from txpert_dist.loader.rows import cut, read_rows
from txpert_dist.minibatch import Minibatch
from txpert_dist.store.cells import CellStore
from txpert_dist.store.expression import gene_view
from txpert_dist.store.splits import SPLITS

CONTROL = 0
"""Perturbation code of control cells."""


def training_rows(
    store: CellStore, *, controls_as_targets: bool, held_out_cell_lines: Sequence[str] = ()
) -> NDArray[np.int64]:
    """Cells of training perturbations, ascending; control cells too when they are targets.

    Of a held-out cell line there are the control cells at most (methods: "only control cells from this type
    were included in training"). Raises ``InputError`` for a cell line that the store does not have.
    """
    of_train = store.split == SPLITS.index("train")
    of_train[CONTROL] = controls_as_targets
    kept = of_train[store.perturbation]
    kept &= (store.perturbation == CONTROL) | ~cells_of_lines(store, held_out_cell_lines)
    return np.flatnonzero(kept)


@dataclass(frozen=True, eq=False)
class CellLoader:
    """Minibatches of one rank; see ``epoch``.

    Raises ``ConfigError`` when the minibatch cannot be shared equally and ``InputError`` when there are
    fewer rows than one minibatch needs.
    """

    store: CellStore
    rows: NDArray[np.int64]
    """Cells of an epoch, ascending."""
    _: KW_ONLY
    genes: NDArray[np.int64]
    """Gene numbers of the training view, ascending."""
    nodes_RM: NDArray[np.int32]
    """(perturbations of the store, M) node numbers of each perturbation code, -1 padded."""
    data: Data
    table: ControlTable
    seed: int
    rank: int
    world: int
    minibatch_size: int
    """Cells of a step over all ranks."""

    def __post_init__(self) -> None:
        if self.minibatch_size % self.world:
            raise ConfigError(
                f"train.minibatch_size={self.minibatch_size} cannot be shared equally by {self.world} "
                "workers; choose a multiple"
            )
        if not self.num_steps:
            raise InputError(
                f"{self.store.path}: {len(self.rows)} training cells are fewer than "
                f"train.minibatch_size={self.minibatch_size}; lower it"
            )

    @property
    def num_steps(self) -> int:
        """Steps of an epoch, equal on all ranks."""
        return steps_per_epoch(len(self.rows), minibatch_size=self.minibatch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Minibatch]:
        """This rank's minibatches of ``epoch`` from ``start_step`` on.

        One thread reads the next window while this one is served; what goes wrong there is raised here, and
        closing the iterator ends the thread. Minibatches of a window share its memory.
        """
        plan = plan_epoch(
            len(self.rows),
            chunk=self.data.chunk,
            window=self.data.window,
            minibatch_size=self.minibatch_size,
            seed=self.seed,
            epoch=epoch,
        )
        windows = remaining(plan, start_step, rank=self.rank, world=self.world)
        share = self.minibatch_size // self.world
        with closing(self._prefetched(windows, epoch)) as read:
            for window in read:
                for start in range(0, window.cells.num_cells, share):
                    yield cut(window, start, start + share)

    def _prefetched(self, windows: list[NDArray[np.int64]], epoch: int) -> Generator[Minibatch, None, None]:
        view = gene_view(self.genes, len(self.store.genes))
        reader = ThreadPoolExecutor(1, thread_name_prefix="read-cells")
        pending: Future[Minibatch] | None = None
        try:
            for positions in windows:
                following = reader.submit(self._read, self.rows[positions], view, epoch)
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()
        finally:
            reader.shutdown(cancel_futures=True)

    def _read(self, rows: NDArray[np.int64], view: NDArray[np.int32], epoch: int) -> Minibatch:
        return Minibatch(
            read_rows(self.store, rows, view),
            pair(self.table, self.store.context[rows], rows, seed=self.seed, epoch=epoch),
            self.nodes_RM[self.store.perturbation[rows]],
        )
