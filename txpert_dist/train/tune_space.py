"""Search spaces: which keys of a run's configuration a study varies, and over what.

Enters: a YAML file (or a preset's name) of key -> one rule, and the base configuration. Leaves: ``Space``,
and the ``Config`` of any choice of values. Invariants: every key is one of the configuration's own, and every
value at a rule's ends is one the key takes, before any trial starts; what decides which cells are scored, and
for how long a trial may train, cannot be varied, for scores would not be comparable; a key below a section
whose chosen ``kind`` has no such key does not apply, and is left out.
"""

import difflib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml
from pydantic import BaseModel, ValidationError

from txpert_dist.config import Config
from txpert_dist.errors import ConfigError

Rule = Literal["choice", "uniform", "log_uniform", "integer"]
Value = Any
"""A plain value of YAML: a number, text, a list, or a whole section."""

FIXED = (
    "name",
    "seed",
    "output",
    "cluster",
    "tracking",
    "data.store",
    "data.genes",
    "data.held_out_cell_lines",
    "graph.location",
    "graph.snapshot",
    "graph.tls_roots",
    "train.epochs",
)
"""Keys, and sections, that are the same in every trial."""

DEFAULT = "default"
"""Preset of a study that names no space."""

_PRESETS = resources.files("txpert_dist.train") / "spaces"
_ENDS = 2


class Dimension(NamedTuple):
    """One key and the values it may take."""

    key: str
    """As ``section.key``."""
    rule: Rule
    values: tuple[Value, ...]
    """The choices; of the other rules the lower and the upper end."""


class Space(NamedTuple):
    """Dimensions, sections before the keys below them."""

    dimensions: tuple[Dimension, ...]


def presets() -> list[str]:
    """Names of the search spaces that come with this software."""
    names = [entry.name for entry in _PRESETS.iterdir()] if _PRESETS.is_dir() else []
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def read_space(name: str) -> dict[str, Any]:
    """The plain content of a preset, or of a file. Raises ``ConfigError``."""
    if name in presets():
        text = (_PRESETS / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"{name}: cannot be read as a search space ({getattr(error, 'strerror', error)}); give a "
                f"YAML file, or a preset: {', '.join(presets())}"
            ) from None
    try:
        tree = yaml.safe_load(text)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        raise ConfigError(f"{name}:{line} is not YAML; check the indentation and quotes there") from None
    if not isinstance(tree, dict) or not tree:
        raise ConfigError(
            f"{name}: must map keys to rules, as in optimiser.learning_rate: {{choice: [1, 2]}}"
        )
    return {str(key): rule for key, rule in tree.items()}


def space_of(tree: Mapping[str, Any], base: Config, *, where: str) -> Space:
    """The space of a plain tree, checked against ``base``.

    Raises ``ConfigError`` naming ``where`` it was read, the key and the value.
    """
    found = [_dimension(key, rule, where) for key, rule in tree.items()]
    found.sort(key=lambda dimension: (_depth(dimension.key), dimension.key))
    space = Space(tuple(found))
    for dimension in space.dimensions:
        _check(space, dimension, base, where)
    return space


def default_of(space: Space, base: Config) -> dict[str, Value]:
    """What ``base`` has for each dimension that applies to it."""
    tree = base.model_dump(mode="json")
    return {
        dimension.key: _get(tree, dimension.key)
        for dimension in space.dimensions
        if applies(base, {}, dimension.key)
    }


def applies(base: Config, values: Mapping[str, Value], key: str) -> bool:
    """Whether ``key`` exists once ``values`` are put into ``base``."""
    tree = _tree(base, values)
    *parents, leaf = key.split(".")
    section = _section(tree, parents)
    return section is not None and leaf in section.model_fields


def configured(base: Config, values: Mapping[str, Value]) -> Config:
    """``base`` with ``values``. Raises pydantic's ``ValidationError`` when they do not fit each other."""
    return Config.model_validate(_tree(base, values))


def refusal(error: ValidationError) -> str:
    """The first complaint of a configuration that does not fit, in one line."""
    entry = error.errors()[0]
    return " ".join(str(entry["msg"]).removeprefix("Value error, ").split())


def _dimension(key: str, rule: Any, where: str) -> Dimension:
    here = f"{where}: {key}"
    known = get_args(Rule)
    if not (isinstance(rule, dict) and len(rule) == 1 and next(iter(rule)) in known):
        raise ConfigError(f"{here}: must have one rule of {', '.join(known)}, as in {{choice: [1, 2]}}")
    if any(key == fixed or key.startswith(f"{fixed}.") for fixed in FIXED):
        raise ConfigError(f"{here}: is the same in every trial, or scores could not be compared; take it out")
    ((kind, values),) = rule.items()
    if kind == "choice":
        _check_choices(values, here)
    else:
        _check_ends(kind, values, here)
    return Dimension(key, kind, tuple(values))


