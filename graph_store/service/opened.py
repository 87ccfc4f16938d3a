"""What stays open between requests: a few values that are slow to load, the least recently used go first.

Enters: a key and how to load its value. Leaves: the value. Invariant: however many threads ask for a value at
the same time, it is loaded once.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Opened(Generic[Value]):
    """At most ``capacity`` values."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, load: Callable[[], Value]) -> Value:
        """The value of ``key``; others wait while one is loaded."""
        with self._lock:
            if key not in self._values:
                self._values[key] = load()
            self._values.move_to_end(key)
            while len(self._values) > self._capacity:
                self._values.popitem(last=False)
            return self._values[key]
