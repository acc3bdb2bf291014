"""Runs a function on several processes with gloo, on this machine alone, and ends them in time.

The processes are forked from a server that has loaded torch once. They meet by a file, and talk over the loopback.
"""

import multiprocessing
import os
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch.distributed.tensor", "torch.nn.attention.flex_attention"]
)  # not maskloom: the server does not know pytest's path

TIMEOUT = 100  # seconds for all processes of a call; a collective has 30


def everywhere(world: int, store: Path, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """``function(*arguments)`` on ``world`` processes: what each returned, in the order of ranks.

    Raises:
        AssertionError: a process raised, with its traceback; or died, or took too long.
    """
    found = outcomes(world, store, function, *arguments)
    wrong = [f"rank {rank}: {value}" for rank, (done, value) in enumerate(found) if not done]
    assert not wrong, "\n".join(wrong)
    return [value for _, value in found]


def outcomes(
    world: int, store: Path, function: Callable[..., Any], *arguments: Any, collective: float = 30
) -> list[tuple[bool, Any]]:
    """For each rank whether it returned, and what; or the traceback, or that it died.

    Args:
        collective: seconds that a collective may take.
    """
    pipes = [_CONTEXT.Pipe(duplex=False) for _ in range(world)]
    started = [
        _CONTEXT.Process(
            target=_run, args=(rank, world, str(store), collective, pipes[rank][1], function, arguments), daemon=True
        )
        for rank in range(world)
    ]
    for process, (_, end) in zip(started, pipes, strict=True):
        process.start()
        end.close()
    try:
        return [_outcome(pipe) for pipe, _ in pipes]
    finally:
        for process in started:
            process.join(2)
            if process.is_alive():
                process.kill()


def _outcome(pipe: Connection) -> tuple[bool, Any]:
    try:
        return pipe.recv() if pipe.poll(TIMEOUT) else (False, "it took too long")
    except EOFError:
        return False, "it died"


def _run(
    rank: int, world: int, store: str, collective: float, pipe: Connection, function: Callable[..., Any], arguments: Any
) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=collective)
        )
        pipe.send((True, function(*arguments)))
        dist.destroy_process_group()
    except BaseException:
        pipe.send((False, traceback.format_exc()))