def _check_choices(values: Any, here: str) -> None:
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{here}: choice needs a list of values")
    twice = [value for number, value in enumerate(values) if value in values[:number]]
    if twice:
        raise ConfigError(f"{here}: {twice[0]!r} is listed twice; list every value once")


def _check_ends(kind: str, values: Any, here: str) -> None:
    numbers = isinstance(values, list) and all(
        isinstance(value, int if kind == "integer" else int | float) and not isinstance(value, bool)
        for value in values
    )
    if not numbers or len(values) != _ENDS or not values[0] < values[1]:
        what = "two whole numbers" if kind == "integer" else "two numbers"
        raise ConfigError(f"{here}: {kind} needs {what}, the smaller first (got {values!r})")
    if kind == "log_uniform" and values[0] <= 0:
        raise ConfigError(f"{here}: log_uniform needs a lower end above 0 (got {values[0]!r})")


def _check(space: Space, dimension: Dimension, base: Config, where: str) -> None:
    """Every end or choice of ``dimension`` is a value that its key takes, under some choice of section."""
    contexts = [values for values in _contexts(space, dimension) if applies(base, values, dimension.key)]
    if not contexts:
        raise ConfigError(f"{where}: {dimension.key}: {_unknown(dimension.key)}")
    for value in dimension.values:
        for context in contexts:
            try:
                configured(base, context | {dimension.key: value})
            except ValidationError as error:
                # that keys do not fit each other depends on the others, which are drawn too
                if error.errors()[0]["type"] != "value_error":
                    raise ConfigError(f"{where}: {dimension.key}: {value!r}: {refusal(error)}") from None


def _unknown(key: str) -> str:
    """Why ``key`` applies to nothing that may be drawn."""
    known = _keys(Config)
    if key in known:
        return "the base's kind has no such key; take it out, or let the space choose a kind that has it"
    near = difflib.get_close_matches(key, known, 1, 0.5)
    return "no such key" + (f"; did you mean {near[0]}?" if near else "")


def _contexts(space: Space, dimension: Dimension) -> list[dict[str, Value]]:
    """The base itself, and every choice for a section that holds the key."""
    above = [
        other
        for other in space.dimensions
        if other.rule == "choice"
        and other.key != dimension.key
        and dimension.key.startswith(other.key.removesuffix("kind").rstrip(".") + ".")
    ]
    return [{}, *({other.key: value} for other in above for value in other.values)]


def _tree(base: Config, values: Mapping[str, Value]) -> dict[str, Any]:
    tree: dict[str, Any] = base.model_dump(mode="json")
    for key in sorted(values, key=_depth):
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            below = node.get(parent)
            node[parent] = node = dict(below) if isinstance(below, dict) else {}
        if leaf == "kind" and node.get("kind") != values[key]:
            node.clear()  # another kind begins with its own defaults
        node[leaf] = values[key]
    return tree


def _depth(key: str) -> tuple[int, bool]:
    """Sections come before what is in them, a section's kind before its other keys."""
    return key.count("."), not key.endswith(".kind")


def _get(tree: Mapping[str, Any], key: str) -> Value:
    value: Any = tree
    for part in key.split("."):
        value = value[part]
    return value


def _section(tree: Mapping[str, Any], parents: Sequence[str]) -> type[BaseModel] | None:
    """The section at ``parents`` of a plain tree, the variant that its ``kind`` chooses."""
    section: type[BaseModel] = Config
    node: Any = tree
    for name in parents:
        field = section.model_fields.get(name)
        options = _sections(field.annotation) if field else []
        node = node.get(name) if isinstance(node, dict) else None
        if not options or not isinstance(node, dict):
            return None
        kind = node.get("kind")
        chosen = [
            o for o in options if "kind" not in o.model_fields or o.model_fields["kind"].default == kind
        ]
        section = (chosen or options)[0]
    return section


def _sections(annotation: Any) -> list[type[BaseModel]]:
    options = get_args(annotation) or (annotation,)
    return [option for option in options if isinstance(option, type) and issubclass(option, BaseModel)]


def _keys(section: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name, field in section.model_fields.items():
        keys.append(prefix + name)
        for below in _sections(field.annotation):
            keys += _keys(below, f"{prefix}{name}.")
    return keys
