"""How fast a snapshot comes over Arrow Flight, beside raw TCP on the same loopback in the same run.

    python -m tests.benchmarks.flight [--quick] [--json FILE]

A snapshot of 20,000 genes and 1,000,000 edges, served by `txpert graph serve` in a process of its own, to 1,
2 and 8 client processes at the same time. Two questions, each with its own reference:

    wire   every file's bytes are received, and dropped; raw TCP sends and drops the same bytes
    kept   `client.snapshot_folder` into an empty cache: received, written, hashed, published; raw TCP writes
           and hashes what it receives (SHA-256, as the client does)

The TCP server sends from mapped files with `sendall`, the TCP client receives into one buffer: as little as
Python can do. Rates are of all clients together; the variants take turns, medians over the rounds after the
first. Beside these, the latency of small answers: `describe` and a neighbourhood of one gene.
"""

import argparse
import hashlib
import mmap
import multiprocessing
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.synchronize import Barrier
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow
import pyarrow.flight as flight

from graph_store import remote
from graph_store.client import Access, snapshot_folder
from graph_store.protocol import FilesTicket, NeighbourhoodTicket, Part
from graph_store.record import read_record
from tests.benchmarks.record import Case, write
from tests.unit.graph_store.services import serving, write_snapshot

NUM_GENES, NUM_EDGES = 20_000, 1_000_000
CLIENTS = (1, 2, 8)
BUFFER_BYTES = 1 << 20
MODES = ("tcp, wire", "flight, wire", "tcp, kept", "flight, kept")


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and clients")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rounds = 4 if arguments.quick else 10
    with tempfile.TemporaryDirectory(prefix="flight-") as folder:
        cases, size = measure(Path(folder), CLIENTS[:2] if arguments.quick else CLIENTS, rounds)
    for case in cases:
        print(f"{case.name}: {case.value:.3g} {case.unit}; {case.reference} {case.reference_value:.3g}")
    if arguments.json:
        write(
            arguments.json,
            cases,
            genes=NUM_GENES,
            edges=NUM_EDGES,
            snapshot_bytes=size,
            rounds=rounds,
            pyarrow=pyarrow.__version__,
        )


def measure(folder: Path, clients: Sequence[int], rounds: int) -> tuple[list[Case], int]:
    """All cases, and the bytes of the snapshot."""
    identity = write_snapshot(folder / "graphs", num_genes=NUM_GENES, num_edges=NUM_EDGES // 2)
    files = read_record(folder / "graphs" / identity).files
    size = sum(file.size for file in files.values())
    context = multiprocessing.get_context("spawn")
    listener = socket.create_server(("127.0.0.1", 0))
    tcp = context.Process(target=serve_tcp, args=(listener, folder / "graphs" / identity, sorted(files)))
    tcp.start()
    cases = []
    try:
        with serving(folder / "graphs") as service:
            places = (service.location, listener.getsockname()[1], identity, sorted(files))
            for number in clients:
                rates = run_clients(context, number, rounds, places, folder, size)
                for kind in ("wire", "kept"):
                    name = f"snapshot of {size / 2**20:.0f} MiB, {number} clients, {kind}"
                    cases.append(
                        Case(name, rates[f"flight, {kind}"], "GB/s", "raw TCP", rates[f"tcp, {kind}"])
                    )
            cases += small_answers(service.location, identity, rounds)
    finally:
        tcp.terminate()
        tcp.join()
    return cases, size


def run_clients(
    context: Any, number: int, rounds: int, places: tuple[Any, ...], folder: Path, size: int
) -> dict[str, float]:
    """Median rate of each mode, all clients together."""
    barrier, results = context.Barrier(number), context.SimpleQueue()
    arguments = (barrier, results, rounds, places)
    processes = [
        context.Process(target=client, args=(*arguments, folder / f"cache-{place}"))
        for place in range(number)
    ]
    for process in processes:
        process.start()
    spans = [results.get() for _ in processes]
    for process in processes:
        process.join()
    rates = {}
    for mode in MODES:
        times = [[span[mode][turn] for span in spans] for turn in range(1, rounds)]
        seconds = [max(end for _, end in turn) - min(start for start, _ in turn) for turn in times]
        rates[mode] = number * size / median(seconds) / 1e9
    return rates


def client(barrier: Barrier, results: Any, rounds: int, places: tuple[Any, ...], cache: Path) -> None:
    """One client: every mode in every round, all clients at the same time."""
    location, port, identity, files = places
    modes: dict[str, Callable[[], None]] = {
        "tcp, wire": lambda: receive_tcp(port, None),
        "flight, wire": lambda: receive_flight(location, identity, files),
        "tcp, kept": lambda: receive_tcp(port, cache / "file"),
        "flight, kept": lambda: keep_flight(location, identity, cache),
    }
    spans: dict[str, list[tuple[float, float]]] = {mode: [] for mode in MODES}
    for _ in range(rounds):
        for mode in MODES:
            shutil.rmtree(cache, ignore_errors=True)
            cache.mkdir()
            barrier.wait()
            start = time.monotonic()
            modes[mode]()
            spans[mode].append((start, time.monotonic()))
    results.put(spans)


def serve_tcp(listener: socket.socket, folder: Path, files: Sequence[str]) -> None:
    """Send all files to whoever connects, a process each."""
    mapped = []
    for name in files:
        with (folder / name).open("rb") as stream:
            if os.fstat(stream.fileno()).st_size:
                mapped.append(mmap.mmap(stream.fileno(), 0, prot=mmap.PROT_READ))
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            for content in mapped:
                connection.sendall(content)
            connection.close()
            os._exit(0)
        connection.close()


def receive_tcp(port: int, path: Path | None) -> None:
    """Receive all there is; into a file, hashed, when there is a path."""
    buffer = memoryview(bytearray(BUFFER_BYTES))
    digest = hashlib.sha256()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        if path is None:
            while connection.recv_into(buffer):
                pass
            return
        with path.open("wb", buffering=0) as stream:
            while number := connection.recv_into(buffer):
                stream.write(buffer[:number])
                digest.update(buffer[:number])


def receive_flight(location: str, identity: str, files: Sequence[str]) -> None:
    """Receive every file."""
    ticket = FilesTicket(snapshot=identity, files=[Part(file=name) for name in files])
    with flight.FlightClient(location) as line:
        for _ in line.do_get(flight.Ticket(ticket.to_bytes())):
            pass


def keep_flight(location: str, identity: str, cache: Path) -> None:
    """What a trainer does."""
    snapshot_folder(location, identity, Access(cache=cache))


def small_answers(location: str, identity: str, rounds: int) -> list[Case]:
    """Milliseconds of small answers, a connection each, beside a call that does nothing."""
    service = remote.Service(location)
    ticket = NeighbourhoodTicket(snapshot=identity, genes=["G000000"])
    asked: dict[str, Callable[[], object]] = {
        "describe": lambda: remote.describe(service, identity),
        "neighbourhood of one gene, 1 hop": lambda: remote.neighbourhood(service, ticket),
        "health (connection and answer)": lambda: remote.health(service),
    }
    times: dict[str, list[float]] = {name: [] for name in asked}
    for _ in range(rounds * 3):
        for name, ask in asked.items():
            start = time.monotonic()
            ask()
            times[name].append(time.monotonic() - start)
    health = median(times["health (connection and answer)"][1:]) * 1000
    return [
        Case(name, median(seconds[1:]) * 1000, "ms", "health, a call that does nothing", health)
        for name, seconds in times.items()
    ]


if __name__ == "__main__":
    main()
