"""Results kept beside the object that they were computed from, for as long as it lives unchanged."""

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.masks import captured
from maskloom.masks.modes import is_lasting

R = TypeVar("R")

MOST = 8
"""Results kept for one object, at most; the one unused for longest goes first."""


@dataclass
class _Entry:
    """What is kept for one object, and what it was when it was kept."""

    source: weakref.ref[Any]
    state: tuple[tuple[weakref.ref[Tensor], int], ...]
    parts: tuple[weakref.ref[Any], ...]
    results: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)

    def is_of(self, source: object, tensors: list[Tensor], parts: tuple[object, ...]) -> bool:
        """Whether this is the same object, holding the same parts and tensors, none of them written to since."""
        return (
            self.source() is source
            and len(self.state) == len(tensors)
            and all(
                ref() is tensor and at == tensor._version for (ref, at), tensor in zip(self.state, tensors, strict=True)
            )
            and all(ref() is part for ref, part in zip(self.parts, parts, strict=True))
        )


class Kept:
    """A cache by object identity. An entry goes when its object goes, and counts only while the object is unchanged.

    Unchanged means: it holds the same tensors, and torch's version counters have seen no write to them. Inference-mode
    tensors have no such counter, and what is computed while torch traces or captures does not last: then nothing is kept.
    Objects that can change otherwise (`captured.may_change`) must not be given.
    """

    def __init__(self) -> None:
        self._entries: dict[int, _Entry] = {}
        self._lock = threading.RLock()

    def get(
        self,
        source: object,
        tensors: list[Tensor],
        key: Hashable,
        compute: Callable[[], R],
        *,
        parts: tuple[object, ...] = (),
    ) -> R:
        """``compute()``, or what it gave the last time for this very ``source`` and an equal ``key``.

        Args:
            source: the object to keep the result with. The result must not hold it, or neither would ever go.
            tensors: those that the result is computed from.
            parts: objects that ``source`` could come to hold others in place of.
        """
        if not is_lasting() or any(tensor.is_inference() for tensor in tensors):
            return compute()
        with self._lock:
            entry = self._entries.get(id(source))
            if entry is None or not entry.is_of(source, tensors, parts):
                try:
                    entry = self._begun(source, tensors, parts)
                except TypeError:  # an object with slots and no place for weak references
                    return compute()
            if key in entry.results:
                entry.results.move_to_end(key)
                return entry.results[key]
        result = compute()
        with self._lock:
            entry.results[key] = result
            while len(entry.results) > MOST:
                entry.results.popitem(last=False)
        return result

    def _begun(self, source: object, tensors: list[Tensor], parts: tuple[object, ...]) -> _Entry:
        state = tuple((weakref.ref(tensor), tensor._version) for tensor in tensors)
        entry = _Entry(weakref.ref(source, self._forget(id(source))), state, tuple(map(weakref.ref, parts)))
        self._entries[id(source)] = entry
        return entry

    def _forget(self, address: int) -> Callable[[weakref.ref[Any]], None]:
        def forget(reference: weakref.ref[Any]) -> None:
            with self._lock:
                entry = self._entries.get(address)
                if entry is not None and entry.source is reference:  # another object may have the address by now
                    del self._entries[address]

        return forget


_kept = Kept()


def keep(source: Any, key: Hashable, compute: Callable[[], R], *, functions_too: bool = False) -> R:
    """``compute()``, kept with a mask or BlockMask unless that holds what may change unseen, as functions do.

    Args:
        source: what the result is computed from.
        key: what else it is computed from.
        functions_too: keep it also then: the result does not depend on what functions read.
    """
    mask = source.mask_mod if isinstance(source, BlockMask) else source
    if torch.compiler.is_dynamo_compiling() or (captured.may_change(mask) and not functions_too):
        return compute()
    parts = (mask,) if isinstance(source, BlockMask) else ()
    return _kept.get(source, tensors_of(source), key, compute, parts=parts)


def tensors_of(source: Any) -> list[Tensor]:
    """The tensors that a mask, mask_mod or BlockMask holds, those of the BlockMask's tables by keys among them."""
    if not isinstance(source, BlockMask):
        return captured.tensors(source)
    tables = (source.kv_num_blocks, source.kv_indices, source.full_kv_num_blocks, source.full_kv_indices)
    return captured.tensors(source.mask_mod) + [table for table in tables if table is not None]
