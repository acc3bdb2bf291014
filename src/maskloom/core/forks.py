"""Fork safety: a child process has one thread, but gets every lock in the state in which its parent's threads held it.

A DataLoader forks its workers while other threads may build masks. So all locks of maskloom are made here, and are free
in a child. Data under these locks changes in single steps, each atomic under Python's lock, so a child can continue
with it. Modules that torch loads at first use take a second, under locks that Python and torch do not free: a fork
waits for them.
"""

import importlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor

T = TypeVar("T")

_LONGEST_WAIT = 60  # seconds that a fork waits for a module that is being loaded: longer than any machine needs

_locks: weakref.WeakSet[Any] = weakref.WeakSet()


def fork_safe_lock() -> Any:
    """A ``threading.RLock`` that is free in a forked child.

    It is reentrant, because the garbage collector may run any code in the thread that holds it.
    """
    lock = threading.RLock()
    _locks.add(lock)
    return lock


class computed_once(Generic[T]):  # noqa: N801 - lower case, like property
    """``functools.cached_property`` without its lock, which in Python 3.11 is shared by all objects."""

    def __init__(self, function: Callable[[Any], T]) -> None:
        self._function = function
        self.__doc__ = function.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @overload
    def __get__(self, held: None, kind: type) -> "computed_once[T]": ...
    @overload
    def __get__(self, held: object, kind: type) -> T: ...
    def __get__(self, held: object | None, kind: type) -> Any:
        if held is None:
            return self
        return held.__dict__.setdefault(self._name, self._function(held))  # later reads find it in __dict__


def ends_along(values: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """The least and the greatest value along a dimension, as ``torch.aminmax`` gives them.

    On a CPU that, and ``max(dim)``, use OpenMP's threads however small the tensor is (torch 2.11 to 2.13), and a forked child
    of a process that has used those threads hangs in them. Other reductions use threads from 32,768 values on.
    """
    if values.device.type == "cpu" and values.numel() < _FEW:
        return values.amin(dim), values.amax(dim)
    least, greatest = torch.aminmax(values, dim=dim)
    return least, greatest


_FEW = 1 << 15


# -- what torch loads at first use -------------------------------------------------------------------------------------

loading = fork_safe_lock()
"""Held while slow modules are imported: a fork waits for it."""

_vmap_is_loaded = False


def load_vmap() -> None:
    """Load what ``torch.vmap`` and ``create_mask`` load at their first call, while no fork can happen."""
    global _vmap_is_loaded
    if torch.compiler.is_dynamo_compiling() or _vmap_is_loaded:
        return
    with loading:
        importlib.import_module("torch._dynamo._trace_wrapped_higher_order_op")
        torch.vmap(torch.neg)(torch.zeros(1, device="cpu"))  # loads decompositions, under torch's own lock
        _vmap_is_loaded = True


class _Fork:
    """The hooks that run around a fork."""

    waited = False  # whether the forking thread holds `loading`

    @classmethod
    def before(cls) -> None:
        cls.waited = loading.acquire(timeout=_LONGEST_WAIT)
        for name in list(_half_loaded()):
            with suppress(Exception):  # the importing thread gets the error
                importlib.import_module(name)  # waits for the thread that imports it

    @classmethod
    def in_parent(cls) -> None:
        if cls.waited:
            loading.release()

    @staticmethod
    def in_child() -> None:
        for lock in list(_locks):
            lock._at_fork_reinit()  # as Python's logging and concurrent.futures do


def _half_loaded() -> Iterator[str]:
    """The torch modules that are being imported (by ``torch.compile``, say): a child could never import them."""
    for name, module in list(sys.modules.items()):
        if name.startswith("torch.") and getattr(getattr(module, "__spec__", None), "_initializing", False):
            yield name


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(before=_Fork.before, after_in_parent=_Fork.in_parent, after_in_child=_Fork.in_child)
