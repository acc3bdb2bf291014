"""The contract of a mask, as checks that any mask can be put through: ours, and your own.

    from maskloom.testing import check_mask
    check_mask(my_mask, q_len=13, kv_len=17)

Each law is a function of its own, stated by `Mask.dense`, the truth. Every size is different from every other, so that a
swapped axis cannot pass.
"""

import copy
import operator
import pickle
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.attention.reference import reference
from maskloom.masks import captured
from maskloom.masks.algebra import Mask
from maskloom.masks.dense import MaskMod

_HEAD_DIM = 16


def check_mask(
    mask: MaskMod,
    *,
    q_len: int = 13,
    kv_len: int = 17,
    batch: int | None = None,
    heads: int | None = None,
    device: torch.device | str | None = None,
    compile_backend: str = "eager",
) -> None:
    """Put a mask through every law; an AssertionError names the first that it breaks.

    Args:
        mask: a `Mask`, or a plain mask_mod. A plain function, alone or in a Mask, need not broadcast, be a value or pickle.
        q_len, kv_len: lengths to check it at, within the tables that it reads.
        batch, heads: B and H, where the mask's tables do not say.
        device: where the mask's tensors are; by default it is found.
        compile_backend: what traces is handed to: "eager" checks tracing alone (a second), "inductor" runs the kernel
            (10 s on the CPU).
    """
    sizes = _Sizes(q_len, kv_len, batch, heads, device)
    given, mask = mask, loom.as_mask(mask)
    check_dense(mask, sizes)
    check_algebra(mask, sizes)
    if isinstance(given, Mask) and not captured.holds_code(mask):
        check_broadcasting(mask, sizes)
        check_value(mask)
        check_repr(mask)
    check_tracing(given, sizes, compile_backend)


class _Sizes:
    """The lengths, batch and heads of one check, and the mask's truth at them."""

    def __init__(
        self, q_len: int, kv_len: int, batch: int | None, heads: int | None, device: torch.device | str | None
    ) -> None:
        self.q_len, self.kv_len, self.batch, self.heads = q_len, kv_len, batch, heads
        self.device = device

    def dense(self, mask: Mask) -> Tensor:
        return mask.dense(self.q_len, self.kv_len, batch=self.batch, heads=self.heads, device=self.device)


def check_dense(mask: Mask, sizes: _Sizes) -> None:
    """``dense`` is bool, (B or 1, H or 1, Q, K), and a shifted first query gives the later rows."""
    table = sizes.dense(mask)
    _law("dense is bool", table.dtype == torch.bool)
    _law("dense has shape (B, H, Q, K)", table.ndim == 4 and table.shape[2:] == (sizes.q_len, sizes.kv_len))
    if sizes.q_len > 2:
        rest = mask.dense(
            sizes.q_len - 2, sizes.kv_len, batch=sizes.batch, heads=sizes.heads, device=sizes.device, q_offset=2
        )
        _law("dense with q_offset=2 is dense from row 2 on", torch.equal(rest, table[:, :, 2:]))


def check_broadcasting(mask: Mask, sizes: _Sizes) -> None:
    """Called with index tensors that broadcast, the mask gives what vmap over scalars gives."""
    table = sizes.dense(mask)
    device = table.device
    b, h, q_idx, kv_idx = (
        torch.arange(size, device=device).view([-1 if at == dim else 1 for at in range(4)])
        for dim, size in enumerate(table.shape)
    )
    _law("broadcasting gives what vmap gives", torch.equal(mask(b, h, q_idx, kv_idx).expand_as(table), table))


def check_algebra(mask: Mask, sizes: _Sizes) -> None:
    """``& | ^ ~`` on masks are ``& | ^ ~`` on their tables; identities, De Morgan and double negation hold."""
    table = sizes.dense(mask)
    for other in (loom.causal, loom.window(back=2, ahead=1) | loom.sinks(3)):
        other_table = other.dense(sizes.q_len, sizes.kv_len, device=table.device)
        for symbol, operation in (("&", operator.and_), ("|", operator.or_), ("^", operator.xor)):
            combined: Mask = operation(mask, other)
            _law(
                f"dense(m {symbol} n) is dense(m) {symbol} dense(n)",
                _equal(sizes, combined, operation(table, other_table)),
            )
        _law("~(m & n) is ~m | ~n", _equal(sizes, ~(mask & other), ~mask | ~other))
        _law("~(m | n) is ~m & ~n", _equal(sizes, ~(mask | other), ~mask & ~other))
    _law("dense(~m) is ~dense(m)", _equal(sizes, ~mask, ~table))
    _law("~~m is m", ~~mask == mask)
    _law("m & everything is m", mask & loom.everything == mask)
    _law("m | nothing is m", mask | loom.nothing == mask)
    _law("m ^ nothing is m", mask ^ loom.nothing == mask)


