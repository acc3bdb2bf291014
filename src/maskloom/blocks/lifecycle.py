"""Operations on existing BlockMasks: move to another device, pin, update in place, cache."""

import copy
from collections.abc import Callable, Hashable
from typing import Never

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.build import block_mask as build_block_mask
from maskloom.core import captures
from maskloom.core.block_masks import checked_block_mask, made_of_mask, says_its_mask, with_write_order
from maskloom.core.cache import LRU
from maskloom.core.checks import as_int, check_flags, count
from maskloom.core.forks import fork_safe_lock
from maskloom.core.host_count import uncounted
from maskloom.core.torch_state import counting_writes, float_state
from maskloom.core.weak_table import IdentityTable
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask
from maskloom.masks.simplify import simplify
from maskloom.program.program import MaskMod


@counting_writes
def to_device(block_mask: BlockMask, device: torch.device | str, *, non_blocking: bool = False) -> BlockMask:
    """The BlockMask on ``device`` with all tensors that its mask_mod captures; ``BlockMask.to`` does not move those.

    Args:
        non_blocking: the host does not wait for copies from pinned memory to a GPU (see `pin_memory`); work that is
            queued there later does.

    Raises:
        TypeError: not a BlockMask (move a mask with ``mask.to``), or no device. ValueError: there is no such device.
    """
    check_flags(non_blocking=non_blocking)
    there = captures.checked_device(device)
    return _changed(block_mask, lambda tensor: tensor.to(there, non_blocking=non_blocking))


def pin_memory(block_mask: BlockMask) -> BlockMask:
    """The BlockMask in page-locked memory, with all tensors that its mask_mod captures. The host then does not wait for the
    copy in ``to_device(.., non_blocking=True)``.

    ``DataLoader(pin_memory=True)`` does not pin a BlockMask, since it is no container that torch knows. But it calls
    the method ``pin_memory`` of a batch of your own class, in a separate thread: call this function there.

    Raises:
        TypeError: not a BlockMask. RuntimeError: torch finds no accelerator, or the tensors are not on the CPU.
    """
    return _changed(block_mask, Tensor.pin_memory)


def _changed(block_mask: BlockMask, change: Callable[[Tensor], Tensor]) -> BlockMask:
    """A BlockMask with changed tensors: its tables and the tensors that its mask_mod captures."""
    changed = copy.copy(checked_block_mask(block_mask))
    for name, value in vars(block_mask).items():
        if isinstance(value, Tensor):
            setattr(changed, name, change(value))
    changed.mask_mod = captures.copied(block_mask.mask_mod, change)
    return made_of_mask(changed) if says_its_mask(block_mask) else changed


def updatable(block_mask: BlockMask) -> BlockMask:
    """A copy of a BlockMask with its own memory for tables and captured tensors, into which `update_` can write.

    Call it before a CUDA graph is captured: the graph keeps reading the memory that it was captured with: the memory of
    the tables and, inside partial tiles, of the mask's tensors. A BlockMask that was pickled or moved must be made
    updatable again.

    Raises:
        TypeError: not a BlockMask.
    """
    own = _changed(block_mask, lambda tensor: tensor.clone(memory_format=torch.contiguous_format))
    own.mask_mod = uncounted(own.mask_mod)
    if captures.tensors(own.mask_mod):
        _owned.put(own.mask_mod, True)
    return own


_owned: IdentityTable[bool] = IdentityTable()  # mask_mods whose tensors belong to the BlockMask alone


def update_(block_mask: BlockMask, mask: MaskMod) -> BlockMask:
    """Write a mask's tables and tensors into a BlockMask in place: for a captured CUDA graph, which reads fixed memory.

    Later attention with the BlockMask, also in a captured graph, uses ``mask``. Only values may differ from the
    BlockMask's own mask: a graph keeps computing what was captured, so operations, numbers and shapes stay. Pass
    numbers that change as tensors: ``prefix([3])``, ``shifted(causal, q_offset=tensor)``. Nothing is written into your
    tensors: if the mask's tensors are to change, the BlockMask must have its own, from `updatable`. The BlockMask does
    not hold ``mask``.

    Tiles that intervals cannot decide are partial (``exact=False``), so this does not wait for the device.

    Args:
        block_mask: the BlockMask to write into; its lengths, block size, B and H stay.
        mask: a Mask or a mask_mod, of the same kind as the one that it was built from.

    Returns:
        ``block_mask`` itself.

    Raises:
        TypeError: not a BlockMask. ValueError: a mask of another structure, or with other numbers or shapes; a mask
            with other tensors, if the BlockMask has no own copies; no full tables (``separate_full_blocks=False``); a
            write order by an order of keys in a tensor. Also the errors of `block_mask`. Nothing is written then.
    """
    _check_tables(block_mask)
    writes = _writes_into(block_mask.mask_mod, mask)
    batch, heads = block_mask.kv_indices.shape[:2]
    new = build_block_mask(
        mask,
        *block_mask.seq_lengths,
        batch=batch,
        heads=heads,
        device=block_mask.kv_indices.device,
        block_size=block_mask.BLOCK_SIZE,
        exact=False,
    )
    if getattr(block_mask, "dq_write_order", None) is not None:
        with_write_order(new, bool(block_mask.dq_kv_order_spt))
    for name, value in vars(new).items():
        if isinstance(value, Tensor):
            getattr(block_mask, name).copy_(value)
    for own, value in writes:
        own.copy_(value)
    return block_mask


