"""How fast minibatches of 256 cells are served, beside other loaders, and beside what the machine can do.

    python -m tests.benchmarks.loader [--quick] [--cells N] [--genes N] [--peers PYTHON ...] [--json FILE]

The screen is simulated, about 92 % zeros; every loader makes its own store of it. One measurement is fresh
processes that serve whole shuffled epochs for some seconds; rounds go through all cases one after the other,
medians are reported, as cells a second and as cells a CPU second (all threads and workers of the process;
read this one where other work shares the machine). ``cold`` is one pass after the files were dropped from the
page cache; ``2 ranks`` are two processes at once. Peak memory is that of one process.

    sparse     sparse rows for the device to densify; ours with the number of each cell's control in the
               resident table. Goal: 6 times annbatch's best setting
    counts     dense float32, nothing paired, as the peers deliver it. Goal: 3 times annbatch's best dense
               setting, 4 times litdata, 10 times scDataset and SCDL, 50 times AnnLoader and cell-load
    mean       dense log1p expression and each cell's control, its batch's mean. Goal: 2 times annbatch
    drawn      the same with a control cell drawn from its batch

--peers names Pythons with peers in them, each for whatever it can import; see peers/. annbatch[zarrs] needs
Python 3.12 or newer and no torch; litdata, scDataset, bionemo-scdl and cell-load bring torch.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from tests.benchmarks.loader_limits import layouts, limits
from tests.benchmarks.record import Case, write
from txpert_dist.simulate.config import GENES_OF_FULL_DEPTH, SimulateConfig
from txpert_dist.simulate.run import simulate

ROUNDS = 3
SECONDS = 5.0
LONGEST_S = 600.0
COUNTS_PER_GENE = 0.12
SCRIPTS = Path(__file__).with_name("peers")

Setting = dict[str, Any]


class Way(NamedTuple):
    """One loader in one setting."""

    name: str
    script: str
    module: str
    """What a Python has to be able to import to run it."""
    store: str
    deliver: str
    setting: Setting


class Mode(NamedTuple):
    """Circumstances of a measurement."""

    name: str
    world: int
    cold: bool


class Measured(NamedTuple):
    """One measurement of all ranks together."""

    cells_per_s: float
    cells_per_cpu_s: float
    peak_mib: float
    load: float
    """Mean number of processes that wanted to run over the last minute, ours included."""


MODES = (Mode("warm", 1, False), Mode("2 ranks", 2, False), Mode("cold", 1, True))
ANNBATCH = ((512, 32), (1024, 16), (2048, 8))
"""Cells that annbatch reads in one piece, and how many such pieces it mixes; the first is its default."""


def ways() -> list[Way]:
    """Every case, ours first."""

    def ours(deliver: str) -> Way:
        setting = {"deliver": deliver}
        return Way(f"txpert {deliver}", "txpert_loader", "txpert_dist", "ours.zarr", deliver, setting)

    def annbatch(chunk: int, preload: int, *, dense: bool, labels: bool, narrow: bool) -> Way:
        deliver = "dense" if dense else "sparse"
        more = f"{', labels' if labels else ''}{', narrow' if narrow else ''}"
        setting = {"chunk": chunk, "preload": preload, "deliver": deliver, "labels": labels, "narrow": narrow}
        store = "annbatch_narrow.zarr" if narrow else "annbatch.zarr"
        name = f"annbatch {deliver} {chunk} x {preload}{more}"
        return Way(name, "annbatch_loader", "annbatch", store, deliver, setting)

    def dense(name: str, script: str, module: str, store: str, **setting: Any) -> Way:
        return Way(name, script, module, store, "dense", setting)

    found = [ours(deliver) for deliver in ("sparse", "counts", "log1p", "mean", "drawn")]
    for is_dense in (False, True):
        found.append(annbatch(*ANNBATCH[0], dense=is_dense, labels=True, narrow=False))
        for pieces in ANNBATCH[is_dense:]:
            found.append(annbatch(*pieces, dense=is_dense, labels=False, narrow=False))
        found.append(annbatch(*ANNBATCH[-1], dense=is_dense, labels=False, narrow=True))
    blocks = {"block": 256, "fetch_factor": 64, "workers": 0}
    return [
        *found,
        dense("litdata", "litdata_loader", "litdata", "litdata", workers=0),
        dense("litdata, 2 workers", "litdata_loader", "litdata", "litdata", workers=2),
        dense("scDataset", "scdataset_loader", "scdataset", "shuffled.h5ad", shuffled=True, **blocks),
        dense("SCDL", "scdl_loader", "bionemo.scdl", "scdl", workers=0),
        dense("SCDL, 2 workers", "scdl_loader", "bionemo.scdl", "scdl", workers=2),
        dense("AnnLoader", "annloader_loader", "anndata.experimental", "annloader.h5ad"),
        dense("cell-load", "cell_load_loader", "cell_load", "cell_load", consecutive=False, workers=0),
        dense(
            "cell-load, consecutive", "cell_load_loader", "cell_load", "cell_load_sorted",
            consecutive=True, workers=0,
        ),
    ]  # fmt: skip


def pythons(wanted: Iterable[Way], peers: Sequence[str]) -> dict[str, str]:
    """The Python that runs each module, for those that there is one for."""
    found = {}
    for module in dict.fromkeys(way.module for way in wanted):
        candidates = [sys.executable] if module == "txpert_dist" else [*peers, sys.executable]
        needed = f"import {module}" + ("" if module in ("annbatch", "txpert_dist") else ", torch")
        for python in candidates:
            if subprocess.run([python, "-c", needed], capture_output=True, check=False).returncode == 0:
                found[module] = python
                break
    return found


def prepare(way: Way, python: str, screen: Path, folder: Path) -> float | None:
    """Make the store of ``way`` unless it is there; how many seconds it took."""
    store = folder / way.store
    if store.exists():
        return None
    began = time.perf_counter()
    command = _command(way, python, "prepare", str(screen), str(store), json.dumps(way.setting))
    done = subprocess.run(command, capture_output=True, text=True, env=_environment(1), check=False)
    if done.returncode:
        shutil.rmtree(store, ignore_errors=True)
        raise RuntimeError(f"{way.name} cannot be prepared: {done.stderr[-2000:]}")
    return time.perf_counter() - began


def measure(way: Way, python: str, store: Path, mode: Mode, *, seconds: float, seed: int) -> Measured:
    """Serve in ``mode.world`` processes, all started when the last has warmed up."""
    load = os.getloadavg()[0]
    _read_all(store)
    processes = []
    for rank in range(mode.world):
        share = (str(rank), str(mode.world), str(seed))
        until = "pass" if mode.cold else "time"
        command = _command(
            way, python, "serve", str(store), json.dumps(way.setting), *share, str(seconds), until
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, text=True, env=_environment(mode.world), **pipes))
    try:
        for process in processes:
            while (line := process.stdout.readline()).strip() != "ready":  # type: ignore[union-attr]
                if not line:
                    raise RuntimeError(f"{way.name}: {process.communicate()[1][-2000:]}")
        if mode.cold:
            _drop(store)
        results = _results(way, processes)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    wall = max(result["ended"] for result in results) - min(result["began"] for result in results)
    cells = sum(result["cells"] for result in results)
    cpu = sum(result["cpu"] for result in results)
    return Measured(cells / wall, cells / cpu, max(result["peak_mib"] for result in results), load)


def _results(way: Way, processes: list[subprocess.Popen[str]]) -> list[dict[str, float]]:
    for process in processes:
        process.stdin.write("go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    found = []
    for process in processes:
        out, errors = process.communicate(timeout=LONGEST_S)
        lines = [line for line in out.splitlines() if line.startswith("{")]
        if not lines:
            raise RuntimeError(f"{way.name}: {errors[-2000:]}")
        found.append(json.loads(lines[-1]))
    return found


def _command(way: Way, python: str, *arguments: str) -> list[str]:
    return [python, "-W", "ignore", str(SCRIPTS / f"{way.script}.py"), *arguments]


def _environment(world: int) -> dict[str, str]:
    """One thread for each numerical library; zarrs has all cores where its process is alone."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return os.environ | one | ({"RAYON_NUM_THREADS": "1"} if world > 1 else {})


