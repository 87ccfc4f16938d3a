"""Recipes that come from clients: every path in them is brought into the service's folder of sources.

Enters: the tree of a ``graphs.yaml``. Leaves: a ``GraphConfig`` with absolute paths. Invariant: no path leads
out of the folder, by ``..``, from the root, from a home, or through a link.
"""

from pathlib import Path
from typing import Any

from graph_store.config import GraphConfig
from graph_store.service.refusal import refuse
from graph_store.source_config import Section


def confined_recipe(tree: dict[str, Any], sources: Path) -> GraphConfig:
    """The recipe, its paths within ``sources``; ``ValidationError`` or a refusal otherwise."""
    config = GraphConfig.model_validate(tree)
    root = sources.resolve()
    return config.model_copy(update={key: _confined(value, root) for key, value in config})


def _confined(value: Any, root: Path) -> Any:
    if isinstance(value, Section):
        return value.model_copy(update={key: _confined(item, root) for key, item in value})
    if isinstance(value, tuple):
        return tuple(_confined(item, root) for item in value)
    return _within(value, root) if isinstance(value, Path) else value


def _within(path: Path, root: Path) -> Path:
    text = str(path)
    odd = path.is_absolute() or ".." in path.parts or text.startswith("~") or not text.isprintable()
    try:
        full = (root / path).resolve()
    except (OSError, RuntimeError, ValueError):
        odd, full = True, root
    if odd or not full.is_relative_to(root):
        raise refuse(f"{text!r}: is not in the service's sources; give a path relative to that folder")
    if not full.exists():
        raise refuse(f"{text}: is not in the service's sources; bring it there first")
    return root / path  # Not what links lead to: names of files go into the record.
