"""What every loader's script does around its own loader: prepare a store, or serve minibatches and be timed.

python SCRIPT.py prepare SCREEN STORE SETTING           SETTING is JSON
python SCRIPT.py serve STORE SETTING RANK WORLD SEED SECONDS {pass|time}

Enters: how a loader prepares and opens its store. Leaves: one line of JSON. Needs the standard library only,
as it runs in the environment of each peer. ``serve`` says "ready" after its warm-up and waits for a line.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

MINIBATCH = 256
WARM_UP_MINIBATCHES = 3
WARM_UP_S = 20.0

Setting = dict[str, Any]
Epoch = Callable[[int], Iterator[tuple[Any, int]]]
"""epoch -> its minibatches, each with its number of cells."""


class Share(NamedTuple):
    """Which part of the cells this process serves."""

    rank: int
    world: int
    seed: int


def main(
    prepare: Callable[[Path, Path, Setting], None], open_store: Callable[[Path, Setting, Share], Epoch]
) -> None:
    """Do what the command line says."""
    what, *arguments = sys.argv[1:]
    if what == "prepare":
        screen, store, setting = arguments
        prepare(Path(screen), Path(store), json.loads(setting))
        return
    store, setting, rank, world, seed, seconds, until = arguments
    epoch = open_store(Path(store), json.loads(setting), Share(int(rank), int(world), int(seed)))
    _warm_up(epoch)
    print("ready", flush=True)
    sys.stdin.readline()
    print(json.dumps(_measured(epoch, float(seconds), one_pass=until == "pass")), flush=True)
    os._exit(0)  # some loaders' threads never end


def _warm_up(epoch: Epoch) -> None:
    """Compile, import late, open files."""
    until = time.monotonic() + WARM_UP_S
    for number, _minibatch in enumerate(epoch(0), 1):
        if number == WARM_UP_MINIBATCHES or time.monotonic() > until:
            break


def _measured(epoch: Epoch, seconds: float, *, one_pass: bool) -> dict[str, float]:
    """Serve whole epochs one after the other until the time is over (``one_pass``: or the first ends)."""
    cells, number = 0, 1
    cpu, began = _cpu_seconds(), time.monotonic()
    until = began + seconds
    while time.monotonic() < until and (number == 1 or not one_pass):
        for minibatch, size in epoch(number):
            _touch(minibatch)
            cells += size
            if time.monotonic() > until:
                break
        number += 1
    ended = time.monotonic()
    return {
        "cells": cells,
        "began": began,
        "ended": ended,
        "cpu": _cpu_seconds() - cpu,
        "peak_mib": _peak_kib() / 1024,
    }


def _touch(minibatch: Any) -> None:
    """Something of a dense minibatch is looked at."""
    if hasattr(minibatch, "ndim") and hasattr(minibatch, "dtype") and not hasattr(minibatch, "indptr"):
        float(minibatch[0, 0])


def _cpu_seconds() -> float:
    """Of this process, all its threads, and its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _peak_kib() -> int:
    """Peak resident memory of this process, or of the largest of its children that have ended."""
    lines = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss if _has_workers() else 0)


def _has_workers() -> bool:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > 0