def _check_tables(block_mask: BlockMask) -> None:
    if not isinstance(block_mask, BlockMask):
        raise TypeError(f"update_ writes into a BlockMask; got {brief(block_mask)} of type {type(block_mask).__name__}")
    if block_mask.full_kv_indices is None:
        raise ValueError("the block mask has no full tables to write into; build it with separate_full_blocks=True")
    if isinstance(getattr(block_mask, "dq_kv_order", None), Tensor):
        raise ValueError("the block mask has its dq_kv_order in a tensor, and torch makes write orders of a bool alone")


def _writes_into(held: MaskMod, mask: MaskMod) -> list[tuple[Tensor, Tensor]]:
    """Pairs (tensor of a BlockMask's mask_mod, new value of it) for the tensors in which another mask differs.

    Raises:
        ValueError: the masks are not of one kind, or the tensors do not belong to the BlockMask.
    """
    forms = (mask, simplify(mask)) if isinstance(mask, Mask) else (mask,)
    alike = next((form for form in forms if _kind(form) == _kind(held)), None)
    if alike is None:
        raise ValueError(
            "update_ changes the values of tensors alone: what reads the block mask in a captured graph goes on computing "
            f"{brief(held)}, and {brief(mask)} has other operations, numbers, shapes or dtypes; build another block mask, or make the "
            "numbers tensors (prefix([3]), shifted(..., q_offset=tensor))"
        )
    pairs = zip(captures.tensors(held), captures.tensors(alike), strict=True)
    writes = [(own, value) for own, value in pairs if own is not value]
    if writes and not _owned.get(held):
        raise ValueError(
            f"the block mask's {brief(held)} holds tensors that may be yours, and are not written into: build it as "
            "updatable(block_mask(...)), which copies them, and capture that"
        )
    return writes


def _kind(mask: MaskMod) -> Hashable:
    """What stays the same when a mask's values change."""
    return captures.structure(mask, numbers=True), tuple(tensor.shape for tensor in captures.tensors(mask))


class BlockMaskCache:
    """A cache of block masks by mask, lengths, block size and device; the caller makes, owns and clears it.

    It accepts only masks without tensors: tensors could be compared only by their values, and reading those would cost
    more than building. Threads may share a cache, and wait for each other while it builds. It does not pickle: each
    process has its own. A plain function in a mask (`as_mask`) is compared by identity, and must not change.

    Args:
        size: maximum number of block masks; the least recently used is dropped first.

    Raises:
        TypeError: not an int. ValueError: a size below 1.
    """

    def __init__(self, size: int = 64) -> None:
        self._cached: LRU[Hashable, BlockMask] = LRU(count("size", size, least=1, of="block masks"))
        self._lock = fork_safe_lock()

    def __len__(self) -> int:
        return len(self._cached)

    def __reduce__(self) -> Never:
        raise TypeError("cannot pickle a BlockMaskCache: each process makes its own")

    def clear(self) -> None:
        """Remove all block masks."""
        self._cached.clear()

    def get(
        self,
        mask: Mask,
        q_len: int,
        kv_len: int,
        *,
        batch: int | None = None,
        heads: int | None = None,
        device: torch.device | str | None = None,
        block_size: int | tuple[int, int] = 128,
    ) -> BlockMask:
        """The result of `block_mask` for the same arguments; an equal call returns the same object.

        Raises:
            TypeError: not a Mask. ValueError: the mask holds tensors. Also the errors of `block_mask`.
        """
        if not isinstance(mask, Mask):
            raise TypeError(f"a cache keeps Masks, which have equality; got {type(mask).__name__}, wrap it in as_mask")
        if captures.tensors(mask):
            raise ValueError(
                f"a cache keeps masks without tensors, and {brief(mask)} holds some; build it with block_mask"
            )
        pair = tuple(block_size) if isinstance(block_size, list) else as_int(block_size)
        q_len, kv_len, batch, heads = map(as_int, (q_len, kv_len, batch, heads))
        key = (mask, q_len, kv_len, batch, heads, str(device), pair, float_state())
        with self._lock:
            found = self._cached.get(key)
            if found is None:
                found = build_block_mask(
                    mask, q_len, kv_len, batch=batch, heads=heads, device=device, block_size=block_size
                )
                self._cached.put(key, found)
            return found
