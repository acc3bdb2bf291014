"""Build torch's BlockMask from a mask: classify the tiles, and write the index tables.

The mask is run once on scalars (`program.record`), and its program on intervals (`analyse`). Elements are evaluated
only where intervals cannot decide (`classify`). Nothing is compiled, and no tensor of size Q×KV is made.
"""

import functools
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.construct import Recipe, recipe_of
from maskloom.blocks.grid import Wanted, checked_sizes
from maskloom.blocks.replay.kinds import built_like
from maskloom.blocks.traced import TORCH_TAKES, traced
from maskloom.core import captures
from maskloom.core.block_masks import made_of_mask, with_write_order
from maskloom.core.checks import as_int, check_flags, end_of, is_zero, may_be_negative, position_offsets
from maskloom.masks.algebra import Mask, as_mask
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.masks.patterns.shift import shifted
from maskloom.masks.simplify import simplified, simplify
from maskloom.program.mask_program import program_of
from maskloom.program.program import MaskMod

Side = Literal["q_idx", "kv_idx"]

_DEFAULT_BLOCK = 128


def block_mask(
    mask: MaskMod | Tensor,
    q_len: int,
    kv_len: int,
    *,
    batch: int | None = None,
    heads: int | None = None,
    device: torch.device | str | None = None,
    block_size: int | tuple[int, int] = _DEFAULT_BLOCK,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    exact: bool = True,
) -> BlockMask:
    """The BlockMask of a mask, with the fewest tables: one for all batch rows, or heads, if the mask is the same for them.

    Args:
        mask: a Mask or a mask_mod; or a table for these queries and keys, as in `attend`: bool (Q, K), (B, Q, K) or
            (B, H, Q, K), True = may attend.
        q_len, kv_len: Q and K, in positions.
        batch, heads: B and H of the tables; by default the smallest that the mask needs. If the mask reads a table by
            ``b``, B is the number of rows of that table; if it computes with ``b``, B cannot be inferred: pass
            ``batch``.
        device: by default the device of the mask's tensors, else torch's current accelerator, else the CPU.
        block_size: positions in a tile, an int or (Q, KV).
        q_offset, kv_offset: the position of the first query and of the first key: ints, integer tensors without
            dimensions, or integers (B,) with one for each batch row. The BlockMask then holds ``shifted(mask, ...)``,
            because attention itself counts from 0.
        exact: False makes every tile partial that intervals cannot decide. The result of attention is the same, since
            mask_mod decides inside partial tiles, but it may visit tiles that it could skip. Building then never waits
            for the device.

    Returns:
        torch's BlockMask; its tables have shape (B or 1, H or 1, query tiles, key tiles). It holds the mask after
        `simplify`: an equal mask that is cheaper inside partial tiles.

    Raises:
        TypeError: not a mask, a device or a flag; in a DataLoader worker also a mask that cannot be pickled. ValueError: a
            length or block size below 1, B or H that do not fit the mask's tables, an offset together with a table, tensors on
            another device, or a device that is not there.
    """
    if type(exact) is not bool:
        check_flags(exact=exact)
    if isinstance(mask, Tensor):
        if not (is_zero(q_offset) and is_zero(kv_offset)):
            raise ValueError(
                "a tensor in place of a mask is of these queries and keys; offsets are for from_dense(tensor)"
            )
        mask = mask_of_table(mask, Sizes(as_int(batch), as_int(heads), as_int(q_len), as_int(kv_len)))
    as_mask(mask)  # raises if it is not a mask
    q_offset, kv_offset = position_offsets(q_offset, kv_offset)
    wanted = _wanted(q_len, kv_len, batch, heads, block_size)
    moves = not (is_zero(q_offset) and is_zero(kv_offset))
    if torch.compiler.is_compiling():
        return traced(shifted(mask, q_offset=q_offset, kv_offset=kv_offset) if moves else mask, wanted, device)
    if not moves:
        return _built(mask, wanted, device, exact)
    mask = simplify(mask) if isinstance(mask, Mask) else mask
    placed = shifted(mask, q_offset=q_offset, kv_offset=kv_offset)
    if may_be_negative(q_offset) or may_be_negative(kv_offset):  # the shifted mask handles positions before 0
        _check_ends(mask, device, {"q_idx": (wanted.q_len, q_offset), "kv_idx": (wanted.kv_len, kv_offset)})
        return recipe_of(simplify(placed), wanted, device, exact=exact).build()
    wanted = wanted._replace(q_offset=q_offset, kv_offset=kv_offset)
    return recipe_of(mask, wanted, device, shifted=placed, exact=exact).build()


