"""The contract of a mask, as checks for any mask: maskloom's, and your own.

    from maskloom.testing import check_mask
    check_mask(my_mask, q_len=13, kv_len=17)

Each law is a separate function, stated with `Mask.dense`, the reference. All sizes are different, so that a swapped
axis cannot pass.
"""

import copy
import dataclasses
import operator
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.attention.backends.base import BackendName
from maskloom.attention.reference import reference
from maskloom.blocks.dense import dense_of
from maskloom.core import captures
from maskloom.core.checks import count
from maskloom.masks.algebra import Mask
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import MaskMod

__all__ = [
    "check_mask",
    "check_dense",
    "check_broadcasting",
    "check_algebra",
    "check_padding",
    "check_shifts",
    "check_value",
    "check_repr",
    "check_tracing",
    "check_writes",
    "public_names",
]

_HEAD_DIM = 16
_ON_EVERY_DEVICE: tuple[BackendName, ...] = ("sdpa", "reference")


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
    """Check a mask against every law; an AssertionError names the first law that it breaks.

    Args:
        mask: a `Mask`, or a plain mask_mod. A plain function, alone or in a Mask, need not broadcast, be a value or
            pickle.
        q_len, kv_len: the lengths of the check, at least 1, within the tables that the mask reads.
        batch, heads: B and H, at least 1, if the mask's tables do not have them.
        device: the device of the mask's tensors; by default it is found.
        compile_backend: the backend of torch.compile: "eager" checks tracing alone (a second), "inductor" also runs the
            kernel (10 s on the CPU).

    Raises:
        AssertionError: a law that is broken. TypeError, ValueError: sizes that do not fit the mask, or of which nothing can be checked.
    """
    sizes = _Sizes(q_len, kv_len, batch, heads, device)
    given, mask = mask, loom.as_mask(mask)
    check_dense(mask, sizes)
    check_algebra(mask, sizes)
    check_padding(mask, sizes)
    if isinstance(given, Mask) and not captures.holds_code(mask):
        check_broadcasting(mask, sizes)
        check_shifts(mask, sizes)
        check_value(mask)
        check_repr(mask)
    check_tracing(given, sizes, compile_backend)


class _Sizes:
    """The lengths, batch and heads of one check; `dense` gives a mask's reference table at these sizes."""

    def __init__(
        self, q_len: int, kv_len: int, batch: int | None, heads: int | None, device: torch.device | str | None
    ) -> None:
        self.q_len, self.kv_len = count("q_len", q_len, least=1), count("kv_len", kv_len, least=1)
        self.batch = None if batch is None else count("batch", batch, least=1, of="batch rows")
        self.heads = None if heads is None else count("heads", heads, least=1, of="heads")
        self.device = device

    def dense(self, mask: Mask) -> Tensor:
        table = self._dense(mask)
        if not table.numel():
            raise ValueError(f"a mask of no batch rows keeps every law; give one whose tables have some; got {mask!r}")
        return table

    def _dense(self, mask: Mask) -> Tensor:
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
    """A call with index tensors that broadcast gives the same as vmap over scalars."""
    table = sizes.dense(mask)
    device = table.device
    b, h, q_idx, kv_idx = (
        torch.arange(size, device=device).view([-1 if at == dim else 1 for at in range(4)])
        for dim, size in enumerate(table.shape)
    )
    words = "broadcasting gives what vmap gives"
    with _as_law(words, Exception):
        answer = mask(b, h, q_idx, kv_idx).expand_as(table)
    _law(words, torch.equal(answer, table))


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


def check_padding(mask: Mask, sizes: _Sizes) -> None:
    """What is known to be padding sees nothing and is not seen; it is the same from position 2 on. (See `PaddingMask`.)"""
    _check_known(mask, sizes.dense(mask))
    q_len, kv_len = sizes.q_len - 2, sizes.kv_len - 2
    if min(q_len, kv_len) < 1:
        return
    keys, queries = known_padding(mask, sizes.kv_len), known_hidden_queries(mask, sizes.q_len)
    for two in (2, torch.tensor(2, device=captures.device_of(mask))):
        later = loom.masks.shifted(mask, q_offset=two, kv_offset=two)
        with _as_law("hidden_keys and hidden_queries take a length and the first position", TypeError):
            later_keys, later_queries = known_padding(later, kv_len), known_hidden_queries(later, q_len)
        _law("hidden_keys from position 2 on are those of the whole", _same(later_keys, keys))
        _law("hidden_queries from position 2 on are those of the whole", _same(later_queries, queries))


def _same(later: Tensor | None, whole: Tensor | None) -> bool:
    return later is whole is None or (later is not None and whole is not None and torch.equal(later, whole[:, 2:]))


