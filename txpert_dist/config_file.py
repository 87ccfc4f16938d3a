"""The configuration as text: defaults < one YAML file < ``section.key=value``.

Enters: a file and overrides. Leaves: a ``Config``, and back. Unknown keys are refused with the nearest known
one; every refusal is one line that names the key as a user writes it.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from txpert_dist.config import Config, Model
from txpert_dist.errors import ConfigError

Tree = TypeVar("Tree", bound=BaseModel)


def load(path: Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read the configuration in ``path`` and apply ``section.key=value`` overrides.

    Raises ``ConfigError`` naming the file, the key and, for a misspelt key, the nearest known one.
    """
    return load_as(Config, path, overrides)


def load_as(kind: type[Tree], path: Path | None, overrides: Sequence[str] = ()) -> Tree:
    """``load`` for any tree of sections, a run's being one."""
    tree = _read(path) if path else {}
    for item in overrides:
        _override(tree, item)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        where = str(path) if path else "command line"
        explained = "; ".join(_explain(dict(entry), kind) for entry in error.errors())
        raise ConfigError(f"{where}: {explained}") from None


def dump(config: BaseModel) -> str:
    """The resolved configuration as YAML; loading it again gives the same configuration."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def flatten(config: Config) -> dict[str, str]:
    """Every leaf as ``section.key`` -> text, as MLflow parameters want it."""
    return dict(_leaves(config.model_dump(mode="json"), ""))


class KeyHelp(NamedTuple):
    """One key of the configuration, for people."""

    key: str
    default: str
    """As YAML; empty when the key must be given."""
    meaning: str


def describe(section: type[BaseModel] = Config, prefix: str = "") -> list[KeyHelp]:
    """Every key with its default and meaning, in the order of the tree; variants under their ``kind``."""
    keys = []
    for name, field in sorted(section.model_fields.items(), key=lambda item: item[0] != "kind"):
        kinds = _sections(field.annotation)
        for kind in kinds:
            label = f"{name}({_kind(kind)})" if _variants(field) else name
            keys += describe(kind, f"{prefix}{label}.")
        if not kinds:
            default = "" if field.is_required() else yaml.safe_dump(_plain(field.default)).split("\n...")[0]
            keys.append(KeyHelp(prefix + name, default.strip(), field.description or ""))
    return keys


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value


def _kind(section: type[BaseModel]) -> str:
    return str(section.model_fields["kind"].default)


def _variants(field: FieldInfo) -> list[type[BaseModel]]:
    """The sections that ``kind`` chooses between; none for any other field."""
    return [section for section in _sections(field.annotation) if "kind" in section.model_fields]


def _sections(annotation: Any) -> list[type[BaseModel]]:
    options = getattr(annotation, "__args__", None) or (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; give the path of a run configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}); give the path of a YAML file") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise ConfigError(f"{path}:{line} is not YAML; check the indentation and quotes there") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold sections (data:, graph:, ...), not a {type(tree).__name__}")
    return tree


def _override(tree: dict[str, Any], item: str) -> None:
    dotted, separator, text = item.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {item!r} is not of the form section.key=value")
    *parents, leaf = dotted.split(".")
    node = tree
    for key in parents:
        child = node.get(key)
        if not isinstance(child, dict):
            child = node[key] = {}
        node = child
    try:
        node[leaf] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {item!r}: the value is not YAML; quote it") from None


def _explain(entry: dict[str, Any], kind: type[BaseModel]) -> str:
    where = _place(entry["loc"])
    message = str(entry["msg"]).removeprefix("Value error, ")
    if entry["type"] == "extra_forbidden":
        keys = _keys(kind)
        if where in keys:  # of another variant of its section
            return f"{where}: not with kind={entry['loc'][-2]}; take it out"
        near = difflib.get_close_matches(where, keys, 1, 0.5)
        return f"{where}: no such key" + (f"; did you mean {near[0]}?" if near else "")
    if entry["type"] == "missing":
        return f"{where}: is needed and has no default; set it in the file or with {where}=..."
    if entry["type"] == "union_tag_invalid":
        return f"{where}.kind: no kind {entry['ctx']['tag']!r}; choose one of {entry['ctx']['expected_tags']}"
    got = "" if isinstance(entry["input"], dict) else f" (got {entry['input']!r})"
    return f"{where}: {message}{got}" if where else message


def _place(location: tuple[str | int, ...]) -> str:
    """The key that a user writes: pydantic puts the kind of a variant between its section and its keys."""
    kinds = {_kind(variant) for field in Model.model_fields.values() for variant in _variants(field)}
    return ".".join(
        str(part)
        for number, part in enumerate(location)
        if not (part in kinds and number and location[number - 1] in Model.model_fields)
    )


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for kind in _sections(field.annotation):
            keys += [f"{prefix}{name}.{key}" for key in _keys(kind)]
    return keys


def _leaves(node: dict[str, Any], prefix: str) -> list[tuple[str, str]]:
    leaves = []
    for key, value in node.items():
        if isinstance(value, dict):
            leaves += _leaves(value, f"{prefix}{key}.")
        else:
            leaves.append((prefix + key, str(value)))
    return leaves
