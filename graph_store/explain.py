"""Where a YAML file goes wrong, in one line: file, line, key, nearest known key.

Enters: a YAML file, a pydantic error entry and the model it failed. Leaves: the document, or the sentence a
user needs. Invariant: only plain YAML is read (safe loader), and no key may be given twice.
"""

import difflib
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from graph_store.graph import GraphError

Location = tuple[str | int, ...]


def read_yaml(path: Path) -> tuple[dict[str, Any], yaml.Node | None]:
    """The mapping in ``path``, and its node tree, which knows the lines; ``GraphError`` otherwise."""
    try:
        text = path.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        tree = yaml.safe_load(text)
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file; give the path of a graph configuration") from None
    except (OSError, UnicodeDecodeError) as error:
        raise GraphError(f"{path}: cannot be read ({error}); give the path of a YAML file") from None
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        raise GraphError(f"{path}{line}: is not plain YAML; check the indentation and quotes") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise GraphError(f"{path}: must hold keys (seed:, aliases:, graphs:), not a {type(tree).__name__}")
    _refuse_repeated_keys(path, root)
    return tree, root


def explain(entry: dict[str, Any], root: yaml.Node | None, model: type[BaseModel]) -> str:
    """One error entry of pydantic as `` line L: key: what is wrong``."""
    location: Location = entry["loc"]
    holders, parents = _follow(model, location[:-1])
    key = ".".join([*parents, str(location[-1])] if location else [])
    place = f" line {_line(root, location)}: " + (f"{key}: " if key else "")
    match entry["type"]:
        case "extra_forbidden":
            known = [name for holder in holders for name in holder.model_fields]
            near = difflib.get_close_matches(str(location[-1]), known, 1, 0.5)
            return f"{place}no such key" + (f"; did you mean {near[0]}?" if near else "")
        case "missing":
            return f"{place}is needed and has no default"
        case "union_tag_not_found" | "union_tag_invalid":
            kinds = [_kind(holder) for holder in _follow(model, location)[0]]
            return f"{place}needs a kind, one of {', '.join(kinds)}"
        case "value_error":
            return place + str(entry["msg"]).removeprefix("Value error, ")
        case _:
            return f"{place}{entry['msg']} (got {entry['input']!r})"


def _refuse_repeated_keys(path: Path, root: yaml.Node | None) -> None:
    waiting, visited = [root], set[int]()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in visited:
            continue
        visited.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        if isinstance(node, yaml.MappingNode):
            waiting += [child for _, child in node.value]
            keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            names = [key.value for key in keys]
            for number, key in enumerate(keys):
                if key.value in names[:number]:
                    line = key.start_mark.line + 1
                    raise GraphError(f"{path} line {line}: {key.value} is given twice; keep one of them")


def _line(node: yaml.Node | None, location: Location) -> int:
    """Line of the innermost node on the way to ``location``; the tags of unions are no nodes."""
    line = 1 if node is None else node.start_mark.line + 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            found = next(((key, child) for key, child in node.value if key.value == part), None)
            if found is not None:
                line, node = found[0].start_mark.line + 1, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line


def _follow(model: type[BaseModel], location: Location) -> tuple[list[type[BaseModel]], list[str]]:
    """The sections that may stand at ``location``, and the location as the user writes it (without tags)."""
    here, key = [model], []
    for part in location:
        if len(here) > 1 and part in [_kind(section) for section in here]:
            here = [section for section in here if _kind(section) == part]
            continue
        key.append(str(part))
        if isinstance(part, str):
            here = [child for section in here for child in _sections(section, part)]
    return here, key


def _sections(model: type[BaseModel], name: str) -> list[type[BaseModel]]:
    """The sections a field may hold, through optionals, tuples and unions."""
    waiting: list[Any] = [model.model_fields[name].annotation] if name in model.model_fields else []
    found: list[type[BaseModel]] = []
    while waiting:
        kind = waiting.pop(0)
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found.append(kind)
        waiting += getattr(kind, "__args__", ())
    return found


def _kind(section: type[BaseModel]) -> str:
    field = section.model_fields.get("kind")
    return str(field.default) if field is not None else ""