def _wanted(q_len: int, kv_len: int, batch: int | None, heads: int | None, block_size: Any) -> Wanted:
    given = q_len, kv_len, batch, heads, block_size
    if not torch.compiler.is_compiling() and _INTS.issuperset(map(type, given)):
        return _wanted_of_ints(*given)
    q_len, kv_len, batch, heads = map(as_int, (q_len, kv_len, batch, heads))
    return Wanted(q_len, kv_len, batch, heads, checked_sizes(q_len, kv_len, block_size))


@functools.lru_cache(1024)
def _wanted_of_ints(q_len: int, kv_len: int, batch: int | None, heads: int | None, block_size: int) -> Wanted:
    """They are checked once: that takes as long as some operations."""
    return Wanted(q_len, kv_len, batch, heads, checked_sizes(q_len, kv_len, block_size))


_INTS = frozenset((int, type(None)))


def _built(mask: MaskMod, wanted: Wanted, device: torch.device | str | None, exact: bool) -> BlockMask:
    if not isinstance(mask, Mask):
        return recipe_of(mask, wanted, device, exact=exact).build()

    def anew() -> Recipe:
        return recipe_of(simplified(mask), wanted, device, exact=exact)

    built = built_like(mask, (wanted, device, exact), anew) if wanted.is_of_ints else anew().build()
    return made_of_mask(built)


def create_block_mask(
    mask_mod: MaskMod | Tensor,
    B: int | None,  # noqa: N803 - torch's names
    H: int | None,  # noqa: N803
    Q_LEN: int,  # noqa: N803
    KV_LEN: int,  # noqa: N803
    device: torch.device | str | None = None,
    BLOCK_SIZE: int | tuple[int, int] = _DEFAULT_BLOCK,  # noqa: N803
    _compile: bool = False,
    separate_full_blocks: bool = True,
    compute_dq_write_order: bool = False,
    dq_kv_order: bool = True,
) -> BlockMask:
    """torch's ``create_block_mask``: same arguments and same tables, but an error where torch's tables would be wrong.

    Args:
        mask_mod: a Mask or a mask_mod, which the BlockMask holds unchanged; or a table, as in `block_mask`.
        B: batch size. None means that the mask is the same for every batch row; a ValueError if it is not (torch then
            uses the tables of row 0 for all rows, attention-gym#98).
        H: number of query heads; None as for B.
        Q_LEN, KV_LEN: lengths, in positions.
        device: by default the device of the mask's tensors, else torch's current accelerator, else the CPU.
        BLOCK_SIZE: positions in a tile, an int or (Q, KV).
        _compile: accepted for compatibility with torch; nothing is compiled.
        separate_full_blocks: False lists full tiles together with the partial ones, and makes no full tables.
        compute_dq_write_order, dq_kv_order: the order of writes for a deterministic backward, if this torch has it
            (2.11 does not: a TypeError says so).

    Raises:
        TypeError: not a mask_mod, a device or a flag; in a DataLoader worker also a mask_mod that cannot be pickled; or an option
            that this torch does not have.
        ValueError: B or H is None and the mask depends on it; B or H does not fit the tables that the mask reads; a
            length or block size below 1; tensors on another device; a device that is not there.
    """
    check_flags(
        separate_full_blocks=separate_full_blocks,
        compute_dq_write_order=compute_dq_write_order,
        dq_kv_order=dq_kv_order,
    )
    if compute_dq_write_order and "compute_dq_write_order" not in TORCH_TAKES:
        raise TypeError(f"torch {torch.__version__} has no create_block_mask(compute_dq_write_order=); newer ones may")
    B, H, Q_LEN, KV_LEN = map(as_int, (B, H, Q_LEN, KV_LEN))  # noqa: N806
    if isinstance(mask_mod, Tensor):
        mask_mod = mask_of_table(mask_mod, Sizes(B, H, Q_LEN, KV_LEN))
    as_mask(mask_mod)  # raises if it is not a mask
    wanted = Wanted(Q_LEN, KV_LEN, B, H, checked_sizes(Q_LEN, KV_LEN, BLOCK_SIZE), shared=True)
    if torch.compiler.is_compiling():
        return traced(
            mask_mod, wanted, device, separate_full_blocks=separate_full_blocks,
            compute_dq_write_order=compute_dq_write_order, dq_kv_order=dq_kv_order,
        )  # fmt: skip
    built = made_of_mask(recipe_of(mask_mod, wanted, device, separate_full_blocks=separate_full_blocks).build())
    return with_write_order(built, dq_kv_order) if compute_dq_write_order else built


def _check_ends(mask: MaskMod, device: torch.device | str | None, sides: dict[Side, tuple[int, int | Tensor]]) -> None:
    """Raise a ValueError if positions lie beyond the tables that a mask reads, if that is known without waiting."""
    dependence = program_of(mask, captures.device_for(mask, device)).dependence
    for index, (length, offset) in sides.items():
        end = end_of(length, offset)
        if end is not None:
            dependence.check_length(index, end)
