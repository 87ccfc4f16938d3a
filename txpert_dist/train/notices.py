"""Nodes that will be taken away: what Ray Train knows of them, asked now and then.

Enters: nothing; runs in a worker of Ray Train. Leaves: answers for the loop's hooks. Whoever takes a node
away tells Ray by a drain (its autoscaler, or ``ray drain-node``), and Ray's answer is one that all workers
ask for together, for some milliseconds: so rank 0's clock says when.
"""

import time

ASK_EVERY_S = 2.0


class Notices:
    """Of one rank."""

    def __init__(self, *, first: bool) -> None:
        self._first = first
        self._asked_at = time.monotonic()

    def time_to_ask(self) -> bool:
        """On rank 0, every other second; on others never."""
        return self._first and time.monotonic() - self._asked_at > ASK_EVERY_S

    def node_leaves(self) -> bool:
        """Whether Ray was told that a node of this group's will be taken away. All workers must ask."""
        import ray.train

        self._asked_at = time.monotonic()
        return ray.train.get_preemption_info() is not None
