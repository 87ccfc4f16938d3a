"""What the service tells the process of one build.

Enters and leaves: one line of JSON. It stands by itself so that the service need not load what builds.
"""

from graph_store.protocol import Message


class BuildJob(Message):
    """What to build, where, and within how much memory."""

    config: str
    """JSON of a ``GraphConfig`` with absolute paths."""
    out: str
    memory_bytes: int | None
