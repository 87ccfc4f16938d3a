"""Checkpoints: one folder holds all that a run needs to go on, or an evaluation to predict.

Layout of ``<run folder>/checkpoints/epoch-0003-step-000123/``: ``model.safetensors`` (weights and running
statistics), ``optimizer.safetensors`` (AdamW's moments by parameter), ``state.json`` (``RunState``),
``config.yaml`` and ``manifest.json`` (SHA-256 of the others). Invariants: no pickle; nothing in it depends on
the number of workers or the ZeRO stage; random draws are functions of (seed, epoch, step), so there is no
random state to keep; a folder is complete or absent, and a damaged one is never read; only validated weights
have a score, so none that was taken within an epoch is ever the best one while there is another.
"""

import json
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from graph_store.client import open_snapshot
from graph_store.graph import Snapshot
from txpert_dist import config_file
from txpert_dist.config import Config
from txpert_dist.errors import CheckpointError
from txpert_dist.model import vocabulary as vocabularies
from txpert_dist.model.graph_input import graph_input
from txpert_dist.model.txpert import TxPert, build_model
from txpert_dist.model.vocabulary import Vocabulary
from txpert_dist.train.graphs import graphs_folder
from txpert_dist.train.sealed import damage, seal, sha256, sweep

WEIGHTS, OPTIMISER, STATE, CONFIG = "model.safetensors", "optimizer.safetensors", "state.json", "config.yaml"
FOLDER = "checkpoints"
"""Folder of a run that holds its checkpoints."""

SCORE = "validation/pearson_delta"
"""The metric that decides which checkpoint is best: larger is better."""

_NAME = re.compile(r"epoch-(\d{4,})-step-(\d{6,})")
_FORMAT = 2
log = logging.getLogger(__name__)


class RunState(NamedTuple):
    """Where a run stands and what it was made from."""

    epoch: int
    """Whole epochs done, and validated."""
    step: int
    """Optimiser steps done, over all epochs."""
    metrics: dict[str, float]
    """The validation's metrics of these very weights; empty within an epoch, when there was none."""
    store_hash: str
    """SHA-256 of the cell store's manifest."""
    split_hash: str
    snapshot_id: str
    git_commit: str
    genes: tuple[str, ...]
    """Gene names of the training view, in the model's order."""
    vocabulary: Vocabulary
    basal_width: int
    """Values a control that the basal encoder reads: the genes, or those of an embedding."""
    model_hash: str = ""
    """SHA-256 of the weights file; filled in when the checkpoint is written."""


class LoadedModel(NamedTuple):
    """A verified model, ready to predict on the CPU."""

    model: TxPert
    config: Config
    genes: tuple[str, ...]
    vocabulary: Vocabulary
    snapshot: Snapshot
    state: RunState


class Found(NamedTuple):
    """The newest sound checkpoint and the damaged ones that were passed over."""

    folder: Path | None
    damaged: tuple[str, ...]
    """One line for each, naming the damaged file."""


