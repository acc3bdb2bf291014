"""How much memory a call holds at one time, in bytes that torch's CPU allocator has given out since it began."""

from collections.abc import Callable
from itertools import accumulate

from torch.profiler import ProfilerActivity, profile


def peak_bytes(run: Callable[[], object]) -> int:
    """The most bytes that ``run()`` held at one time beyond those held before it: what operations use inside counts."""
    run()  # what is kept from the first call on is not its cost
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as seen:
        run()
    assert seen.profiler is not None and seen.profiler.kineto_results is not None
    changes = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    changes.sort(key=lambda event: event.start_ns())
    return max(accumulate(event.nbytes() for event in changes))
