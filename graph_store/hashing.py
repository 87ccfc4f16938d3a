"""Numbers and digests that are the same on every machine and with every library version.

Enters: names, integers, files. Leaves: 64-bit hashes and SHA-256 digests. Invariant: nothing here depends on
the platform, the process (unlike ``hash``) or the version of NumPy (unlike its random generators): snapshot
ids rest on it.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from graph_store.graph import GraphError


def mix64(value: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit integers one to one.

    The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
    """
    mixed = value + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def name_hashes(names: Sequence[str], *, seed: int) -> NDArray[np.uint64]:
    """One 64-bit hash a name; another seed gives unrelated hashes."""
    key = seed.to_bytes(16, "little")
    digests = (hashlib.blake2b(name.encode(), digest_size=8, key=key).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def draws(count: int, *, seed: int, stream: int) -> NDArray[np.uint64]:
    """``count`` random 64-bit numbers; every (seed, stream) gives its own."""
    start = mix64(mix64(np.array([seed], dtype=np.uint64)) ^ np.uint64(stream))
    return mix64(np.arange(count, dtype=np.uint64) ^ start)


def canonical_json(value: object) -> str:
    """The one spelling of a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def file_digest(path: Path) -> tuple[str, int]:
    """SHA-256 (hex) and size in bytes of a file; ``GraphError`` when it cannot be read."""
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return digest, stream.tell()
    except FileNotFoundError:
        raise GraphError(f"{path}: no such file; check the path in the graph configuration") from None
    except OSError as error:
        raise GraphError(
            f"{path}: cannot be read ({error.strerror}); check the path and its rights"
        ) from None
