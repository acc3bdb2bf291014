"""Results kept beside the object that they were computed from, for as long as it lives unchanged."""

import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from torch import Tensor

R = TypeVar("R")


class Kept:
    """A cache by object identity. An entry goes when its object goes, or when a tensor that it came from was written to.

    Writes are noticed by torch's version counters. Inference-mode tensors have none, so nothing is kept for them.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], tuple[int, ...], dict[Hashable, Any]]] = {}
        self._lock = threading.RLock()

    def get(self, source: object, tensors: list[Tensor], key: Hashable, compute: Callable[[], R]) -> R:
        """``compute()``, or what it gave the last time for this very ``source`` and an equal ``key``.

        Args:
            source: the object to keep the result with.
            tensors: those that the result is computed from.
        """
        if any(tensor.is_inference() for tensor in tensors):
            return compute()
        versions = tuple(tensor._version for tensor in tensors)
        with self._lock:
            entry = self._entries.get(id(source))
            if entry is None or entry[0]() is not source or entry[1] != versions:
                entry = (weakref.ref(source, self._forget(id(source))), versions, {})
                self._entries[id(source)] = entry
        results = entry[2]
        if key not in results:
            results[key] = compute()
        return results[key]

    def _forget(self, address: int) -> Callable[[weakref.ref[Any]], None]:
        def forget(reference: weakref.ref[Any]) -> None:
            with self._lock:
                entry = self._entries.get(address)
                if entry is not None and entry[0] is reference:  # another object may have the address by now
                    del self._entries[address]

        return forget
