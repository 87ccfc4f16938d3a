"""What Prometheus may ask a service: requests, bytes, builds, memory.

Enters: events. Leaves: numbers in a registry of this service alone (two in one process do not mix).
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


class Metrics:
    """The numbers of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "txpert_graph_requests",
            "Requests, by kind and how they ended.",
            ["kind", "outcome"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "txpert_graph_request_seconds",
            "Time from a request to the end of its answer.",
            ["kind"],
            buckets=(0.005, 0.02, 0.1, 0.5, 2, 10, 60, 600),
            registry=self.registry,
        )
        self.sent = Counter("txpert_graph_sent_bytes", "Bytes of answers' columns.", registry=self.registry)
        self.received = Counter(
            "txpert_graph_received_bytes", "Bytes of embeddings put.", registry=self.registry
        )
        self.active = Gauge(
            "txpert_graph_active_requests", "Requests being answered.", registry=self.registry
        )
        self.builds = Gauge("txpert_graph_builds", "Builds that run or wait.", registry=self.registry)
        self.snapshots = Gauge("txpert_graph_snapshots", "Snapshots there are.", registry=self.registry)

    def text(self) -> bytes:
        """All numbers in Prometheus' format."""
        return bytes(generate_latest(self.registry))
