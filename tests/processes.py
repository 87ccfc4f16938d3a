"""Run one function in several real processes joined by gloo, as the ranks of a training run.

Enters: a top-level function of (rank, world, *arguments). Leaves: its results in rank order, as plain values.
Processes come from a fork server that has imported the slow packages once, so a group starts in seconds.
"""

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any

PRELOAD = [
    "tests.processes",
    "torch._dynamo",
    "torch._inductor",
    "deepspeed.compile.backend",
    "txpert_dist.train.loop",
]
"""What every process would otherwise import anew (8 s), deepspeed.initialize's own late imports included."""


def run(function: Callable[..., Any], world: int, *arguments: Any, timeout: float = 120) -> list[Any]:
    """Results of ``function(rank, world, *arguments)`` on ``world`` ranks.

    Fails with the traceback of every rank that raised, and when a rank ends or hangs without a result.
    """
    context = _context()
    port = _free_port()
    pipes = [context.Pipe(duplex=False) for _ in range(world)]
    processes = [
        context.Process(target=_main, args=(function, rank, world, port, sender, arguments), daemon=True)
        for rank, (_, sender) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    for _, sender in pipes:
        sender.close()
    try:
        outcomes = [_receive(receiver, rank, timeout) for rank, (receiver, _) in enumerate(pipes)]
    finally:
        for process in processes:
            process.join(0.5)
            if process.is_alive():
                process.kill()
                process.join()
    failures = [f"rank {rank}:\n{text}" for rank, (good, text) in enumerate(outcomes) if not good]
    if failures:
        raise AssertionError("\n".join(failures))
    return [value for _, value in outcomes]


def _context() -> ForkServerContext:
    # The server keeps the environment it started with: DeepSpeed must not look for an accelerator here.
    os.environ["DS_ACCELERATOR"] = "cpu"
    os.environ["OMP_NUM_THREADS"] = "1"
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _receive(receiver: Connection, rank: int, timeout: float) -> tuple[bool, Any]:
    if not receiver.poll(timeout):
        return False, f"no result within {timeout} s"
    try:
        outcome: tuple[bool, Any] = receiver.recv()
    except EOFError:
        return False, "ended without a result"
    return outcome


def _main(
    function: Callable[..., Any],
    rank: int,
    world: int,
    port: int,
    sender: Connection,
    arguments: Sequence[Any],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(world),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        DS_ACCELERATOR="cpu",
    )
    try:
        dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
        sender.send((True, function(rank, world, *arguments)))
    except BaseException:  # noqa: BLE001 - whatever happened, the parent wants to see it
        sender.send((False, traceback.format_exc()))
    finally:
        sender.close()
        if dist.is_initialized():
            dist.destroy_process_group()
