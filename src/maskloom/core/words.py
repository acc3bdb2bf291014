"""Short descriptions of values for error messages."""

import reprlib
from typing import Any

from torch import Tensor

_MOST = 200  # characters


def brief(value: object) -> str:
    """A value in few characters; tensors and arrays by dtype and shape, because their values are not read."""
    return _BRIEF.repr(value)


def brief_name(function: object) -> str:
    """The name of a function or mask, as short as `brief`."""
    name = getattr(function, "__name__", None)
    return brief(function) if not isinstance(name, str) or len(name) > _MOST else name


def what_it_is(value: object) -> str:
    """The name of a value's type; for tensors and arrays also dtype and shape."""
    kind = type(value).__name__
    return f"{kind} {_BRIEF.repr(value)}" if is_array(value) else kind


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = _MOST

    def repr_instance(self, x: Any, level: int) -> str:
        if is_array(x):
            return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        return super().repr_instance(x, level)


def is_array(value: object) -> bool:
    """Whether it is a tensor, or an array of another library."""
    return isinstance(value, Tensor) or (not callable(value) and hasattr(value, "dtype") and hasattr(value, "shape"))


_BRIEF = _Brief()
