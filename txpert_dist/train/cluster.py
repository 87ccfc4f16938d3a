"""The Ray that this process works on.

Enters: how many CPUs are needed, and the environment of Ray's workers. Leaves: a connection for as long as a
context lasts. Invariants: a Ray that the caller has begun is used and left alone; one of our own obeys only
this process tree.
"""

import logging
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

NOTHING: Mapping[str, str] = MappingProxyType({})


@contextmanager
def connected(cpus: int, environment: Mapping[str, str] = NOTHING) -> Iterator[None]:
    """A Ray this process is connected to: its own, the one at RAY_ADDRESS, or one here of ``cpus`` CPUs."""
    import ray

    if ray.is_initialized():
        yield
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if environment:
        quiet["runtime_env"] = {"env_vars": dict(environment)}
    if "RAY_ADDRESS" in os.environ:
        ray.init(address=os.environ["RAY_ADDRESS"], **quiet)
    else:
        # Ray's ports listen on every interface; with a token (its default) they obey only who knows it. Ours
        # stays in this process tree: Ray would keep one in a file that everybody on the machine can read.
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # "local" and not the default, which attaches to whatever cluster ran here last, dead or alive.
        ray.init(address="local", num_cpus=max(os.cpu_count() or 1, cpus), include_dashboard=False, **quiet)
    try:
        yield
    finally:
        ray.shutdown()
