"""Services for tests: in this process, in one of their own, and a proxy that holds what passes it."""

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.request import urlopen

import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from graph_store import snapshot
from graph_store.client import Access
from graph_store.expander import draw_expander
from graph_store.graph import KnowledgeGraph
from graph_store.record import GraphReport
from graph_store.service.server import GraphService
from graph_store.service.settings import Settings
from graph_store.snapshot import Draft

TXPERT = [sys.executable, "-c", "from txpert_dist.cli.app import main; main()"]
TOKEN, READ_TOKEN = "right-token-0123456789", "read-token-0123456789"
RECIPE = {"graphs": [{"name": "a", "source": {"kind": "edges", "path": "a.csv", "directed": True}}]}


def write_snapshot(out: Path, *, num_genes: int = 40, num_edges: int = 300, seed: int = 0) -> str:
    """A snapshot of two random graphs under ``out``; its id."""
    generator = np.random.default_rng(seed)
    genes = tuple(sorted(f"G{number:06d}" for number in range(num_genes)))
    graphs = tuple(random_graph(name, num_genes, num_edges, generator) for name in ("go", "string"))
    reports = tuple(report(graph) for graph in graphs)
    recipe = {"seed": seed, "graphs": []}
    expander = draw_expander(num_genes, 1, seed=seed)
    aliases = {"OLD": genes[0]}
    return snapshot.write(out, Draft(recipe, (), genes, graphs, aliases, reports, (), expander=expander)).name


def random_graph(name: str, num_genes: int, num_edges: int, generator: np.random.Generator) -> KnowledgeGraph:
    """Distinct edges without self loops, sorted by target, then source."""
    pairs = np.unique(generator.integers(0, num_genes * num_genes, 2 * num_edges))
    pairs = pairs[pairs // num_genes != pairs % num_genes]
    pairs = np.sort(generator.permutation(pairs)[:num_edges])
    edges_2E = np.stack([pairs % num_genes, pairs // num_genes]).astype(np.int32)
    return KnowledgeGraph(name, edges_2E, generator.random(len(pairs), np.float32))


def report(graph: KnowledgeGraph) -> GraphReport:
    """What a build would say of the graph, as far as tests look at it."""
    numbers = [key for key, field in GraphReport.model_fields.items() if field.annotation is int]
    return GraphReport(name=graph.name, **(dict.fromkeys(numbers, 0) | {"edges": len(graph.weight_E)}))


def write_source(folder: Path) -> Path:
    """The one source of ``RECIPE``."""
    folder.mkdir(exist_ok=True)
    rows = "".join(f"G{number},G{number * 7 % 101},{number + 1}\n" for number in range(1, 100))
    (folder / "a.csv").write_text("source,target,weight\n" + rows)
    return folder


@contextmanager
def running(folder: Path, **settings) -> Iterator[GraphService]:
    """A service of ``folder`` in this process."""
    service = GraphService(Settings(blobs=str(folder), port=0)._replace(**settings))
    try:
        yield service
    finally:
        service.close(5)


class ServiceProcess:
    """``txpert graph serve`` in a process of its own."""

    def __init__(self, folder: Path, *options: str, token: str | None = None) -> None:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("TXPERT_GRAPH")}
        environment |= {"OMP_NUM_THREADS": "1"} | ({"TXPERT_GRAPH_TOKEN": token} if token else {})
        # A pipe that nobody empties would stop the service when it is full.
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - it goes with this object
        self.process = subprocess.Popen(
            [*TXPERT, "graph", "serve", str(folder), "--port=0", "--metrics-port=0", *options],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.location = self._line().rpartition(" at ")[2]
        self._pages = self._line().partition(" at ")[2].partition("/healthz")[0]

    @property
    def port(self) -> int:
        return int(self.location.rpartition(":")[2])

    def _line(self) -> str:
        line = self.process.stdout.readline().strip()
        if not line:
            self.process.wait()
            raise AssertionError(f"the service did not start: {self.log()}")
        return line

    def page(self, name: str) -> str:
        """One of its pages for orchestrators."""
        with urlopen(f"{self._pages}/{name}", timeout=10) as answer:
            return answer.read().decode()

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        families = text_string_to_metric_families(self.page("metrics"))
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)

    def kill(self) -> None:
        """As a crash would."""
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and log after a signal."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60), self.log()

    def log(self) -> str:
        """What it said so far."""
        self._log.seek(0)
        return self._log.read()


@contextmanager
def serving(folder: Path, *options: str, token: str | None = None) -> Iterator[ServiceProcess]:
    """A service of ``folder`` in a process of its own; killed at the end if it still runs."""
    service = ServiceProcess(folder, *options, token=token)
    try:
        yield service
    finally:
        service.kill()


class Proxy:
    """Passes bytes between clients and ``target``; what comes from there stops after ``allowance`` bytes."""

    def __init__(self, target: int, allowance: int) -> None:
        self.target = target
        self._allowance = allowance
        self._changed = threading.Condition()
        self.held = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.location = f"grpc://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def release(self) -> None:
        """Let everything pass from now on."""
        with self._changed:
            self._allowance = 1 << 60
            self._changed.notify_all()

    def close(self) -> None:
        """Cut all connections, take no more."""
        for each in (self._listener, *self._sockets):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes who waits for it
            each.close()
        self.release()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket()
            # Little is under way beyond what was let pass.
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
            try:
                server.connect(("127.0.0.1", self.target))
            except OSError:
                server.close()
                client.close()
                continue
            self._sockets += [client, server]
            threading.Thread(target=self._pass, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._pass, args=(server, client, True), daemon=True).start()

    def _pass(self, origin: socket.socket, goal: socket.socket, limited: bool) -> None:
        try:
            while data := origin.recv(1 << 16):
                if limited:
                    self._wait(len(data), origin)
                goal.sendall(data)
        except (OSError, ValueError):  # ValueError: of select, for a socket that is closed
            pass
        for end in (origin, goal):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def _wait(self, size: int, origin: socket.socket) -> None:
        with self._changed:
            while self._allowance < size:
                self.held.set()
                self._changed.wait(0.02)
                if select.select([origin], [], [], 0)[0] and _ended(origin):
                    raise ConnectionResetError
            self._allowance -= size


def _ended(origin: socket.socket) -> bool:
    try:
        return not origin.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False


@contextmanager
def proxy(target: int, allowance: int) -> Iterator[Proxy]:
    made = Proxy(target, allowance)
    try:
        yield made
    finally:
        made.close()


def access(cache: Path | None, **changes) -> Access:
    """Of a patient test client."""
    return Access(cache=cache, patience_s=20)._replace(**changes)