def write_checkpoint(
    run_folder: Path,
    state: RunState,
    config: Config,
    *,
    weights: Mapping[str, Tensor],
    optimiser: Mapping[str, Tensor],
    allowed: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Path:
    """Write one checkpoint (one process only) and return its folder.

    It gets its name within ``allowed()``, which may raise instead. Raises ``CheckpointError``.
    """
    folder = run_folder / FOLDER / f"epoch-{state.epoch:04d}-step-{state.step:06d}"

    def fill(partial: Path) -> None:
        save_file(_contiguous(weights), partial / WEIGHTS)
        save_file(_contiguous(optimiser), partial / OPTIMISER)
        sealed = state._replace(model_hash=sha256(partial / WEIGHTS))
        (partial / STATE).write_text(json.dumps(_to_dict(sealed)), encoding="utf-8")
        (partial / CONFIG).write_text(config_file.dump(config), encoding="utf-8")

    try:
        seal(folder, fill, allowed)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CheckpointError(
            f"{folder}: cannot be written ({reason}); free space there, then repeat the command to go on"
        ) from None
    return folder


def checkpoints(run_folder: Path) -> list[Path]:
    """Folders of the run's checkpoints, oldest first; they may be damaged."""
    folders = [path for path in (run_folder / FOLDER).glob("epoch-*") if is_name(path.name)]
    return sorted(folders, key=lambda folder: step_of(folder.name))


def is_name(name: str) -> bool:
    """Whether a checkpoint's folder may be called so."""
    return _NAME.fullmatch(name) is not None


def step_of(name: str) -> tuple[int, int]:
    """Step and epoch in the name of a checkpoint's folder: larger is newer."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name} is no checkpoint's name")
    return int(match[2]), int(match[1])


def run_folder_of(folder: Path) -> Path:
    """The run's folder that a checkpoint's lies in."""
    return folder.absolute().parent.parent


def newest_sound(run_folder: Path) -> Found:
    """The newest checkpoint whose every file is as it was written."""
    damaged: list[str] = []
    for folder in reversed(checkpoints(run_folder)):
        wrong = damage(folder)
        if wrong is None:
            return Found(folder, tuple(damaged))
        log.warning("checkpoint %s is damaged and passed over: %s", folder.name, wrong)
        damaged.append(wrong)
    return Found(None, tuple(damaged))


def best_checkpoint(run_folder: Path) -> Path:
    """The checkpoint with the highest validation Pearson delta; the newest when none has a number.

    Raises ``CheckpointError`` when the run has no readable checkpoint.
    """
    readable = [
        (score, folder) for folder in checkpoints(run_folder) if (score := _score(folder)) is not None
    ]
    if not readable:
        raise CheckpointError(f"{run_folder}: has no readable checkpoint; train first with `txpert train`")
    return max(readable, key=lambda item: (item[0], item[1].name))[1]


def prune(run_folder: Path, *, keep: int) -> None:
    """Remove all but the ``keep`` newest checkpoints and the best one, and what interrupted writers left."""
    sweep(run_folder / FOLDER)
    folders = checkpoints(run_folder)
    if not folders:
        return
    kept = {*folders[-keep:], best_checkpoint(run_folder)}
    for folder in folders:
        if folder not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def read_state(folder: Path) -> RunState:
    """The state in ``folder``. Raises ``CheckpointError`` when it cannot be read."""
    try:
        tree = json.loads((folder / STATE).read_text(encoding="utf-8"))
        if tree["format"] != _FORMAT:
            raise CheckpointError(
                f"{folder}: checkpoint format {tree['format']}, this version reads {_FORMAT}; use the "
                "version that wrote it, or train again"
            )
        return _from_dict(tree)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / STATE}: cannot be read ({error!r}); use another checkpoint"
        ) from None


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Weights and running statistics by name, on the CPU; check ``damage`` first."""
    weights: dict[str, Tensor] = load_file(folder / WEIGHTS)
    return weights


def read_optimiser(folder: Path) -> dict[str, Tensor]:
    """Optimiser moments by name, on the CPU; check ``damage`` first."""
    state: dict[str, Tensor] = load_file(folder / OPTIMISER)
    return state


def load_model(folder: Path, graphs: str | None = None) -> LoadedModel:
    """Open a checkpoint for prediction; ``graphs`` overrides where its snapshot is.

    The optimiser's file may be absent. Raises ``CheckpointError`` naming the damaged file, and ``GraphError``
    when the snapshot the model was trained with is not there.
    """
    if not (folder / STATE).exists():
        raise CheckpointError(
            f"{folder}: no checkpoint there; give a folder such as RUN/checkpoints/epoch-..."
        )
    wrong = damage(folder, (WEIGHTS, STATE, CONFIG))
    if wrong is not None:
        raise CheckpointError(f"{wrong}; use another checkpoint of the run")
    state = read_state(folder)
    config = config_file.load(folder / CONFIG)
    location = graphs or graphs_folder(config.graph, run_folder_of(folder))
    snapshot = open_snapshot(location, state.snapshot_id)
    model = build_model(
        config.model,
        num_genes=len(state.genes),
        basal_width=state.basal_width,
        graph=graph_input(snapshot, config.graph.use, len(state.vocabulary.genes)),
        seed=config.seed,
    )
    put_weights(model, read_weights(folder), folder)
    model.eval()
    return LoadedModel(model, config, state.genes, state.vocabulary, snapshot, state)


def put_weights(model: TxPert, weights: Mapping[str, Tensor], folder: Path) -> None:
    """Load ``weights`` into ``model``. Raises ``CheckpointError`` when they belong to another model."""
    try:
        model.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        first = str(error).splitlines()[-1].strip()
        raise CheckpointError(f"{folder / WEIGHTS}: belongs to another model ({first})") from None


def _contiguous(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # clones of parts, because ZeRO's parameters share one flat buffer and safetensors refuses shared memory
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return {name: tensor if _is_whole(tensor) else tensor.clone() for name, tensor in here.items()}


def _is_whole(tensor: Tensor) -> bool:
    return tensor.untyped_storage().nbytes() == tensor.nbytes


def _score(folder: Path) -> float | None:
    try:
        score = read_state(folder).metrics.get(SCORE, math.nan)
    except CheckpointError:
        return None
    return -math.inf if math.isnan(score) else score


def _to_dict(state: RunState) -> dict[str, Any]:
    metrics = {name: None if math.isnan(value) else value for name, value in state.metrics.items()}
    tree = state._asdict() | {"format": _FORMAT, "metrics": metrics, "genes": list(state.genes)}
    return tree | {"vocabulary": vocabularies.to_dict(state.vocabulary)}


def _from_dict(tree: Mapping[str, Any]) -> RunState:
    metrics = {name: math.nan if value is None else float(value) for name, value in tree["metrics"].items()}
    read = {name: tree[name] for name in RunState._fields}
    read |= {"metrics": metrics, "genes": tuple(tree["genes"])}
    return RunState(**read | {"vocabulary": vocabularies.from_dict(tree["vocabulary"])})
