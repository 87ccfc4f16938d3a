"""How long a screen takes to become a cell store, in how much memory, and how big the store is.

    python -m tests.benchmarks.ingest [--quick] [--cells N] [--genes N] [--peers PYTHON] [--json FILE]

The screen is simulated, about 92 % zeros, uncompressed, and in the page cache. Every way runs in a process of
its own whose peak memory is taken; ways alternate over the rounds, medians are reported.

    ingest            `txpert ingest` with one process: checks, statistics, variable genes, shuffled by split
    ingest, 2         the same with two of Ray's processes
    annbatch          the shuffled collection that annbatch builds, with its defaults and the zarrs pipeline,
                      in the Python given by --peers (annbatch[zarrs] installed); goal: 1.5 times as fast.
                      Its default holds up to 20 GB of a collection at once: --dataset-size says how much
    anndata           read_h5ad and write_zarr: no shuffling, all in memory

A way that needs more memory than --limit-gib is left out, and said to be.

    kills             `ingest` killed (-9) at so many random points, one after the other, each time started
                      again: the store's manifest has to be the undisturbed one's, byte for byte
"""

import argparse
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

import h5py

from tests.benchmarks.record import Case, write
from txpert_dist.simulate.config import GENES_OF_FULL_DEPTH, SimulateConfig
from txpert_dist.simulate.run import simulate

ROUNDS = 3
MEMORY_GIB = 2.0
COUNTS_PER_GENE = 0.138
COLLECTION = Path(__file__).with_name("peers") / "annbatch_collection.py"
INGEST = """
import sys
from pathlib import Path
from txpert_dist.ingest.config import IngestConfig
from txpert_dist.ingest.run import ingest
ingest(IngestConfig(sources=(Path(sys.argv[1]),), store=Path(sys.argv[2]), preset="scperturb",
                    workers=int(sys.argv[3]), memory_gib=float(sys.argv[4])))
"""
ANNDATA = """
import sys
import anndata
anndata.settings.zarr_write_format = 3
anndata.read_h5ad(sys.argv[1]).write_zarr(sys.argv[2])
"""


class Measured(NamedTuple):
    """One run of one way."""

    seconds: float
    peak_gib: float
    size: int
    """Bytes of what it wrote."""


class Way(NamedTuple):
    """One way to turn the screen into something to train from."""

    name: str
    command: tuple[str, ...]
    """``screen`` and ``target`` in it are replaced by paths."""


def ingest_way(name: str, workers: int) -> Way:
    """Ours."""
    command = (sys.executable, "-c", INGEST, "screen", "target", str(workers), str(MEMORY_GIB))
    return Way(name, command)


def ways(peers: str | None, dataset_size: str) -> list[Way]:
    """All that can be run here."""
    found = [ingest_way("ingest", 1), ingest_way("ingest, 2 processes", 2)]
    if peers:
        found.append(Way("annbatch", (peers, str(COLLECTION), "screen", "target", dataset_size)))
    found.append(Way("anndata", (sys.executable, "-c", ANNDATA, "screen", "target")))
    return found


def filled_in(way: Way, screen: Path, target: Path) -> list[str]:
    """The command with its paths."""
    places = {"screen": str(screen), "target": str(target)}
    return [places.get(part, part) for part in way.command]


def measure(way: Way, screen: Path, target: Path, limit_gib: float) -> Measured | None:
    """Run ``way`` once; its output stays at ``target``. None when it takes more memory than the limit."""
    shutil.rmtree(target, ignore_errors=True)
    started = time.perf_counter()
    process = subprocess.Popen(filled_in(way, screen, target))
    while True:
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        if resident_gib(process.pid) > limit_gib:
            process.kill()
            process.wait()
            return None
        time.sleep(0.05)
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{way.name} ended with {process.returncode}")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    return Measured(seconds, usage.ru_maxrss / 2**20, size)


