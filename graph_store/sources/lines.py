"""Lines of a text file (also .gz), one after another, for formats that are no tables with a header.

Enters: a path. Leaves: numbered lines without their ends. Invariant: whatever cannot be read is a
``GraphError`` naming the file; text is never interpreted (quotes are letters like any other).
"""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path

from graph_store.graph import GraphError


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number (from 1) and text of each line that is not blank."""
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix.lower() == ".gz"
            else path.open(encoding="utf-8-sig")
        ) as stream:
            for number, line in enumerate(stream, start=1):
                if not line.isspace():
                    yield number, line.rstrip("\n")
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file; check the path in the graph configuration") from None
    except (OSError, EOFError, zlib.error) as error:
        raise GraphError(f"{path}: cannot be read ({error}); check that the file is whole") from None
    except UnicodeDecodeError as error:
        raise GraphError(f"{path}: is not UTF-8 text ({error.reason}); save it as UTF-8") from None


def inner_suffix(path: Path) -> str:
    """The ending of the name in lower case, without ``.gz``."""
    return Path(path.name.lower().removesuffix(".gz")).suffix
