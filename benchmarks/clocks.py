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


def device_ms(
    run: Callable[[], object], *, repeats: int, device: str, before: Callable[[], object] = lambda: None
) -> float:
    """Median milliseconds of a call by the GPU's own clock; on the CPU, by the wall.

    Before each call 2 GiB are overwritten: no call finds its input in the GPU's cache, and the host gets so far ahead that
    the time it takes to launch does not show.

    Args:
        before: run before each call, outside the clock.
    """
    if device == "cpu":
        return statistics.median(_once_after(before, run, device) for _ in range(repeats + 1))
    flushed = torch.empty(2048 * MIB, dtype=torch.uint8, device=device)
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


def _once_after(before: Callable[[], object], run: Callable[[], object], device: str) -> float:
    before()
    return once_ms(run, device=device)


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
