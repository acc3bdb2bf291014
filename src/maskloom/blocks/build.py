"""Build torch's BlockMask from a mask: classify the tiles, and write the index tables.

The mask is run once on scalars (`program.record`), and its program on intervals (`analyse`). Elements are evaluated
only where intervals cannot decide (`classify`). Nothing is compiled, and no tensor of size Q×KV is made.
"""

import inspect
from collections.abc import Callable, Hashable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.classify import classify
from maskloom.blocks.grid import checked_sizes, device_for, grid_of
from maskloom.blocks.index_tables import to_block_mask
from maskloom.core import captures
from maskloom.core.block_masks import copied_tables
from maskloom.core.cache import LRU
from maskloom.core.checks import as_int, end_of, is_zero, may_be_negative, position_offsets
from maskloom.core.pickling import check_can_be_sent
from maskloom.core.symbols import is_dynamic
from maskloom.core.torch_state import can_cache, float_state
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask
from maskloom.masks.dense import table_sizes
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.masks.patterns.shift import shifted
from maskloom.masks.simplify import simplify
from maskloom.program.dependence import Dependence
from maskloom.program.mask_program import program_of, refuse_mapped
from maskloom.program.program import MaskMod

Side = Literal["q_idx", "kv_idx"]

_DEFAULT_BLOCK = 128
_TORCH_TAKES = frozenset(inspect.signature(flex.create_block_mask).parameters)


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
        TypeError: not a mask; in a DataLoader worker also a mask that cannot be pickled. ValueError: a length or block
            size below 1, B or H that do not fit the mask's tables, an offset together with a table, or tensors on
            another device.
    """
    if isinstance(mask, Tensor):
        if not (is_zero(q_offset) and is_zero(kv_offset)):
            raise ValueError(
                "a tensor in place of a mask is of these queries and keys; offsets are for from_dense(tensor)"
            )
        mask = mask_of_table(mask, Sizes(as_int(batch), as_int(heads), as_int(q_len), as_int(kv_len)))
    if isinstance(mask, Mask) and not torch.compiler.is_compiling():
        mask = simplify(mask)
    if type(q_offset) is type(kv_offset) is int and q_offset == kv_offset == 0:
        key = _constant_key(mask, (q_len, kv_len, batch, heads), device, (block_size, exact))
        if key is not None:
            return _copied(
                key, mask, lambda: _built(mask, q_len, kv_len, batch, heads, device, block_size, 0, 0, exact)
            )
    return _built(mask, q_len, kv_len, batch, heads, device, block_size, q_offset, kv_offset, exact)[0]


def _built(
    mask: MaskMod,
    q_len: int,
    kv_len: int,
    batch: int | None,
    heads: int | None,
    device: torch.device | str | None,
    block_size: int | tuple[int, int],
    q_offset: int | Tensor,
    kv_offset: int | Tensor,
    exact: bool,
) -> tuple[BlockMask, bool]:
    """`block_mask` of a mask that is simplified, and whether its program follows from its structure.

    It does not where the mask reads a tensor that it does not hold, a global one.
    """
    q_offset, kv_offset = position_offsets(q_offset, kv_offset)
    placed = mask if is_zero(q_offset) and is_zero(kv_offset) else shifted(mask, q_offset=q_offset, kv_offset=kv_offset)
    q_len, kv_len, batch, heads = map(as_int, (q_len, kv_len, batch, heads))
    sizes = checked_sizes(mask, q_len, kv_len, block_size)
    if torch.compiler.is_compiling():
        return _traced(placed, q_len, kv_len, batch, heads, device, sizes, {}), False
    refuse_mapped(placed)
    if may_be_negative(q_offset) or may_be_negative(kv_offset):  # the shifted mask handles positions before 0
        _check_ends(mask, device, {"q_idx": (q_len, q_offset), "kv_idx": (kv_len, kv_offset)})
        built = block_mask(
            placed, q_len, kv_len, batch=batch, heads=heads, device=device, block_size=block_size, exact=exact
        )
        return built, False
    check_can_be_sent(placed)
    source = program_of(mask, device_for(mask, device))
    grid = grid_of(source, q_len, kv_len, batch, heads, sizes, q_offset, kv_offset)
    return to_block_mask(classify(source, grid, exact=exact), placed, grid), source.key is not None


_constants: LRU[Hashable, BlockMask] = LRU(64)
"""Block masks that follow from numbers alone."""

_MOST_TILES = 1 << 14  # of such a block mask: 512 KiB of tables


def _constant_key(mask: MaskMod, numbers: tuple[Any, ...], device: Any, options: tuple[Any, ...]) -> Hashable | None:
    """A key that determines the block mask of a mask without tensors, on the CPU. None for any other.

    Args:
        numbers: lengths, B and H, as they were given: what is neither an int nor None is checked at each call.
        options: the block size first.
    """
    sizes = options[0] if type(options[0]) is tuple else options[:1]
    if not isinstance(mask, Mask) or not all(type(number) in _INT_OR_NONE for number in (*numbers, *sizes)):
        return None
    if not can_cache():
        return None
    facts = captures.facts_of(mask)
    if facts.tensors or not facts.is_plain or device_for(mask, device).type != "cpu":
        return None
    return facts.skeleton(mask, True), numbers, options, float_state()


_INT_OR_NONE = (int, type(None))


def _copied(key: Hashable, mask: MaskMod, build: Callable[[], tuple[BlockMask, bool]]) -> BlockMask:
    """The block mask of a key, with tables of its own: whoever gets it may write into them."""
    found = _constants.get(key)
    if found is None:
        check_can_be_sent(mask)
        built, of_structure = build()
        if of_structure and built.kv_indices.numel() <= _MOST_TILES:
            _constants.put(key, copied_tables(built))
        return built
    return copied_tables(found, mask_mod=mask)


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
        TypeError: not a mask_mod; in a DataLoader worker also one that cannot be pickled; or an option that this torch
            does not have.
        ValueError: B or H is None and the mask depends on it; B or H does not fit the tables that the mask reads; a
            length or block size below 1; tensors on another device.
    """
    if compute_dq_write_order and "compute_dq_write_order" not in _TORCH_TAKES:
        raise TypeError(f"torch {torch.__version__} has no create_block_mask(compute_dq_write_order=); newer ones may")
    B, H, Q_LEN, KV_LEN = map(as_int, (B, H, Q_LEN, KV_LEN))  # noqa: N806
    if isinstance(mask_mod, Tensor):
        mask_mod = mask_of_table(mask_mod, Sizes(B, H, Q_LEN, KV_LEN))
    if torch.compiler.is_compiling():
        sizes = checked_sizes(mask_mod, Q_LEN, KV_LEN, BLOCK_SIZE)
        wanted = {
            "separate_full_blocks": separate_full_blocks,
            "compute_dq_write_order": compute_dq_write_order,
            "dq_kv_order": dq_kv_order,
        }
        options = {name: value for name, value in wanted.items() if name in _TORCH_TAKES}
        return _traced(mask_mod, Q_LEN, KV_LEN, B, H, device, sizes, options)

    def build() -> tuple[BlockMask, bool]:
        sizes = checked_sizes(mask_mod, Q_LEN, KV_LEN, BLOCK_SIZE)
        refuse_mapped(mask_mod)
        check_can_be_sent(mask_mod)
        source = program_of(mask_mod, device_for(mask_mod, device))
        _refuse_shared_tables(source.dependence, B, H)
        grid = grid_of(source, Q_LEN, KV_LEN, B, H, sizes)
        built = to_block_mask(classify(source, grid), mask_mod, grid, separate_full_blocks=separate_full_blocks)
        return built, source.key is not None

    key = _constant_key(mask_mod, (Q_LEN, KV_LEN, B, H), device, (BLOCK_SIZE, "as torch has it", separate_full_blocks))
    if key is not None and not compute_dq_write_order:
        return _copied(key, mask_mod, build)
    built, _ = build()
    if compute_dq_write_order:
        add_write_order(built, dq_kv_order)
    return built


