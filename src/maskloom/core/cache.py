"""Results kept beside the object that they were computed from, for as long as it lives unchanged."""

import operator
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core import captures
from maskloom.core.forks import fork_safe_lock
from maskloom.core.torch_state import can_cache, float_state
from maskloom.core.weak_table import IdentityTable
from maskloom.core.words import brief

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class LRU(Generic[K, R]):
    """At most so many entries; the one unused for longest goes first. Threads may share it.

    Args:
        most: entries.
        most_bytes: of all entries together, or the last one alone; None for any number.
        nbytes: the bytes of an entry.
    """

    def __init__(
        self, most: int, *, most_bytes: int | None = None, nbytes: Callable[[R], int] = lambda entry: 0
    ) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._nbytes = nbytes
        self._entries: OrderedDict[K, R] = OrderedDict()
        self._lock = fork_safe_lock()  # what frees an object runs at any time, and may come here

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> R | None:
        """The entry of an equal key, now the last to go; None if there is none."""
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
            return found

    def put(self, key: K, entry: R) -> None:
        """Keep an entry, in place of the one of an equal key."""
        with self._lock:
            self._entries[key] = entry
            self._entries.move_to_end(key)
            while len(self._entries) > self.most or (len(self._entries) > 1 and self._is_over()):
                self._entries.popitem(last=False)

    def _is_over(self) -> bool:
        if self.most_bytes is None:
            return False
        return sum(map(self._nbytes, self._entries.values())) > self.most_bytes

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._entries.clear()

    def entries(self) -> dict[K, R]:
        """All, from the one that goes first on."""
        with self._lock:
            return dict(self._entries)


MOST = 32
"""Results kept for one object, at most; the one unused for longest goes first."""

MOST_BYTES = 2**28
"""Bytes of tables among them, at most (256 MiB), or the last one alone."""


class _Result(NamedTuple):
    """What was computed, None too."""

    value: Any


def _bytes_of(result: _Result) -> int:
    return getattr(result.value, "nbytes", 0)


@dataclass
class _Entry:
    """What is kept for one object, and what it held when it was kept.

    Attributes:
        held: its tensors and parts. No weak references: torch swaps no tensor that has one (``torch.utils.swap_tensors``),
            and the object holds them itself.
        states: of the tensors; see `_states`.
        own: of the object, where it is a tensor itself.
    """

    held: tuple[Any, ...]
    states: list[Any]
    own: list[Any] = field(default_factory=list)
    results: LRU[Hashable, Any] = field(default_factory=lambda: LRU(MOST, most_bytes=MOST_BYTES, nbytes=_bytes_of))

    def is_of(self, tensors: list[Tensor], parts: tuple[object, ...]) -> bool:
        """Whether the object holds the same tensors and parts, none of them written to since."""
        held = (*tensors, *parts)
        return (
            len(self.held) == len(held) and all(map(operator.is_, self.held, held)) and self.states == _states(tensors)
        )


def _states(tensors: list[Tensor]) -> list[Any]:
    """What changes with a tensor: the count of its writes, and where its values lie, which is elsewhere once it was swapped."""
    return [*map(_written, tensors), *map(Tensor.data_ptr, tensors)]


def _written(tensor: Tensor) -> int | bytes:
    """What a write into a tensor changes. One of inference mode counts no writes: its values."""
    return tensor.numpy().tobytes() if tensor.is_inference() else tensor._version


def _has_state(tensor: Tensor) -> bool:
    """Whether a write into it can be noticed. To look at the values of a tensor on a GPU would wait for the GPU."""
    return not tensor.is_inference() or (tensor.device.type == "cpu" and tensor.nbytes <= _MOST_BYTES_LOOKED_AT)


_MOST_BYTES_LOOKED_AT = 1 << 14  # of a tensor of inference mode, at each call


