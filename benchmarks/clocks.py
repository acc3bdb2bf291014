"""Times, memory and first calls, measured in one way by every benchmark that can run on a GPU."""

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

MIB = 2**20
HEAD_START = 8_000_000
"""Cycles of the GPU, about 4 ms: launching a forward or a backward took hosts up to 1.2 ms."""


def median_ms(run: Callable[[], object], *, repeats: int, device: str) -> float:
    """Median wall-clock milliseconds of one call and of all that it queued on the device; one call before does not count."""
    run()
    return statistics.median(once_ms(run, device=device) for _ in range(repeats))


def median_host_ms(run: Callable[[], object], *, repeats: int, device: str) -> float:
    """Median of `once_host_ms`; one call before does not count."""
    run()
    return statistics.median(once_host_ms(run, device=device) for _ in range(repeats))


def once_ms(run: Callable[[], object], *, device: str) -> float:
    """Wall-clock milliseconds of one call and of all that it queued on the device."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return 1e3 * (time.perf_counter() - start)


def once_host_ms(run: Callable[[], object], *, device: str) -> float:
    """Wall-clock milliseconds until one call returns, the device idle before: what it costs the host."""
    wait(device)
    start = time.perf_counter()
    run()
    returned = time.perf_counter()
    wait(device)
    return 1e3 * (returned - start)


def once_device_ms(run: Callable[[], object], *, device: str) -> float:
    """Milliseconds of one call by the GPU's own clock; on the CPU, by the wall.

    Before it more is overwritten than the GPU's cache holds, so that no call finds its input there. Then the GPU sleeps
    while the host launches the call, so that what the host takes for it, up to `HEAD_START`, does not show.
    """
    if device == "cpu":
        return once_ms(run, device=device)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    _overwritten(device).zero_()
    torch.cuda._sleep(HEAD_START)  # private; but torch has no public way to keep a stream busy for a known time
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


@functools.cache  # made anew, it would be cut from what the calls before have freed
def _overwritten(device: str) -> torch.Tensor:
    return torch.empty(512 * MIB, dtype=torch.uint8, device=device)


def balanced(count: int) -> list[list[int]]:
    """Orders of so many, in all of which together each comes directly behind each other equally often.

    Who comes behind one that heats the GPU finds it slower. The design is E. J. Williams' (1949), for experiments in which
    each treatment carries over into the next.
    """
    first = [(step + 1) // 2 if step % 2 else (count - step // 2) % count for step in range(count)]
    orders = [[(place + shift) % count for place in first] for shift in range(count)]
    return orders if count % 2 == 0 else orders + [order[::-1] for order in orders]


def peak_mb(run: Callable[[], object], *, device: str) -> float:
    """The most memory in MiB that a call held at once, its result with it: what torch's allocator gave out."""
    if device == "cpu":
        from tests.memory import peak_bytes

        return peak_bytes(run) / MIB
    wait(device)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait(device)
    return (torch.cuda.max_memory_allocated() - before) / MIB


def wait(device: str) -> None:
    """Until the device has done what was queued."""
    if device != "cpu":
        torch.cuda.synchronize()


def printed_by(*arguments: str) -> float:
    """The number that a script prints in a fresh process whose compilers find nothing compiled before."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as empty:
        process = subprocess.run(
            [sys.executable, *arguments], check=True, capture_output=True, text=True, env=os.environ | caches(empty)
        )
    return float(process.stdout.split()[-1])


def caches(folder: str) -> dict[str, str]:
    """The environment in which torch's and Triton's compilers keep what they compiled in ``folder``."""
    return {"TORCHINDUCTOR_CACHE_DIR": folder, "TRITON_CACHE_DIR": folder}