def _traced(
    mask: MaskMod,
    q_len: int,
    kv_len: int,
    batch: int | None,
    heads: int | None,
    device: torch.device | str | None,
    sizes: tuple[int, int],
    options: dict[str, Any],
) -> BlockMask:
    """torch's own function, for torch.compile and torch.export: it can be traced, while no program can be recorded."""
    if torch.compiler.is_exporting() and (is_dynamic(q_len) or is_dynamic(kv_len)):
        raise ValueError("torch.export builds no block mask of lengths that are dynamic: give attend the mask itself")
    batch, heads = table_sizes(mask, q_len, kv_len, batch=batch, heads=heads, device="cpu")
    if device is None:
        raise ValueError(
            "while torch.compile or torch.export traces, give the device of the block mask, or build it outside"
        )
    return flex.create_block_mask(mask, batch, heads, q_len, kv_len, device, sizes, **options)


def _refuse_shared_tables(dependence: Dependence, batch: int | None, heads: int | None) -> None:
    for letter, index, given, item in (("B", "b", batch, "batch row"), ("H", "h", heads, "head")):
        if given is None and index in dependence.marks:
            sizes = sorted(dependence.sizes[index])
            which = f"{letter}={sizes[0]}" if len(sizes) == 1 else f"{letter}= their number"
            raise ValueError(
                f"{letter} is None, and the mask's answer can differ from one {item} to another: tables for all of them "
                f"would hold only those of {item} 0; pass {which}"
            )


def add_write_order(built: BlockMask, dq_kv_order: bool) -> None:
    """Add torch's order of writes for a deterministic backward to a BlockMask."""
    if not isinstance(dq_kv_order, bool):
        raise ValueError(f"dq_kv_order is a bool here; got {brief(dq_kv_order)}")
    orders = flex._compute_dq_write_order_from_block_mask(built, dq_kv_order=dq_kv_order)
    built.dq_write_order, built.dq_write_order_full = orders
    built.dq_kv_order, built.dq_kv_order_spt = None, dq_kv_order


def _check_ends(mask: MaskMod, device: torch.device | str | None, sides: dict[Side, tuple[int, int | Tensor]]) -> None:
    """Raise a ValueError if positions lie beyond the tables that a mask reads, if that is known without waiting."""
    dependence = program_of(mask, device_for(mask, device)).dependence
    for index, (length, offset) in sides.items():
        end = end_of(length, offset)
        if end is not None:
            dependence.check_length(index, end)
