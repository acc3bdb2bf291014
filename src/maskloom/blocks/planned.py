"""What tiles are decided by, written down once and done again from the list.

To decide tiles takes some dozen small operations, and on short sequences Python spends longer on choosing them than
torch on running them. Which they are follows from the mask's structure, its numbers and all shapes: with an equal key the
same list is run on the new tensors.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence

from torch import Tensor

from maskloom.blocks.plan import Plan, Tensors
from maskloom.blocks.writer import written_down
from maskloom.masks.forks import fork_safe_lock
from maskloom.masks.modes import uncompiled

MOST_BYTES = 1 << 26
"""Bytes of constants in all plans that are kept, at most: 64 MiB; the plan unused for longest goes first."""

MOST_BYTES_EACH = 1 << 22
"""Bytes of constants in one plan: 4 MiB, the states of all tiles of a sequence of 256 Ki positions."""

_MOST_KEYS = 256  # that are remembered, with a plan or without

_plans: OrderedDict[Hashable, Plan | bool] = OrderedDict()  # False: there can be none; True: to be written down
_lock = fork_safe_lock()


def planned(
    key: Hashable,
    inputs: Sequence[Tensor],
    compute: Callable[[], Tensors],
    *,
    constants: Iterable[Tensor] = (),
    may_wait: bool = False,
) -> Tensors:
    """``compute()``; from the third time with an equal key on by the plan that the second one wrote down.

    Args:
        key: says everything that ``compute`` depends on but the values in ``inputs``: shapes, strides and dtypes of
            those, devices and the stream, numbers.
        compute: a function of the inputs.
        constants: tensors that it reads as well, which never change.
        may_wait: see `written_down`.
    """
    with _lock:
        plan = _plans.get(key)
        if plan is not None:
            _plans.move_to_end(key)
    if isinstance(plan, Plan):
        return plan.run(inputs)
    if not plan:
        results = compute()
        if plan is None:
            _keep(key, True)
        return results
    results, written = uncompiled(written_down)(compute, inputs, constants, may_wait=may_wait)
    _keep(key, written if written is not None and written.nbytes <= MOST_BYTES_EACH else False)
    return results


def _keep(key: Hashable, plan: Plan | bool) -> None:
    with _lock:
        _plans[key] = plan
        _plans.move_to_end(key)
        while (
            len(_plans) > _MOST_KEYS
            or sum(kept.nbytes for kept in _plans.values() if isinstance(kept, Plan)) > MOST_BYTES
        ):
            _plans.popitem(last=False)
