"""Checkpoints written beside the training, which waits only for a copy of its state.

Enters: the state of a step, on rank 0. Leaves: checkpoints, here and at the mirror. Invariants: what is
written is a copy in memory of its own, so training may go on changing the state; at most one checkpoint is
under way; a failure is told once, to whoever asks next; nothing is written, removed or mirrored once others
have taken the run over.
"""

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError
from txpert_dist.train import checkpoint
from txpert_dist.train.checkpoint import RunState
from txpert_dist.train.mirror import MirrorError, open_mirror, upload

News = Callable[[str, int, int], None]
Allowed = Callable[[], AbstractContextManager[None]]
"""A context in which nobody takes the run over; it raises ``CheckpointError`` when somebody has."""

log = logging.getLogger(__name__)


class Saver:
    """Writes one run's checkpoints from a thread of its own; only rank 0's is ever given any."""

    def __init__(
        self, config: Config, *, allowed: Allowed, news: News, before: Callable[[], None] = lambda: None
    ) -> None:
        self._config = config
        self._allowed = allowed
        self._news = news
        self._before = before  # a checkpoint is there, so are the records of the steps that led to it
        self._behind = ""  # why the mirror lacks the newest checkpoint
        self._copies: dict[str, Tensor] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="txpert-checkpoint")
        self._under_way: Future[None] | None = None

    def begin(
        self, state: RunState, *, weights: Mapping[str, Tensor], optimiser: Mapping[str, Tensor]
    ) -> None:
        """Copy the state and write it while the caller goes on; the one before must be settled."""
        if self._under_way is not None:
            raise AssertionError("a checkpoint is under way")
        copies = [self._copied(f"{number}.", part) for number, part in enumerate((weights, optimiser))]
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._under_way = self._thread.submit(self._write, state, *copies)

    def settle(self) -> str:
        """Wait for the one under way; why it failed, in one line, or nothing."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return ""
        try:
            under_way.result()
        except CheckpointError as error:
            return str(error)
        return ""

    def finish(self) -> str:
        """``settle``, and see that the mirror has everything."""
        failure = self.settle()
        if failure or not self._behind:
            return failure
        self._copy_to_mirror()
        return f"{self._behind}; the same command tries again" if self._behind else ""

    def close(self) -> None:
        """Let the one under way end, whatever becomes of it."""
        self._thread.shutdown(wait=True)
        failure = self.settle()
        if failure:
            log.error("%s", failure)

    def _copied(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copies = {}
        for name, tensor in tensors.items():
            if prefix + name not in self._copies:
                self._copies[prefix + name] = torch.empty(
                    tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda
                )
            copies[name] = self._copies[prefix + name].copy_(tensor.detach(), non_blocking=True)
        return copies

    def _write(self, state: RunState, weights: dict[str, Tensor], optimiser: dict[str, Tensor]) -> None:
        config = self._config
        self._before()
        checkpoint.write_checkpoint(
            config.run_folder, state, config, weights=weights, optimiser=optimiser, allowed=self._allowed
        )
        with self._allowed():
            checkpoint.prune(config.run_folder, keep=config.train.keep_checkpoints)
        self._copy_to_mirror()

    def _copy_to_mirror(self) -> None:
        """What cannot be copied now is copied with the next checkpoint: training goes on meanwhile."""
        if self._config.train.checkpoint_mirror is None:
            return
        try:
            mirror = open_mirror(self._config.train.checkpoint_mirror, self._config.name)
            upload(mirror, self._config.run_folder, check=self._check)
            self._behind = ""
        except MirrorError as error:
            if not self._behind:
                self._news(f"{error}; tried again with the next checkpoint", 0, 0)
            self._behind = str(error)

    def _check(self) -> None:
        with self._allowed():
            pass
