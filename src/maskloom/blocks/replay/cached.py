"""Record the operations that classify tiles once, and replay them.

Classifying tiles takes some dozens of small operations, and on short sequences Python needs more time to choose them
than torch to run them. The operations depend on the mask's structure, its numbers and all shapes: for an equal key the
recorded list is run on the new tensors.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Literal

from torch import Tensor

from maskloom.blocks.replay.plan import ReplayPlan, Tensors
from maskloom.blocks.replay.recorder import record_replay
from maskloom.core.cache import LRU
from maskloom.core.torch_state import uncompiled

MOST_KINDS = 1024
"""Maximum number of plans, or recipes, in a cache. Batches of other lengths need others; each takes some 20 to 50 KiB of Python's objects."""

MOST_BYTES = 1 << 26
"""Maximum bytes of constants in all cached plans: 64 MiB; the least recently used plan is dropped first."""

MOST_BYTES_EACH = 1 << 22
"""Maximum bytes of constants in one plan: 4 MiB, the states of all tiles of a sequence of 256 Ki positions."""

_Known = ReplayPlan | Literal["second time", "no plan"]


def _bytes_of(known: _Known) -> int:
    return known.nbytes if isinstance(known, ReplayPlan) else 0


_plans: LRU[Hashable, _Known] = LRU(MOST_KINDS, most_bytes=MOST_BYTES, nbytes=_bytes_of)


def replay(
    key: Hashable,
    inputs: Sequence[Tensor],
    compute: Callable[[], Tensors],
    *,
    constants: Iterable[Tensor] = (),
    may_wait: bool = False,
) -> Tensors:
    """``compute()``. The second call with an equal key records a plan; later calls replay it.

    Args:
        key: everything that ``compute`` depends on, except the values in ``inputs``: their shapes, strides and dtypes,
            the devices and the stream, numbers.
        compute: a function of the inputs.
        constants: other tensors that it reads, which never change.
        may_wait: see `record_replay`.
    """
    plan = _plans.get(key)
    if isinstance(plan, ReplayPlan):
        return plan.run(inputs)
    if plan != "second time":
        results = compute()
        if plan is None:
            _plans.put(key, "second time")
        return results
    results, recorded = uncompiled(record_replay)(compute, inputs, constants, may_wait=may_wait)
    _plans.put(key, recorded if recorded is not None and recorded.nbytes <= MOST_BYTES_EACH else "no plan")
    return results
