"""A run's checkpoints at a second place: any fsspec URL.

Enters: a URL, a run's folder. Leaves: ``<URL>/<run's name>/run.json`` and ``.../checkpoints/epoch-.../``, and
back. Invariants: a checkpoint is complete there or absent, its manifest being written last and removed first;
the same ones are kept there as here; none becomes a checkpoint here unless every hash is its manifest's.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from txpert_dist.errors import CheckpointError, ConfigError
from txpert_dist.train import checkpoint
from txpert_dist.train.checkpoint import CONFIG, FOLDER, OPTIMISER, STATE, WEIGHTS
from txpert_dist.train.sealed import MANIFEST, adopt, damage
from txpert_dist.train.tracking import RECORD

_CONTENT = (WEIGHTS, OPTIMISER, STATE, CONFIG)


class MirrorError(CheckpointError):
    """The mirror cannot be reached, or does not do what it is asked."""


class Mirror(NamedTuple):
    """Where one run is kept a second time."""

    filesystem: Any
    """An fsspec file system."""
    root: str
    """The run's own folder there."""
    url: str
    """The same, for people."""

    def path(self, *parts: str) -> str:
        """Path of something below the run's folder."""
        return "/".join((self.root, *parts))


def open_mirror(url: str, name: str) -> Mirror:
    """The mirror of run ``name``; ``ConfigError`` when the URL is none, or needs what is not installed."""
    from fsspec.core import url_to_fs

    try:
        # listings must not be remembered: another machine writes there too
        filesystem, root = url_to_fs(url, use_listings_cache=False)
    except Exception as error:  # noqa: BLE001 - every backend fails in its own way, and all are the user's
        raise ConfigError(
            f"train.checkpoint_mirror={url}: cannot be used ({_reason(error)}); correct it"
        ) from None
    return Mirror(filesystem, f"{str(root).rstrip('/')}/{name}", f"{url.rstrip('/')}/{name}")


def upload(mirror: Mirror, run_folder: Path, *, check: Callable[[], None] = lambda: None) -> None:
    """Make the mirror hold the run's record and checkpoints as they are here, and no others.

    ``check`` may raise before each change. Raises ``MirrorError`` when the mirror does not take them.
    """
    here = {folder.name: folder for folder in checkpoint.checkpoints(run_folder)}
    with _failures(mirror, "written"):
        there = _listed(mirror)
        if here:
            check()
            _put(mirror, run_folder / RECORD, RECORD)
        for name, folder in here.items():
            if MANIFEST in there.get(name, ()) and _same_manifest(mirror, folder):
                continue
            if damage(folder) is None:
                check()
                _put_checkpoint(mirror, folder, there.get(name, set()))
        for name in sorted(there.keys() - here.keys()):
            check()
            _remove(mirror, name, there[name])


def restore(mirror: Mirror, run_folder: Path) -> tuple[str, ...]:
    """Bring what is newer there than here: the run's record where there is none, and its checkpoints.

    Returns a line for each checkpoint that is damaged there and was left out. Raises ``MirrorError`` when the
    mirror cannot be read: a run must not begin anew for that.
    """
    with _failures(mirror, "read"):
        complete = [name for name, files in _listed(mirror).items() if MANIFEST in files]
        newest_first = sorted(complete, key=checkpoint.step_of, reverse=True)
        here = checkpoint.newest_sound(run_folder).folder
        if not complete or (here and checkpoint.step_of(newest_first[0]) <= checkpoint.step_of(here.name)):
            return ()
        if not (run_folder / RECORD).exists():
            run_folder.mkdir(parents=True, exist_ok=True)
            _get(mirror, run_folder, RECORD)
        wrong = [_fetch(mirror, run_folder / FOLDER / name) for name in newest_first]
    return tuple(f"{mirror.url}: {line}" for line in wrong if line is not None)


def _listed(mirror: Mirror) -> dict[str, set[str]]:
    """Files of each checkpoint's folder there, complete or not."""
    found: dict[str, set[str]] = {}
    for path in mirror.filesystem.find(mirror.path(FOLDER)):
        *_, name, file = str(path).replace("\\", "/").split("/")
        if checkpoint.is_name(name):
            found.setdefault(name, set()).add(file)
    return found


def _same_manifest(mirror: Mirror, folder: Path) -> bool:
    there: bytes = mirror.filesystem.cat_file(mirror.path(FOLDER, folder.name, MANIFEST))
    return there == (folder / MANIFEST).read_bytes()


def _put_checkpoint(mirror: Mirror, folder: Path, there: set[str]) -> None:
    _remove(mirror, folder.name, there)
    for file in (*_CONTENT, MANIFEST):
        _put(mirror, folder / file, FOLDER, folder.name, file)


def _fetch(mirror: Mirror, folder: Path) -> str | None:
    """Bring a checkpoint into ``folder``, or say what is wrong with it."""

    def get(partial: Path) -> None:
        for file in (*_CONTENT, MANIFEST):
            _get(mirror, partial, file, FOLDER, folder.name)

    try:
        return adopt(folder, get)
    except FileNotFoundError:
        return f"{folder.name}: a file is missing"


def _remove(mirror: Mirror, name: str, files: set[str]) -> None:
    for file in sorted(files, key=lambda file: file != MANIFEST):
        mirror.filesystem.rm_file(mirror.path(FOLDER, name, file))


def _put(mirror: Mirror, file: Path, *place: str) -> None:
    mirror.filesystem.makedirs(mirror.path(*place[:-1]).rstrip("/"), exist_ok=True)
    mirror.filesystem.put_file(str(file), mirror.path(*place))


def _get(mirror: Mirror, folder: Path, file: str, *place: str) -> None:
    mirror.filesystem.get_file(mirror.path(*place, file), str(folder / file))


@contextmanager
def _failures(mirror: Mirror, what: str) -> Iterator[None]:
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # every backend fails in its own way
        raise MirrorError(
            f"train.checkpoint_mirror: {mirror.url} cannot be {what} ({_reason(error)})"
        ) from error


def _reason(error: BaseException) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
