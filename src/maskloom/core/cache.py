"""Results cached beside the object that they were computed from, as long as that object lives unchanged."""

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
from maskloom.core.torch_state import can_cache, counting_writes, float_state
from maskloom.core.weak_table import IdentityTable
from maskloom.core.words import brief

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class LRU(Generic[K, R]):
    """A cache with a maximum number of entries; it drops the least recently used first. Threads may share it.

    Args:
        most: maximum number of entries.
        most_bytes: maximum bytes of all entries together (the last entry always stays); None for no limit.
        nbytes: returns the bytes of an entry.
        lock: a `fork_safe_lock` that caches share, if many are made: one lock takes longer to make than a cache.
    """

    def __init__(
        self,
        most: int,
        *,
        most_bytes: int | None = None,
        nbytes: Callable[[R], int] = lambda entry: 0,
        lock: Any = None,
    ) -> None:
        self.most, self.most_bytes = most, most_bytes
        self._nbytes = nbytes
        self._entries: OrderedDict[K, tuple[R, int]] = OrderedDict()  # with its bytes: a fork must find both or none
        self._last_is_over = False  # an entry that is alone larger than allowed stays only until the next
        self._lock = lock or fork_safe_lock()  # the garbage collector runs at any time, and may call this object

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K) -> R | None:
        """The entry of an equal key, or None. The entry becomes the most recently used."""
        with self._lock:
            found = self._entries.get(key)
            if found is None:
                return None
            self._entries.move_to_end(key)
            return found[0]

    def put(self, key: K, entry: R) -> None:
        """Store an entry; it replaces the entry of an equal key."""
        stored = entry, self._nbytes(entry)
        with self._lock:
            self._entries[key] = stored
            self._entries.move_to_end(key)
            while len(self._entries) > self.most:
                self._entries.popitem(last=False)
            if self.most_bytes is not None and (
                stored[1] or self._last_is_over
            ):  # else there are no more bytes than before
                while len(self._entries) > 1 and self._bytes() > self.most_bytes:
                    self._entries.popitem(last=False)
                self._last_is_over = stored[1] > self.most_bytes

    def _bytes(self) -> int:
        return sum([size for _, size in self._entries.values()])

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._entries.clear()

    def entries(self) -> dict[K, R]:
        """All entries, the least recently used first."""
        with self._lock:
            return {key: entry for key, (entry, _) in self._entries.items()}


MOST = 32
"""Maximum number of results cached for one object; the least recently used is dropped first."""

MOST_BYTES = 2**28
"""Maximum bytes of the tables among these results (256 MiB); the last result always stays."""


class _Result(NamedTuple):
    """A cached result, which may be None."""

    value: Any


def _bytes_of(result: _Result) -> int:
    return getattr(result.value, "nbytes", 0)


_lock_of_entries = fork_safe_lock()


@dataclass
class _Entry:
    """The cached results of one object, and what the object held when they were computed.

    Attributes:
        held: its tensors and parts. These are not weak references: ``torch.utils.swap_tensors`` refuses a tensor that
            has one. The object holds them itself anyway.
        states: the states of the tensors; see `_states`.
        own: the state of the object itself, if it is a tensor.
    """

    held: tuple[Any, ...]
    states: list[Any]
    own: list[Any] = field(default_factory=list)
    results: LRU[Hashable, Any] = field(
        default_factory=lambda: LRU(MOST, most_bytes=MOST_BYTES, nbytes=_bytes_of, lock=_lock_of_entries)
    )

    def is_of(self, tensors: list[Tensor], parts: tuple[object, ...]) -> bool:
        """Whether the object still holds the same tensors and parts, and no tensor was written to."""
        held = (*tensors, *parts)
        return (
            len(self.held) == len(held) and all(map(operator.is_, self.held, held)) and self.states == _states(tensors)
        )


def _states(tensors: list[Tensor]) -> list[Any]:
    """What changes when a tensor changes: its count of writes, and its data pointer, which differs after a swap."""
    return [*map(_written, tensors), *map(Tensor.data_ptr, tensors)]


def _written(tensor: Tensor) -> int | bytes:
    """The version counter of a tensor. An inference-mode tensor has none: its values as bytes."""
    if not tensor.is_inference():
        return tensor._version
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes()  # NumPy has no bfloat16


def _has_state(tensor: Tensor) -> bool:
    """Whether a write into it can be noticed. Values on a GPU are not read, because that would wait for the GPU."""
    return not tensor.is_inference() or (tensor.device.type == "cpu" and tensor.nbytes <= _MOST_BYTES_LOOKED_AT)


_MOST_BYTES_LOOKED_AT = 1 << 14  # maximum size of an inference-mode tensor that is compared at each call


