"""Launch Triton kernels at little cost to the host.

At each launch Triton finds out which of its compiled kernels the arguments ask for: of 25 arguments, that takes the host longer
than the launch. Here a few facts of the arguments lead to the compiled kernel, which is then launched by itself, as Triton's
tutorials do.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.core.torch_state import is_tracing

_MOST_KINDS = 512  # of arguments of one kernel, that are kept


def can_launch(tensor: Tensor) -> bool:
    """Whether a Triton kernel may run on a tensor, in place of torch's operations.

    That needs Triton to be loaded, by compiled attention for one: to load it and compile takes seconds, too long for a table alone.
    """
    return tensor.device.type == "cuda" and not is_tracing() and type(tensor) is Tensor and "triton" in sys.modules


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """A context to launch in: Triton launches on the current device."""
    return nullcontext() if tensor.device.index == torch.cuda.current_device() else torch.cuda.device_of(tensor)


class _Compiled(NamedTuple):
    """A compiled kernel, and the constants that stand behind the other arguments."""

    on: Callable[[tuple[int, int, int]], Callable[..., None]]
    constants: tuple[Any, ...]


class Launches:
    """Launches a kernel; which one it is in compiled form is found out once for arguments of one kind.

    Arguments are of one kind if Triton compiles the same for them: tensors of the same dtypes, whose addresses are multiples of 16
    or not, and numbers that are 1 or not, multiples of 16 or not, and fit into 32 bits or not.

    Args:
        kernel: what ``triton.jit`` made. Its arguments are tensors, then numbers, then constants.
    """

    def __init__(self, kernel: Any) -> None:
        self._kernel = kernel
        self._known: dict[object, _Compiled] = {}

    def __call__(
        self,
        grid: tuple[int, int, int],
        tensors: Sequence[Tensor],
        numbers: Sequence[int | float],
        constants: Mapping[str, Any],
    ) -> None:
        """Launch on the current device and stream.

        Args:
            constants: the kernel's constants by name, and Triton's options, ``num_warps`` for one. Always the same names, in
                the same order.
        """
        kind = (
            torch.cuda.current_device(),
            tuple([(tensor.dtype, tensor.data_ptr() & 15 == 0) for tensor in tensors]),
            tuple([_kind_of(number) for number in numbers]),
            tuple(constants.values()),
        )
        known = self._known.get(kind)
        if known is not None:
            known.on(grid)(*tensors, *numbers, *known.constants)
            return
        compiled = self._kernel[grid](*tensors, *numbers, **constants)
        if _can_be_launched(compiled):
            if len(self._known) >= _MOST_KINDS:
                self._known.clear()
            of_kernel = [constants[name] for name in self._kernel.arg_names if name in constants]
            self._known[kind] = _Compiled(compiled.__getitem__, tuple(of_kernel))


def _kind_of(number: int | float) -> object:
    """What Triton's kernels know of a number."""
    if isinstance(number, int):
        return number == 1, number & 15 == 0, -(1 << 31) <= number < 1 << 31, number < 1 << 63
    return float


def _can_be_launched(compiled: Any) -> bool:
    """Whether this is a compiled kernel. (Triton's interpreter gives None, and what still compiles a promise.)

    Of AMD's GPUs Triton asks more: whether an offset into a tensor fits into 32 bits.
    """
    return type(compiled).__name__ == "CompiledKernel" and torch.version.hip is None