def check_value(mask: Mask) -> None:
    """Copies, by pickle too, are equal and hash alike; ``.to`` moves every tensor; a mask has no truth value."""
    for how, other in (("pickled", pickle.loads(pickle.dumps(mask))), ("copied", copy.deepcopy(mask))):
        _law(f"a {how} mask is equal", other == mask and mask == other)
        _law(f"a {how} mask hashes alike", hash(other) == hash(mask))
    _law("a mask is not equal to another kind of thing", mask != repr(mask) and mask != ~mask)
    moved = mask.to("meta")
    _law(".to(device) moves every tensor", all(tensor.is_meta for tensor in captured.tensors(moved)))
    there = captured.device_of(mask)
    _law(".to(its own device) is the mask itself", there is None or mask.to(there) is mask)
    try:
        bool(mask)
    except TypeError:
        return
    _law("a mask has no truth value", False)


def check_repr(mask: Mask) -> None:
    """The repr of a mask without tensors evaluates to an equal mask; no repr is the default one."""
    _law("repr is one line that reads like code", "\n" not in repr(mask) and " object at 0x" not in repr(mask))
    if not captured.tensors(mask):
        _law("repr evaluates to an equal mask", eval(repr(mask), dict(vars(loom))) == mask)


def check_tracing(mask: MaskMod, sizes: _Sizes, compile_backend: str = "eager") -> None:
    """The mask traces in compiled FlexAttention and in torch's create_block_mask, and both give what they give eagerly."""
    table = sizes.dense(loom.as_mask(mask))
    batch, heads = table.shape[:2]
    expected_blocks = torch_create_block_mask(mask, batch, heads, sizes.q_len, sizes.kv_len, device=table.device)
    with torch.no_grad():
        build = _compiled(torch_create_block_mask, "eager")
        blocks = build(mask, batch, heads, sizes.q_len, sizes.kv_len, device=table.device)
        _law("create_block_mask compiles to the same tables", _same_tables(blocks, expected_blocks))
        query, key = _inputs(batch, heads, sizes, table.device)
        out = _compiled(flex_attention, compile_backend)(query, key, key.clone(), block_mask=expected_blocks)
    expected, _ = reference(query.double(), key.double(), key.double(), table)
    _law("compiled flex_attention attends where dense says", torch.allclose(out.double(), expected, atol=1e-5))


def _compiled(function: Callable[..., object], backend: str) -> Callable[..., Any]:
    torch._dynamo.reset()  # one mask's graphs shall not use up another's
    return torch.compile(function, backend=backend, fullgraph=True)


def _inputs(batch: int, heads: int, sizes: _Sizes, device: torch.device) -> tuple[Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    query = torch.randn(batch, heads, sizes.q_len, _HEAD_DIM, device=device, generator=generator)
    return query, torch.randn(batch, heads, sizes.kv_len, _HEAD_DIM, device=device, generator=generator)


def _same_tables(left: BlockMask, right: BlockMask) -> bool:
    names = (
        "kv_num_blocks",
        "kv_indices",
        "full_kv_num_blocks",
        "full_kv_indices",
        "q_num_blocks",
        "full_q_num_blocks",
    )
    return all(torch.equal(getattr(left, name), getattr(right, name)) for name in names)


def _equal(sizes: _Sizes, mask: Mask, expected: Mask | Tensor) -> bool:
    table = sizes.dense(mask)
    other = expected if isinstance(expected, Tensor) else sizes.dense(expected)
    return bool((table == other).all())


def _law(words: str, holds: bool) -> None:
    if not holds:
        raise AssertionError(f"broken law of masks: {words}")
