"""Times, memory and first calls, measured in one way by every benchmark that can run on a GPU."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

MIB = 2**20


def median_ms(run: Callable[[], object], *, repeats: int, device: str) -> float:
    """Median wall-clock milliseconds of one call and of all that it queued on the device; one call before does not count."""
    run()
    return statistics.median(once_ms(run, device=device) for _ in range(repeats))


def once_ms(run: Callable[[], object], *, device: str) -> float:
    """Wall-clock milliseconds of one call and of all that it queued on the device."""
    wait(device)
    start = time.perf_counter()
    run()
    wait(device)
    return 1e3 * (time.perf_counter() - start)


def event_ms(run: Callable[[], object], *, repeats: int, before: Callable[[], object] = lambda: None) -> float:
    """Median milliseconds between two events around the call on the GPU: what a training step waits for.

    A cache as large as the GPU's second level is overwritten before each call, so that none finds its input there.

    Args:
        before: run outside the clock before each call.
    """
    flushed = torch.empty(256 * MIB, dtype=torch.uint8, device="cuda")
    times = []
    for _ in range(repeats + 1):
        before()
        flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])


def peak_mb(run: Callable[[], object], *, device: str) -> float | None:
    """The most memory in MiB that a call held at once, its result with it; None on the CPU, which does not count."""
    if device == "cpu":
        return None
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