class OwnerCache:
    """A cache by object identity. An entry goes when its object goes, and counts only while the object is unchanged.

    Unchanged means: it holds the same tensors, and torch's version counters have seen no write to them. Tensors of inference
    mode have no such counter: small ones on the CPU are compared by their values, beside others nothing is kept. Nor is what
    is computed while torch traces or captures, which does not last.
    Objects that can change otherwise (`captured.may_change`) must not be given.
    """

    def __init__(self) -> None:
        self._entries: IdentityTable[_Entry] = IdentityTable()

    def __len__(self) -> int:
        return len(self._entries)

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
        if not can_cache() or (any(map(Tensor.is_inference, tensors)) and not all(map(_has_state, tensors))):
            return compute()
        entry = self._entries.get(source)
        if entry is None or not entry.is_of(tensors, parts):
            entry = _Entry((*tensors, *parts), _states(tensors))
            try:
                self._entries.put(source, entry)
            except TypeError:  # an object with slots and no place for weak references
                return compute()
        found = entry.results.get(key)
        if found is None:
            found = _Result(compute())
            entry.results.put(key, found)
        return cast(R, found.value)

    def get_beside(self, tensor: Tensor, key: Hashable, compute: Callable[[], R]) -> R:
        """`get` for a tensor itself, which its entry must not hold."""
        if not can_cache() or not _has_state(tensor):
            return compute()
        entry, own = self._entries.get(tensor), _states([tensor])
        if entry is None or entry.own != own:
            self._entries.put(tensor, _Entry((), [], own))
        return self.get(tensor, [], key, compute)

    def results(self, source: object) -> dict[Hashable, Any]:
        """What is kept for an object."""
        entry = self._entries.get(source)
        return {} if entry is None else {key: found.value for key, found in entry.results.entries().items()}


_kept = OwnerCache()


def cached_with(source: Any, key: Hashable, compute: Callable[[], R], *, functions_too: bool = False) -> R:
    """``compute()``, kept with a mask or BlockMask unless that holds what may change unseen, as functions do.

    Args:
        source: what the result is computed from.
        key: what else it is computed from, but for torch's settings for floating-point numbers.
        functions_too: keep it also then: the result does not depend on what functions read.
    """
    if torch.compiler.is_dynamo_compiling():
        return compute()
    mask = source.mask_mod if isinstance(source, BlockMask) else source
    known = captures.facts_of(mask)
    if known.may_change and not functions_too:
        return compute()
    parts = (mask,) if isinstance(source, BlockMask) else ()
    return _kept.get(source, [*known.tensors, *_tables_of(source)], (key, float_state()), compute, parts=parts)


def mark_changed(*changed: Any) -> None:
    """Say that tensors were written to where torch does not see it, so that nothing that was made of them before is used again.

    `attend` keeps with a mask what it builds from it, and builds it anew when torch's version counters show a write into a
    tensor of the mask. These ways of writing leave the counters alone: gloo's ``broadcast``, ``all_reduce``, ``scatter`` and
    ``recv``, replays of a CUDA graph, NumPy and DLPack arrays that share memory, ``tensor.data``, and
    ``tensor.untyped_storage().copy_``. After one of them call this once, on each process that received:
    ``torch.distributed.broadcast(lens, src=0)``, and then ``maskloom.masks.mark_changed(lens)``.

    A mask that has copied a tensor (`documents` of offsets: its docstring says so) does not see writes at all: make it
    anew. The tables of a BlockMask that you hold are those of the time when it was built: build or `update_` it.

    Args:
        changed: tensors; or masks, mask_mods, score_mods or BlockMasks, whose tensors all count as changed.

    Raises:
        TypeError: something that holds no tensor, and is no mask or score_mod.
    """
    tensors = [tensor for one in changed for tensor in ([one] if isinstance(one, Tensor) else _all_held(one))]
    torch.autograd.graph.increment_version(tensors)


def _all_held(held: Any) -> list[Tensor]:
    if not callable(held) and not isinstance(held, (BlockMask, list, tuple, dict)):
        raise TypeError(
            f"mark_changed takes tensors, masks, score_mods and BlockMasks; got {type(held).__name__}: {brief(held)}"
        )
    return tensors_of(held)


def keep_beside(tensor: Tensor, key: Hashable, compute: Callable[[], R]) -> R:
    """``compute()``, kept with a tensor, which it must not hold, until that is written to."""
    return _kept.get_beside(tensor, key, compute)


def tensors_of(source: Any) -> list[Tensor]:
    """The tensors that a mask, mask_mod or BlockMask holds, those of the BlockMask's tables by keys among them."""
    return captures.tensors(source.mask_mod if isinstance(source, BlockMask) else source) + _tables_of(source)


def _tables_of(source: Any) -> list[Tensor]:
    if not isinstance(source, BlockMask):
        return []
    tables = (source.kv_num_blocks, source.kv_indices, source.full_kv_num_blocks, source.full_kv_indices)
    return [table for table in tables if table is not None]