def resident_gib(pid: int) -> float:
    """Memory that a process takes now; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**30


def manifest(store: Path) -> str:
    """Stands for every byte of the store."""
    return hashlib.sha256((store / "manifest.json").read_bytes()).hexdigest()


def same_after_kills(screen: Path, folder: Path, expected: str, seconds: float, kills: int) -> int:
    """Kill an ingest that takes ``seconds`` ``kills`` times; how many times it then ended as ``expected``."""
    pick, same, target = random.Random(1), 0, folder / "killed.zarr"
    command = filled_in(ingest_way("ingest", 1), screen, target)
    for _kill in range(kills):
        shutil.rmtree(target, ignore_errors=True)
        process = subprocess.Popen(command)
        try:
            process.wait(pick.uniform(0.1, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
        subprocess.run(command, check=True)
        left = [path for path in folder.iterdir() if path.name.endswith(".partial")]
        same += manifest(target) == expected and not left
    return same


def cases(screen: Path, measured: dict[str, list[Measured]], entries: int) -> list[Case]:
    """Rates, peaks and sizes beside their references."""
    rate = {name: entries / median(run.seconds for run in runs) / 1e6 for name, runs in measured.items()}
    peak = {name: max(run.peak_gib for run in runs) for name, runs in measured.items()}
    reference = next(name for name in ("annbatch", "anndata", "ingest, 2 processes") if name in rate)
    unit = "million entries / s"
    found = [Case("rate of ingest", rate["ingest"], unit, reference, rate[reference])]
    for name in rate.keys() - {"ingest", reference}:
        found.append(Case(f"rate of {name}", rate[name], unit, reference, rate[reference]))
    found.append(Case("peak memory of ingest", peak["ingest"], "GiB", "budget", MEMORY_GIB))
    for name in peak.keys() - {"ingest", "ingest, 2 processes"}:
        found.append(Case(f"peak memory of {name}", peak[name], "GiB", "budget", MEMORY_GIB))
    size = screen.stat().st_size / 2**30
    for name in measured.keys() - {"ingest, 2 processes"}:
        found.append(
            Case(f"size of {name}", measured[name][-1].size / 2**30, "GiB", "uncompressed h5ad", size)
        )
    return sorted(found)


def measure_all(asked: argparse.Namespace, screen: Path, folder: Path) -> dict[str, list[Measured]]:
    """Every way as often as asked, by turns; their last outputs stay in ``folder``."""
    measured: dict[str, list[Measured]] = {}
    for _round in range(asked.rounds):
        for way in ways(asked.peers, asked.dataset_size):
            run = measure(way, screen, output(folder, way.name), asked.limit_gib)
            if run is None:
                print(f"{way.name}: needs more than {asked.limit_gib:g} GiB", flush=True)
                continue
            measured.setdefault(way.name, []).append(run)
            wrote = f"{run.size / 2**30:.2f} GiB written"
            print(f"{way.name}: {run.seconds:.1f} s, {run.peak_gib:.2f} GiB, {wrote}", flush=True)
    return measured


def output(folder: Path, way: str) -> Path:
    """Where the output of a way lies."""
    return folder / f"{way.replace(', ', '_').replace(' ', '_')}.zarr"


def simulated(folder: Path, cells: int, genes: int) -> tuple[Path, int]:
    """The screen, and how many of its entries are not zero: about 8 %."""
    screen = folder / f"screen_{cells}_{genes}.h5ad"
    config = SimulateConfig(
        cells=cells,
        genes=genes,
        perturbations=200,
        cell_lines=1,
        batches=8,
        median_umi=round(COUNTS_PER_GENE * max(genes, GENES_OF_FULL_DEPTH)),
        seed=1,
    )
    if not screen.exists():
        simulate(config, out=screen, overwrite=True)
    with h5py.File(screen, "r") as file:
        return screen, len(file["X/data"])


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 x 2,000, one round, two kills")
    parser.add_argument("--cells", type=int, default=1_000_000)
    parser.add_argument("--genes", type=int, default=8_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--peers", help="a Python that has annbatch[zarrs]")
    parser.add_argument("--dataset-size", default="20GB", help="of annbatch's collection")
    parser.add_argument("--limit-gib", type=float, default=12.0)
    parser.add_argument("--folder", type=Path, help="where to work; a screen left there is used again")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.cells, asked.genes, asked.rounds, asked.kills = 20_000, 2_000, 1, 2
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    asked = parsed(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = asked.folder or Path(made)
        screen, entries = simulated(folder, asked.cells, asked.genes)
        measured = measure_all(asked, screen, folder)
        found = cases(screen, measured, entries)
        one, two = (manifest(output(folder, name)) for name in ("ingest", "ingest, 2 processes"))
        found.append(
            Case("one and two processes write the same store", float(one == two), "yes or no", "goal", 1.0)
        )
        if asked.kills:
            seconds = median(run.seconds for run in measured["ingest"])
            same = same_after_kills(screen, folder, one, seconds, asked.kills)
            found.append(Case("the same store after a kill", same, "times", "kills", asked.kills))
    for case in found:
        beside = f"{case.reference} {case.reference_value:.3g}, ratio {case.ratio:.2f}"
        print(f"{case.name}: {case.value:.3g} {case.unit} ({beside})")
    if asked.json:
        sizes = {"cells": asked.cells, "genes": asked.genes, "entries": entries, "rounds": asked.rounds}
        write(asked.json, found, **sizes, dataset_size=asked.dataset_size)


if __name__ == "__main__":
    main()