def _files(store: Path) -> list[Path]:
    if store.is_dir():
        return [path.resolve() for path in store.rglob("*") if path.is_file()]
    return [store.resolve()]


def _read_all(store: Path) -> None:
    room = bytearray(1 << 23)
    for path in _files(store):
        with path.open("rb", buffering=0) as file:
            while file.readinto(room):
                pass


def _drop(store: Path) -> None:
    """Out of the page cache, as far as no process has the pages mapped."""
    for path in _files(store):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _screen(folder: Path, cells: int, genes: int) -> Path:
    screen = folder / f"screen_{cells}_{genes}.h5ad"
    if not screen.exists():
        config = SimulateConfig(
            cells=cells,
            genes=genes,
            perturbations=200,
            cell_lines=1,
            batches=48,
            median_umi=round(COUNTS_PER_GENE * max(genes, GENES_OF_FULL_DEPTH)),
            seed=1,
        )
        simulate(config, out=screen, overwrite=True)
    return screen.resolve()


Results = dict[tuple[str, str], list[Measured]]
"""(way, mode) -> rounds."""


def _median(results: Results, way: str, mode: str, field: str) -> float:
    runs = results.get((way, mode), [])
    return median(getattr(run, field) for run in runs) if runs else float("nan")


def cases(results: Results, known: list[Way], limit: dict[str, float]) -> list[Case]:
    """Every way of ours beside the best setting of each peer, and beside what the machine can do."""
    found = []
    groups = {
        "sparse": [["annbatch sparse"]],
        "counts": [["annbatch dense"], ["litdata"], ["scDataset"], ["SCDL"], ["AnnLoader"], ["cell-load"]],
        "log1p": [["annbatch dense"]],
        "mean": [["annbatch dense"], ["cell-load"]],
        "drawn": [["annbatch dense"], ["cell-load"]],
    }
    decode, densify = limit["read and decode"] * 1e3, limit["densify counts"] * 1e3
    log1p = limit["densify and log1p"] * 1e3
    possible = {"sparse": decode, "counts": _both(decode, densify), "log1p": _both(decode, log1p)}
    for way in known:
        if way.module != "txpert_dist":
            continue
        for mode in MODES:
            for field, unit in (("cells_per_s", "cells / s"), ("cells_per_cpu_s", "cells / CPU s")):
                own = _median(results, way.name, mode.name, field)
                for (prefix,) in groups[way.deliver]:
                    rates = {
                        other.name: _median(results, other.name, mode.name, field)
                        for other in known
                        if other.name.startswith(prefix) and (other.name, mode.name) in results
                    }
                    if rates and (way.name, mode.name) in results:
                        best = max(rates, key=lambda name: rates[name])
                        found.append(Case(f"{way.name}, {mode.name}", own, unit, best, rates[best]))
        own = _median(results, way.name, "warm", "cells_per_cpu_s")
        if way.deliver in possible:
            what = f"limit of {'decoding' if way.deliver == 'sparse' else 'decoding and densifying'}"
            found.append(Case(f"{way.name}, warm", own, "cells / CPU s", what, possible[way.deliver]))
    return found