def _check_known(mask: Mask, table: Tensor) -> None:
    """A table of the mask shows nothing of what is known to be padding."""
    (batch, _, q_len, kv_len) = table.shape
    keys, queries = known_padding(mask, kv_len), known_hidden_queries(mask, q_len)
    for words, hidden, length in (("hidden_keys", keys, kv_len), ("hidden_queries", queries, q_len)):
        fits = hidden is None or (hidden.dtype == torch.bool and tuple(hidden.shape) in {(1, length), (batch, length)})
        _law(f"{words} is bool, (B or 1, length)", fits)
    _law("nothing sees a key that is known to be padding", keys is None or not (table & keys[:, None, None]).any())
    _law("what is known to be padding sees nothing", queries is None or not (table & queries[:, None, :, None]).any())


def check_shifts(mask: Mask, sizes: _Sizes) -> None:
    """Under `shifted` a mask says the same at positions from 0 on, shows no key before 0 if it knows padding, and reads no table there.

    A class of your own that reads tables need not answer for positions before 0: where it derives from neither `Tabled` nor `PaddingMask`,
    and does not define ``signed``, this is not checked.
    """
    for part in _parts_of(mask):
        held = (_knows_sign(one) for one in _parts_of(part) if one is not part)
        _law(f"{type(part).__name__} calls signed of the masks that it holds", _knows_sign(part) or not any(held))
    if not all(map(_answers_before_zero, _parts_of(mask))):
        return
    table, mask = sizes.dense(mask).cpu(), mask.to("cpu")  # to read before a table on a GPU would end the process
    batch, heads, q_len, kv_len = table.shape
    for before in (-2, torch.tensor(-2), -2 - _longest_table(mask)):
        moved, first = loom.masks.shifted(mask, q_offset=before, kv_offset=before), -int(before)
        with _as_law("under shifted nothing is read before position 0", IndexError, RuntimeError):
            found = moved.dense(q_len, kv_len, batch=batch, heads=heads, device="cpu")
        whole = table[:, :, : max(0, q_len - first), : max(0, kv_len - first)]
        _law(
            "under shifted a mask says the same at positions from 0 on", torch.equal(found[:, :, first:, first:], whole)
        )
        _check_known(moved, found)
        keys = known_padding(moved, kv_len)
        _law("hidden_keys hides keys before position 0", keys is None or bool(keys[:, :first].all()))


def _knows_sign(mask: Mask) -> bool:
    return type(mask).signed is not Mask.signed


def _answers_before_zero(mask: Mask) -> bool:
    return mask.is_ours or _knows_sign(mask) or not any(isinstance(field, Tensor) for field in vars(mask).values())


def _longest_table(mask: Mask) -> int:
    """The largest table that a mask reads by position; 0 if it reads none."""
    sizes = dependence_on(mask, torch.device("cpu")).sizes
    return max((int(size) for index in ("q_idx", "kv_idx") for size in sizes[index]), default=0)


@contextmanager
def _as_law(words: str, *errors: type[Exception]) -> Iterator[None]:
    """Such an error, as that of a law."""
    try:
        yield
    except errors as error:
        raise AssertionError(f"broken law of masks: {words}") from error


def check_value(mask: Mask) -> None:
    """Copies and pickles are equal and have the same hash; ``.to`` moves every tensor; a mask has no truth value."""
    for how, other in (("pickled", pickle.loads(pickle.dumps(mask))), ("copied", copy.deepcopy(mask))):
        _law(f"a {how} mask is equal", other == mask and mask == other)
        _law(f"a {how} mask hashes alike", hash(other) == hash(mask))
    _law("a mask is not equal to another kind of thing", mask != repr(mask) and mask != ~mask)
    moved = mask.to("meta")
    _law(".to(device) moves every tensor", all(tensor.is_meta for tensor in captures.tensors(moved)))
    there = captures.device_of(mask)
    _law(".to(its own device) is the mask itself", there is None or mask.to(there) is mask)
    try:
        bool(mask)
    except TypeError:
        return
    _law("a mask has no truth value", False)


def check_repr(mask: Mask) -> None:
    """The repr of a mask without tensors evaluates to an equal mask; no repr is the default one."""
    _law("repr is one line that reads like code", "\n" not in repr(mask) and " object at 0x" not in repr(mask))
    if captures.tensors(mask):
        return
    words = "repr evaluates to an equal mask"
    with _as_law(f"{words}, with the names of the module of its class", Exception):
        again = eval(repr(mask), _names_of(mask))
    _law(words, again == mask)


def _names_of(mask: Mask) -> dict[str, object]:
    """The public names, and those of the modules that classes of the mask's parts come from."""
    names = public_names()
    for part in _parts_of(mask):
        module = sys.modules.get(type(part).__module__)
        if module is not None and not module.__name__.startswith("maskloom."):
            names |= vars(module)
    return names