class OwnerCache:
    """A cache by object identity. An entry is dropped with its object, and is valid only while the object is unchanged.

    Unchanged means: it holds the same tensors, and torch's version counters show no write to them. Inference-mode
    tensors have no such counter: small ones on the CPU are compared by value; with others nothing is cached. Nothing is
    cached while torch traces or captures a CUDA graph either, because those results do not last. Do not pass objects
    that can change in another way (`captures.may_change`).
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
        in_mode: bool = False,
    ) -> R:
        """``compute()``, or its cached result for this very ``source`` and an equal ``key``.

        In inference mode ordinary tensors are computed: what is kept may be used in training, too.

        Args:
            source: the object that owns the result. The result must not hold it, or neither would ever be freed.
            tensors: the tensors that the result is computed from.
            parts: objects that ``source`` holds now, and could replace by others.
            in_mode: compute in inference mode where that is on; the key says so.
        """
        if not can_cache() or (any(map(Tensor.is_inference, tensors)) and not all(map(_has_state, tensors))):
            return compute()
        entry = self._entries.get(source)
        if entry is None or not entry.is_of(tensors, parts):
            entry = _Entry((*tensors, *parts), _states(tensors))
            try:
                self._entries.put(source, entry)
            except TypeError:  # an object with slots and without ``__weakref__``
                return compute()
        return _result(entry, key, compute, in_mode)

    def get_beside(self, tensor: Tensor, key: Hashable, compute: Callable[[], R]) -> R:
        """`get` for a tensor itself; the entry must not hold that tensor."""
        if not can_cache() or not _has_state(tensor):
            return compute()
        entry, own = self._entries.get(tensor), _states([tensor])
        if entry is None or entry.own != own:
            entry = _Entry((), [], own)
            self._entries.put(tensor, entry)
        return _result(entry, key, compute)

    def results(self, source: object) -> dict[Hashable, Any]:
        """The results cached for an object."""
        entry = self._entries.get(source)
        return {} if entry is None else {key: found.value for key, found in entry.results.entries().items()}


def _result(entry: _Entry, key: Hashable, compute: Callable[[], R], in_mode: bool = False) -> R:
    found = entry.results.get(key)
    if found is None:
        plainly = in_mode or not torch.is_inference_mode_enabled()
        found = _Result(compute() if plainly else counting_writes(compute)())
        entry.results.put(key, found)
    return cast(R, found.value)


_kept = OwnerCache()


def cached_with(
    source: Any,
    key: Hashable,
    compute: Callable[[], R],
    *,
    functions_too: bool = False,
    in_mode: bool = False,
    facts: captures.Facts | None = None,
) -> R:
    """``compute()``, cached with a mask or BlockMask, unless that holds objects that may change unseen (functions do).

    Args:
        source: what the result is computed from.
        key: the other inputs of the result, except torch's floating-point settings.
        functions_too: cache it even then, because the result does not depend on what functions read.
        in_mode: see `OwnerCache.get`.
        facts: of the mask, where they are known.
    """
    if torch.compiler.is_dynamo_compiling():
        return compute()
    mask = source.mask_mod if isinstance(source, BlockMask) else source
    known = captures.facts_of(mask) if facts is None else facts
    if known.may_change and not functions_too:
        return compute()
    parts = (mask,) if isinstance(source, BlockMask) else ()
    return _kept.get(
        source, [*known.tensors, *_tables_of(source)], (key, float_state()), compute, parts=parts, in_mode=in_mode
    )


def mark_changed(*changed: object) -> None:
    """Report writes to tensors that torch does not see, so that no result computed from the old values is used again.

    `attend` caches with a mask what it builds from it, and builds it again when torch's version counters show a write
    into a tensor of the mask. These ways of writing do not change the counters: gloo's ``broadcast``, ``all_reduce``,
    ``scatter`` and ``recv``, replays of a CUDA graph, NumPy and DLPack arrays that share memory, ``tensor.data``, and
    ``tensor.untyped_storage().copy_``. After one of them, call this once on each process that received values:
    ``torch.distributed.broadcast(lens, src=0)``, and then ``maskloom.masks.mark_changed(lens)``.

    A mask that has copied a tensor (`documents` with offsets: its docstring says so) never sees writes: make a new
    mask. The tables of a BlockMask that you hold were computed when it was built: build it again, or `update_` it.

    Args:
        changed: tensors; or masks, mask_mods, score_mods or BlockMasks, whose tensors are all marked as changed.

    Raises:
        TypeError: an argument that holds no tensor, and is not a mask or score_mod.
    """
    tensors = [tensor for one in changed for tensor in ([one] if isinstance(one, Tensor) else _all_held(one))]
    torch.autograd.graph.increment_version(tensors)


def _all_held(held: object) -> list[Tensor]:
    if not callable(held) and not isinstance(held, (BlockMask, list, tuple, dict)):
        raise TypeError(
            f"mark_changed takes tensors, masks, score_mods and BlockMasks; got {type(held).__name__}: {brief(held)}"
        )
    return tensors_of(held)


def keep_beside(tensor: Tensor, key: Hashable, compute: Callable[[], R]) -> R:
    """``compute()``, cached with a tensor until the tensor is written to. The result must not hold the tensor."""
    return _kept.get_beside(tensor, key, compute)


def tensors_of(source: Any) -> list[Tensor]:
    """The tensors that a mask, mask_mod or BlockMask holds, and a BlockMask's tables by keys."""
    return captures.tensors(source.mask_mod if isinstance(source, BlockMask) else source) + _tables_of(source)


def _tables_of(source: Any) -> list[Tensor]:
    if not isinstance(source, BlockMask):
        return []
    tables = (source.kv_num_blocks, source.kv_indices, source.full_kv_num_blocks, source.full_kv_indices)
    return [table for table in tables if table is not None]