def _both(first: float, second: float) -> float:
    """Rate of two steps one after the other."""
    return 1 / (1 / first + 1 / second)


def _table(results: Results) -> list[dict[str, Any]]:
    """Medians of every way."""
    rows = []
    for name in dict.fromkeys(name for name, _mode in results):
        row: dict[str, Any] = {"loader": name}
        for mode in MODES:
            if (name, mode.name) in results:
                row[f"{mode.name}, cells/s"] = round(_median(results, name, mode.name, "cells_per_s"))
                row[f"{mode.name}, cells/CPU s"] = round(_median(results, name, mode.name, "cells_per_cpu_s"))
                row[f"{mode.name}, peak MiB"] = round(_median(results, name, mode.name, "peak_mib"))
        rows.append(row)
    return rows


def _print_table(rows: list[dict[str, Any]]) -> None:
    print(f"{'loader':42s}" + "".join(f"{mode.name + ': k/s':>16s} k/CPU s   MiB" for mode in MODES))
    for row in rows:
        text = f"{row['loader']:42s}"
        for mode in MODES:
            rate, cpu = (row.get(f"{mode.name}, {unit}", float("nan")) for unit in ("cells/s", "cells/CPU s"))
            text += f"{rate / 1e3:16.1f}{cpu / 1e3:8.1f}{row.get(f'{mode.name}, peak MiB', 0):6d}"
        print(text)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    asked = _asked(arguments)
    with tempfile.TemporaryDirectory() as made:
        folder = (asked.folder or Path(made)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        screen = _screen(folder, asked.cells, asked.genes)
        known = [way for way in ways() if not asked.only or way.name.startswith(tuple(asked.only))]
        runs = pythons(known, asked.peers)
        missing = sorted({way.module for way in known} - runs.keys())
        if missing:
            print(f"not measured, as no Python here has them: {', '.join(missing)}")
        known = [way for way in known if way.module in runs]
        prepared = {}
        for way in list(known):
            try:
                seconds = prepare(way, runs[way.module], screen, folder)
            except RuntimeError as error:
                print(error)
                known.remove(way)
                continue
            if seconds is not None:
                prepared[way.store] = round(seconds, 1)
                print(f"{way.store}: {seconds:.1f} s", flush=True)
        results: Results = {}
        limit_of_round = []
        for number in range(asked.rounds):
            limit_of_round.append(limits(folder / "ours.zarr"))
            for way in known:
                for mode in MODES:
                    if mode.name not in asked.modes:
                        continue
                    run = measure(
                        way, runs[way.module], folder / way.store, mode, seconds=asked.seconds, seed=number
                    )
                    results.setdefault((way.name, mode.name), []).append(run)
                    rates = f"{run.cells_per_s / 1e3:.1f} k/s, {run.cells_per_cpu_s / 1e3:.1f} k/CPU s"
                    print(f"{way.name}, {mode.name}: {rates}, load {run.load:.1f}", flush=True)
        limit = {name: median(some[name] for some in limit_of_round) for name in limit_of_round[0]}
        form = layouts(folder / "ours.zarr")
        sizes = {way.store: sum(path.stat().st_size for path in _files(folder / way.store)) for way in known}
    found = cases(results, known, limit)
    rows = _table(results)
    _report(rows, limit, form, found)
    if asked.json:
        loads = [run.load for runs_of in results.values() for run in runs_of]
        write(
            asked.json,
            found,
            cells=asked.cells,
            genes=asked.genes,
            rounds=asked.rounds,
            seconds=asked.seconds,
            not_measured=missing,
            load={"least": min(loads), "median": median(loads), "most": max(loads)},
            table=rows,
            limits=limit,
            layouts=[entry._asdict() for entry in form],
            store_bytes=sizes,
            preparation_seconds=prepared,
        )


def _asked(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="20,000 cells, one round, warm, a second each")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--genes", type=int, default=5_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="that each measurement serves")
    parser.add_argument("--modes", nargs="+", default=[mode.name for mode in MODES], help="which to measure")
    parser.add_argument("--only", nargs="+", help="loaders whose names begin so")
    parser.add_argument("--peers", nargs="+", default=[], help="Pythons that have peers installed")
    parser.add_argument("--folder", type=Path, help="where to work; screen and stores there are used again")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args(arguments)
    if asked.quick:
        asked.cells, asked.rounds, asked.seconds, asked.modes = 20_000, 1, 1.0, ["warm"]
    return asked


def _report(
    rows: list[dict[str, Any]], limit: dict[str, float], form: Iterable[Any], found: list[Case]
) -> None:
    _print_table(rows)
    for name, rate in limit.items():
        print(f"limit: {name}: {rate:,.0f}{'' if name.endswith('/s') else ' k cells / CPU s'}")
    for entry in form:
        size = f"{entry.bytes_per_cell:.0f} bytes a cell"
        print(f"decoding {entry.name}: {entry.cells_per_s:,.0f} k cells / CPU s, {size}")
    for case in found:
        beside = f"{case.reference} {case.reference_value:,.0f}, ratio {case.ratio or 0:.2f}"
        print(f"{case.name}: {case.value:,.0f} {case.unit} ({beside})")


if __name__ == "__main__":
    main()