def _parts_of(mask: Mask) -> Iterator[Mask]:
    """The mask, and every mask that it holds, at any depth."""
    parts: list[Any] = [mask]
    while parts:
        part = parts.pop()
        if isinstance(part, Mask):
            yield part
        held = vars(part).values() if dataclasses.is_dataclass(part) else part if isinstance(part, tuple) else ()
        parts += [one for one in held if isinstance(one, (Mask, tuple))]


def check_tracing(mask: MaskMod, sizes: _Sizes, compile_backend: str = "eager") -> None:
    """The mask traces in compiled FlexAttention and torch's create_block_mask; both give the same as in eager mode."""
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


def check_writes(
    make: Callable[..., Mask],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    *,
    q_len: int = 13,
    kv_len: int = 17,
    batch: int | None = None,
    heads: int | None = None,
) -> None:
    """A mask is consistent after writes to the tensors that it was made from: it follows a tensor, or has a copy.

    Args:
        make: makes a mask from such tensors, ``make(*before)``.
        before, after: the values of the tensors when the mask is made, and the values written in place later; of equal
            shapes.
        q_len, kv_len, batch, heads: as for `check_mask`.
    """
    sizes = _Sizes(q_len, kv_len, batch, heads, None)
    followed: list[Tensor] = []  # values from which an equal mask could be made
    is_told_apart = True
    for place in range(len(before)):
        values = [new if place == at else old for at, (old, new) in enumerate(zip(before, after, strict=True))]
        table = _after_writes(make, before, values, sizes)
        follows = torch.equal(table, sizes.dense(make(*_copies(values))))
        is_old = torch.equal(table, sizes.dense(make(*_copies(before))))
        _law(f"a mask follows what is written into its tensor {place}, or does not see it", follows or is_old)
        followed.append((after if follows else before)[place])
        is_told_apart &= follows != is_old
    table = _after_writes(make, before, after, sizes)
    expected = sizes.dense(make(*_copies(followed)))
    _law("a mask follows all at once what it follows alone", not is_told_apart or torch.equal(table, expected))


def _after_writes(
    make: Callable[..., Mask], before: Sequence[Tensor], after: Sequence[Tensor], sizes: "_Sizes"
) -> Tensor:
    """The table of a mask whose tensors were written to; all results from it must agree, before and after."""
    tensors = _copies(before)
    mask = make(*tensors)
    copied = pickle.loads(pickle.dumps(mask))
    old = _agreed(mask, sizes)
    for tensor, new in zip(tensors, after, strict=True):
        tensor.copy_(new)
    table = _agreed(mask, sizes)
    _law("a mask pickled before does not see a write", torch.equal(sizes.dense(copied), old))
    for how, other in (("pickled", pickle.loads(pickle.dumps(mask))), ("moved", mask.to("cpu"))):
        _law(f"a mask {how} after a write says what it said", torch.equal(sizes.dense(other), table))
    return table


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.clone() for tensor in tensors]


def _agreed(mask: Mask, sizes: "_Sizes") -> Tensor:
    """The table of the mask, after a check that all results from it agree."""
    table = sizes.dense(mask)
    blocks = loom.block_mask(mask, sizes.q_len, sizes.kv_len, batch=sizes.batch, heads=sizes.heads, block_size=4)
    for name, other in _results(mask, blocks, table.shape, sizes):
        _law(f"{name} says what dense says", torch.equal(other.expand_as(table), table))
    _check_known(mask, table)
    return table


def _results(mask: Mask, blocks: BlockMask, shape: Sequence[int], sizes: "_Sizes") -> Iterator[tuple[str, Tensor]]:
    yield "simplify", sizes.dense(loom.masks.simplify(mask))
    yield "a block mask's mask_mod", sizes.dense(loom.as_mask(blocks.mask_mod))
    rows, heads, *_ = shape
    yield "a block mask", dense_of(blocks, rows, heads)
    query, key = _inputs(rows, heads, sizes, blocks.kv_indices.device)
    value = torch.eye(sizes.kv_len, device=key.device).expand(rows, heads, -1, -1)  # so the output is the weights
    for backend in _ON_EVERY_DEVICE:
        yield f"attend on {backend}", loom.attend(query, key, value, mask, backend=backend) > 0


def _compiled(function: Callable[..., object], backend: str) -> Callable[..., Any]:
    torch._dynamo.reset()  # so that masks do not share torch's limit of graphs
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


def public_names() -> dict[str, object]:
    """Every public name of every namespace that has values, for reprs: ``eval(repr(mask), public_names())`` gives the mask again."""
    spaces = [getattr(loom, name) for name in ("masks", "scores", "blocks", "batches", "nn")]
    named = {name: getattr(loom, name) for name in loom.__all__}
    return named | {name: getattr(space, name) for space in spaces for name in space.__all__}
