"""From a cell store to the minibatches of one rank.

Enters: an open store, the training rows, the perturbation nodes and a resident control table. Leaves: an
iterator of ``Minibatch``. Invariants: state is (epoch, step) and nothing else; a cell is read at most once a
window (so once an epoch, unless sampling repeats it), by the one rank that serves it; at most two windows are
in memory, the one being served and the one being read, whatever the size of the store.
"""

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import closing
from dataclasses import KW_ONLY, dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from txpert_dist.config import Data
from txpert_dist.errors import ConfigError, InputError
from txpert_dist.loader.conditions import cells_of_lines
from txpert_dist.loader.memory import ReusedMemory
from txpert_dist.loader.pairing import ControlTable, pair
from txpert_dist.loader.plan import plan_epoch, remaining, steps_per_epoch
from txpert_dist.loader.rows import Window, cut, read_window, rows_of_window
from txpert_dist.loader.sampling import (
    drawn_positions,
    draws_by_weight,
    draws_of_perturbations,
    sampling_weights,
)
from txpert_dist.minibatch import Minibatch
from txpert_dist.store.cells import CellStore
from txpert_dist.store.reads import Room
from txpert_dist.store.splits import SPLITS

CONTROL = 0
"""Perturbation code of control cells."""

CELLS_TOGETHER = 2048
"""Cells that are put in order at once: a few minibatches, so that handing one over costs next to nothing."""


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
    fewer rows than one minibatch needs, or when ``data.weight_key`` names no weights.
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
        _ = self._weights  # read now, so that what is wrong with it is said before training

    @property
    def num_steps(self) -> int:
        """Steps of an epoch, equal on all ranks."""
        return steps_per_epoch(len(self.rows), minibatch_size=self.minibatch_size)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[Minibatch]:
        """This rank's minibatches of ``epoch`` from ``start_step`` on.

        ``data.reading_threads`` threads read the next window while this one is served, one more puts its
        cells in order; what goes wrong there is raised here, and closing the iterator ends the threads.
        Minibatches that follow each other share memory, which is not written to while one of them is kept.
        """
        rows = self._rows_of(epoch)
        plan = plan_epoch(
            len(rows),
            chunk=self.data.chunk,
            window=self.data.window,
            minibatch_size=self.minibatch_size,
            seed=self.seed,
            epoch=epoch,
        )
        parts = remaining(plan, start_step, rank=self.rank, world=self.world)
        share = self.minibatch_size // self.world
        with closing(self._arranged([rows[part] for part in parts], epoch)) as groups:
            for group in groups:
                for start in range(0, group.cells.num_cells, share):
                    yield cut(group, start, start + share)

    @cached_property
    def _memory(self) -> ReusedMemory:
        return ReusedMemory()

    @cached_property
    def _weights(self) -> NDArray[np.float64] | None:
        return sampling_weights(self.store, self.rows, self.data)

    def _rows_of(self, epoch: int) -> NDArray[np.int64]:
        """The rows of an epoch, as often as each is served; see ``sampling``."""
        if self.data.sampling == "cells":
            return self.rows
        if self._weights is not None:
            draws_R = draws_by_weight(self._weights, seed=self.seed, epoch=epoch)
        else:
            perturbation_R = self.store.perturbation[self.rows]
            draws_R = draws_of_perturbations(perturbation_R, seed=self.seed, epoch=epoch)
        return self.rows[drawn_positions(draws_R)]

    def _arranged(self, windows: list[NDArray[np.int64]], epoch: int) -> Generator[Minibatch, None, None]:
        """The cells of ``windows`` in order, several minibatches together, always one such group ahead."""
        reader, arranger, *helpers = (
            ThreadPoolExecutor(1, thread_name_prefix="read-cells")
            for _ in range(self.data.reading_threads + 1)
        )
        try:
            for window, ready in self._windows(windows, epoch, reader, helpers):
                for part in self._parts(window)[1:]:
                    coming = arranger.submit(self._arrange, window, part, epoch)
                    yield ready
                    ready = coming.result()
                yield ready
        finally:
            for pool in (reader, arranger, *helpers):
                pool.shutdown(cancel_futures=True)

    def _windows(
        self, windows: list[NDArray[np.int64]], epoch: int, reader: Executor, helpers: Sequence[Executor]
    ) -> Iterator[tuple[Window, Minibatch]]:
        """Every window with its first group; the next one is read meanwhile.

        Two windows' memory takes turns: a window's is written to again once the next but one is asked for.
        """
        rooms: list[Room | None] = [None, None]

        def read(number: int) -> tuple[Window, Minibatch]:
            room = rooms[number % 2]
            window = read_window(self.store, windows[number], self.genes, room=room, helpers=helpers)
            rooms[number % 2] = window.room
            return window, self._arrange(window, self._parts(window)[0], epoch)

        ahead = (reader.submit(read, number) for number in range(len(windows)))
        following = next(ahead, None)
        while following is not None:
            result = following.result()
            following = next(ahead, None)
            yield result

    def _parts(self, window: Window) -> list[slice]:
        """Groups of whole minibatches that are put in order together."""
        share = self.minibatch_size // self.world
        size = max(1, CELLS_TOGETHER // share) * share
        return [slice(start, start + size) for start in range(0, len(window.rows), size)]

    def _arrange(self, window: Window, part: slice, epoch: int) -> Minibatch:
        rows = window.rows[part]
        return Minibatch(
            rows_of_window(self.store, window, part, self._memory),
            pair(self.table, self.store.context[rows], rows, seed=self.seed, epoch=epoch),
            self.nodes_RM[self.store.perturbation[rows]],
        )
