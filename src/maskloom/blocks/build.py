"""From a mask to torch's BlockMask: which tiles attention must visit.

Building goes through torch's own ``create_block_mask``, which evaluates the mask for every query and key.
"""

import inspect
from typing import Any

import torch
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from maskloom.masks import captured
from maskloom.masks.algebra import as_mask
from maskloom.masks.dense import MaskMod, checked_length, table_sizes
from maskloom.masks.reading import read

_DEFAULT_BLOCK = 128
_TORCH_TAKES = frozenset(inspect.signature(flex.create_block_mask).parameters)


def block_mask(
    mask: MaskMod,
    q_len: int,
    kv_len: int,
    *,
    batch: int | None = None,
    heads: int | None = None,
    device: torch.device | str | None = None,
    block_size: int | tuple[int, int] = _DEFAULT_BLOCK,
) -> BlockMask:
    """The BlockMask of a mask, with the fewest tables: one for all batch rows, or heads, that the mask treats alike.

    Args:
        mask: a Mask or a mask_mod.
        q_len, kv_len: Q and K, in positions.
        batch, heads: B and H of the tables; by default the smallest that the mask needs. A mask that reads ``b`` through
            a table needs as many rows as the table has; one that computes with ``b`` cannot say, and needs ``batch``.
        device: by default where the mask's tensors are, else torch's current accelerator, else the CPU.
        block_size: positions in a tile, an int or (Q, KV).

    Returns:
        torch's BlockMask, its tables (B or 1, H or 1, query tiles, key tiles).

    Raises:
        TypeError: not a mask. ValueError: a length or block size below 1, or B or H that do not fit the mask's tables.
    """
    return _built(mask, q_len, kv_len, batch, heads, device, block_size, {})


def create_block_mask(
    mask_mod: MaskMod,
    B: int | None,  # noqa: N803 - torch's names
    H: int | None,  # noqa: N803
    Q_LEN: int,  # noqa: N803
    KV_LEN: int,  # noqa: N803
    device: torch.device | str | None = None,
    BLOCK_SIZE: int | tuple[int, int] = _DEFAULT_BLOCK,  # noqa: N803
    _compile: bool = False,
    **torch_options: bool,
) -> BlockMask:
    """torch's ``create_block_mask``: the same arguments, the same tables, and an error where those would be wrong.

    Args:
        mask_mod: a Mask or a mask_mod; the BlockMask keeps it as it is.
        B: batch size. None says that the mask is the same for every batch row: a ValueError if it is not (torch builds
            the tables of row 0 for all rows then, attention-gym#98).
        H: query heads, likewise.
        Q_LEN, KV_LEN: lengths, in positions.
        device: by default where the mask's tensors are, else torch's current accelerator, else the CPU.
        BLOCK_SIZE: positions in a tile, an int or (Q, KV).
        _compile: accepted for torch's sake; there is nothing to compile.
        torch_options: ``separate_full_blocks``, ``compute_dq_write_order``, ``dq_kv_order``, where torch has them (2.11
            does not: a TypeError there that says so).

    Raises:
        TypeError: not a mask_mod, or an option that this torch does not have.
        ValueError: B or H is None and the mask depends on it, or does not fit the tables that it reads.
    """
    unknown = sorted(set(torch_options) - _TORCH_TAKES)
    if unknown:
        raise TypeError(f"torch {torch.__version__} has no create_block_mask({', '.join(unknown)}=); newer ones may")
    _refuse_shared_tables(mask_mod, B, H, device)
    return _built(mask_mod, Q_LEN, KV_LEN, B, H, device, BLOCK_SIZE, torch_options)


def _built(
    mask: MaskMod,
    q_len: int,
    kv_len: int,
    batch: int | None,
    heads: int | None,
    device: torch.device | str | None,
    block_size: int | tuple[int, int],
    torch_options: dict[str, Any],
) -> BlockMask:
    as_mask(mask)  # raises if it is none
    checked_length("q_len", q_len)
    checked_length("kv_len", kv_len)
    sizes = _checked_block_size(block_size)
    device = _device_for(mask, device)
    batch, heads = table_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device=device)
    return flex.create_block_mask(mask, batch, heads, q_len, kv_len, device, sizes, **torch_options)


def _refuse_shared_tables(
    mask_mod: MaskMod, batch: int | None, heads: int | None, device: torch.device | str | None
) -> None:
    as_mask(mask_mod)
    if torch.compiler.is_dynamo_compiling() or (batch is not None and heads is not None):
        return
    reading = read(mask_mod, _device_for(mask_mod, device))
    for letter, index, given, item in (("B", "b", batch, "batch row"), ("H", "h", heads, "head")):
        if given is None and index in reading.marks:
            sizes = sorted(reading.sizes[index])
            which = f"{letter}={sizes[0]}" if len(sizes) == 1 else f"{letter}= their number"
            raise ValueError(
                f"{letter} is None, and the mask's answer can differ from one {item} to another: tables for all of them "
                f"would hold only those of {item} 0; pass {which}"
            )


def _device_for(mask: MaskMod, device: torch.device | str | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    if torch.compiler.is_dynamo_compiling():
        raise ValueError("while torch.compile traces, give the device of the block mask, or build it outside")
    return (
        captured.device_of(mask) or torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    )


def _checked_block_size(block_size: int | tuple[int, int]) -> tuple[int, int]:
    pair = (block_size, block_size) if isinstance(block_size, int) else tuple(block_size)
    if len(pair) != 2 or any(not isinstance(size, int) or isinstance(size, bool) or size < 1 for size in pair):
        raise ValueError(f"the block size is a number of positions, at least 1, or a pair (Q, KV); got {block_size!r}")
    return pair
