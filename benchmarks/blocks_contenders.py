"""Others that build block masks, whose tables must equal ours before their times count: torch, and attention-gym's formula."""

from collections.abc import Callable
from functools import partial

import torch
from clocks import median_ms, once_ms, peak_mb
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.tile_states import tile_states
from maskloom.masks.algebra import Mask

TABLES = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices", "q_indices", "full_q_indices")
REPEATS, REPEATS_OF_TORCH = 30, 5


def shown(value: object) -> object:
    """A cell: nothing for None, and no more digits than a time or a share has."""
    return "" if value is None else round(value, 3) if isinstance(value, float) else value


def size_of(blocks: BlockMask) -> int:
    return sum(table.nbytes for table in vars(blocks).values() if isinstance(table, Tensor))


def against_torch(ours: BlockMask, build: Callable[[], BlockMask], device: str, *, measured: bool) -> dict[str, object]:
    """torch's eager evaluation, after its tables were found equal to ours; it evaluates every query and key."""
    if not measured:
        return {"torch_eager_ms": None}
    try:
        check_same(ours, build())
        return {"torch_eager_ms": median_ms(build, repeats=REPEATS_OF_TORCH, device=device)}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"torch_eager_ms": "out of memory"}


def against_compiled_torch(
    ours: BlockMask, mask: Mask, tables: tuple[int, int, int, int], device: str, *, measured: bool
) -> dict[str, object]:
    """torch's evaluation in compiled code: its first call, what it takes then, and its memory."""
    columns = ("torch_compiled_first_call_ms", "torch_compiled_ms", "torch_compiled_peak_mb")
    if not measured:
        return dict.fromkeys(columns)
    torch._dynamo.reset()  # no length finds the graph of another, which would make sizes dynamic
    compiled = torch.compile(flex.create_block_mask)
    build = partial(compiled, mask, *tables, device)
    first = once_ms(build, device=device)
    check_same(ours, build())
    warm = median_ms(build, repeats=REPEATS_OF_TORCH, device=device)
    return dict(zip(columns, (first, warm, peak_mb(build, device=device)), strict=True))


def check_same(ours: BlockMask, theirs: BlockMask) -> None:
    for table in TABLES:
        assert torch.equal(getattr(ours, table), getattr(theirs, table)), f"{table} differs from torch's"


def attention_gym(ours: BlockMask, length: int, device: str) -> float | str:
    """Its tables for causal, written down by a formula; it leaves zeros behind each row's count, so tiles are compared."""
    try:
        from attn_gym.masks.causal import create_causal_block_mask_fast
    except ImportError:
        return "none"
    build = partial(create_causal_block_mask_fast, None, None, length, length, device)
    assert torch.equal(tile_states(ours), tile_states(build())), "tiles differ from attention-gym's"
    return median_ms(build, repeats=REPEATS, device=device)
