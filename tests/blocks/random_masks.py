"""Random mask_mods, plain and of maskloom's algebra, and the tables that torch builds from them.

Everything is chosen by a ``random.Random``: hypothesis brings one that shrinks, benchmarks/exactness.py a seeded one.
"""

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.shift import shifted

INTS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
BLOCKS = (16, 17, 32, 48, 64, 128, 256)

Function = Callable[..., Tensor]
Named = tuple[str, Callable[..., Any]]


@dataclass
class Case:
    """A mask_mod and what to build from it."""

    mask_mod: Function
    batch: int
    heads: int
    q_len: int
    kv_len: int
    block: tuple[int, int]
    text: str

    def __repr__(self) -> str:
        shape = f"B={self.batch} H={self.heads} Q={self.q_len} KV={self.kv_len} block={self.block}"
        return f"{shape} {self.text}"


def tables_of_torch(case: Case) -> Any:
    """torch's BlockMask; None where its own evaluation fails (a division by zero, say): then nothing is defined."""
    try:
        return flex.create_block_mask(case.mask_mod, case.batch, case.heads, case.q_len, case.kv_len, "cpu", case.block)
    except (RuntimeError, IndexError):
        return None


TABLES = (
    "kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices",
    "q_num_blocks", "q_indices", "full_q_num_blocks", "full_q_indices",
)  # fmt: skip


def differing(ours: Any, theirs: Any) -> list[str]:
    """The names of tables that are not identical: values, dtypes, shapes and strides."""
    return [name for name in TABLES if not _identical(getattr(ours, name), getattr(theirs, name))]


def _identical(left: Tensor | None, right: Tensor | None) -> bool:
    if left is None or right is None:
        return left is right
    same_layout = left.dtype == right.dtype and left.stride() == right.stride()
    return same_layout and torch.equal(left, right)


def random_case(rnd: Random, *, algebra: bool = False) -> Case:
    """A case whose answers take torch some milliseconds at most."""
    batch, heads = rnd.choice([1, 2, 3]), rnd.choice([1, 1, 2])
    block = rnd.choice(BLOCKS), rnd.choice(BLOCKS)
    q_len = rnd.choice([rnd.randint(1, 40), rnd.randint(1, 330), block[0] * rnd.randint(1, 3)])
    kv_len = rnd.choice([rnd.randint(1, 40), rnd.randint(1, 330), block[1] * rnd.randint(1, 3)])
    if algebra:
        mask, text = _algebra(rnd, batch, max(q_len, kv_len))
        return Case(mask, batch, heads, q_len, kv_len, block, text)
    builder = _Builder(rnd, batch, heads, q_len, kv_len)
    function = builder.truth(rnd.randint(1, 4))
    return Case(_dressed(rnd, function.run), batch, heads, q_len, kv_len, block, function.text)


# -- plain mask_mods ---------------------------------------------------------------------------------------------------


@dataclass
class _Expression:
    """A function of the four indices, and how it would be written."""

    run: Function
    text: str


def _apply(name: str, function: Callable[..., Any], *parts: Any) -> _Expression:
    def run(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return function(*(p.run(b, h, q_idx, kv_idx) if isinstance(p, _Expression) else p for p in parts))

    words = ", ".join(p.text if isinstance(p, _Expression) else _shown(p) for p in parts)
    return _Expression(run, f"{name}({words})")


def _shown(part: Any) -> str:
    return f"{str(part.dtype)[6:]}{part.tolist()}"[:90] if isinstance(part, Tensor) else repr(part)


@dataclass
class _Builder:
    rnd: Random
    batch: int
    heads: int
    q_len: int
    kv_len: int
    seed: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.seed = torch.Generator().manual_seed(self.rnd.randint(0, 2**31))

    # leaves

    def index(self) -> _Expression:
        name, place = self.rnd.choice([("q", 2), ("kv", 3), ("q", 2), ("kv", 3), ("b", 0), ("h", 1)])
        return _Expression(lambda *indices: indices[place], name)

    def number(self) -> int:
        rnd = self.rnd
        return rnd.choice(
            [rnd.randint(-3, 9), rnd.randint(0, 60), rnd.choice([1, 16, 127, 128, 255, 300, 2**31, 2**62])]
        )

    def scalar(self) -> Tensor:
        return torch.tensor(self.rnd.choice([0, 1, 3, 40, 100, 0.1]), dtype=self.rnd.choice([*INTS, *FLOATS]))

    def ints(self, *shape: int) -> Tensor:
        dtype = self.rnd.choice(INTS)
        least, most = self.rnd.choice([(0, 4), (-5, 40), (0, 255), (-(2**40), 2**40)])
        info = torch.iinfo(dtype)
        table = torch.randint(max(least, info.min), min(most, info.max) + 1, shape, generator=self.seed)
        return (table.sort(-1).values if self.rnd.random() < 0.5 else table).to(dtype)

    def bools(self, *shape: int) -> Tensor:
        table = torch.rand(shape, generator=self.seed) < self.rnd.choice([0.02, 0.5, 0.98])
        return table.sort(-1).values if self.rnd.random() < 0.5 else table

    def floats(self, *shape: int) -> Tensor:
        table = torch.randn(shape, generator=self.seed) * self.rnd.choice([1, 30])
        for special in (torch.nan, torch.inf, -torch.inf):
            if self.rnd.random() < 0.4:
                table[torch.rand(shape, generator=self.seed) < self.rnd.choice([0.03, 0.6])] = special
        return table.to(self.rnd.choice(FLOATS))

    def read(self, make: Callable[..., Tensor], depth: int) -> _Expression:
        """A table read at the indices, at something computed and made to fit, or through another table."""
        kinds = ["q", "kv", "bq", "b][kv", "q,kv", "h][q,kv", "fit", "wrap", "nested", "shift", "b", "beside a slice"]
        kind = self.rnd.choice(kinds)
        q_len, kv_len, batch, heads = self.q_len, self.kv_len, self.batch, self.heads
        if kind == "q":
            return _table("t[q]", make(q_len), lambda t, b, h, q, kv: t[q])
        if kind == "kv":
            return _table("t[kv]", make(kv_len), lambda t, b, h, q, kv: t[kv])
        if kind == "b":
            return _table("t[b]", make(batch), lambda t, b, h, q, kv: t[b])
        if kind == "bq":
            return _table("t[b, q]", make(batch, q_len), lambda t, b, h, q, kv: t[b, q])
        if kind == "b][kv":
            return _table("t[b][kv]", make(batch, kv_len), lambda t, b, h, q, kv: t[b][kv])
        if kind == "q,kv":
            return _table("t[q, kv]", make(q_len, kv_len), lambda t, b, h, q, kv: t[q, kv])
        if kind == "h][q,kv":
            return _table("t[h][q, kv]", make(heads, q_len, kv_len), lambda t, b, h, q, kv: t[h][q, kv])
        if kind == "shift":
            return _table("t[q + 3]", make(q_len + 5), lambda t, b, h, q, kv: t[q + 3])
        if kind == "beside a slice":
            return self.beside_a_slice(make)
        if kind == "nested":
            ids = torch.randint(0, 7, (q_len,), generator=self.seed)
            ids = ids.sort().values if self.rnd.random() < 0.7 else ids
            return _table("t[ids[q]]", make(7), lambda t, b, h, q, kv: t[ids[q]])
        size = self.rnd.randint(1, 40)
        table, inner = make(size), self.integer(depth - 1)
        if kind == "fit":
            return _apply("t[x % n]", lambda x: table[x.long() % size], inner)
        return _apply("t[clamp(x)]", lambda x: table[x.long().clamp(-size, size - 1)], inner)

    def beside_a_slice(self, make: Callable[..., Tensor]) -> _Expression:
        """A table read by an index beside a slice, ``None`` or an ellipsis."""
        q_len, kv_len, batch, heads = self.q_len, self.kv_len, self.batch, self.heads
        reads: list[Callable[[], _Expression]] = [
            lambda: _table("t[:, kv][b]", make(batch, kv_len), lambda t, b, h, q, kv: t[:, kv][b]),
            lambda: _table("t[b, None][0, q]", make(batch, q_len), lambda t, b, h, q, kv: t[b, None][0, q]),
            lambda: _table("t[..., kv][q]", make(q_len, kv_len), lambda t, b, h, q, kv: t[..., kv][q]),
            lambda: _table("t[h, ..., kv][q]", make(heads, q_len, kv_len), lambda t, b, h, q, kv: t[h, ..., kv][q]),
            lambda: _table("t[1:, q, None][0, 0]", make(2, q_len), lambda t, b, h, q, kv: t[1:, q, None][0, 0]),
        ]
        return self.rnd.choice(reads)()

    # trees

    def integer(self, depth: int) -> _Expression:
        rnd = self.rnd
        if depth <= 0:
            return self.index()
        rnd_dtype, rnd_op = rnd.choice(INTS), rnd.choice([operator.add, operator.mul, operator.floordiv, torch.minimum])
        kinds: list[Callable[[], _Expression]] = [
            self.index,
            lambda: self.read(self.ints, depth),
            lambda: self.arithmetic(depth),
            lambda: self.arithmetic(depth),
            lambda: self.with_number(depth),
            lambda: self.with_number(depth),
            lambda: self.cast(depth),
            lambda: _apply(
                "where", torch.where, self.truth(depth - 1), self.integer(depth - 1), self.integer(depth - 1)
            ),
            lambda: _apply("where", torch.where, self.truth(depth - 1), self.integer(depth - 1), rnd.randint(-3, 60)),
            lambda: self.counted(depth),
            lambda: _apply("scalar", operator.add, self.integer(depth - 1), torch.tensor(rnd.randint(-9, 9))),
            lambda: _apply("scalar", rnd_op, self.integer(depth - 1), torch.tensor(rnd.randint(1, 9), dtype=rnd_dtype)),
        ]
        return rnd.choice(kinds)()

    def arithmetic(self, depth: int) -> _Expression:
        named: list[Named] = [
            ("add", operator.add), ("sub", operator.sub), ("sub", operator.sub), ("mul", operator.mul),
            ("min", torch.minimum), ("max", torch.maximum), ("floordiv", _floordiv), ("mod", _mod),
            ("div_floor", functools.partial(_div, mode="floor")), ("div_trunc", functools.partial(_div, mode="trunc")),
            ("and", torch.bitwise_and), ("or", torch.bitwise_or), ("xor", torch.bitwise_xor),
            ("stack_min", lambda x, y: torch.stack([x, y]).amin(0)),
            ("stack_max", lambda x, y: torch.stack([x, y], -1).max(-1).values),
            ("cat_sum", lambda x, y: torch.cat([x[None], y[None]]).sum()),
        ]  # fmt: skip
        name, function = self.rnd.choice(named)
        return _apply(name, function, self.integer(depth - 1), self.integer(depth - 1))

    def with_number(self, depth: int) -> _Expression:
        rnd, n = self.rnd, self.number()
        small = rnd.choice([1, 2, 3, 7, 16, 128, -3])
        named: list[Named] = [
            (f"+{n}", lambda x: x + n), (f"{n}-", lambda x: n - x), (f"*{small}", lambda x: x * small),
            (f"//{small}", lambda x: x // small), (f"%{small}", lambda x: x % small),
            (f"&{abs(small)}", lambda x: x & abs(small)), (f"^{abs(small)}", lambda x: x ^ abs(small)),
            (f"|{abs(small)}", lambda x: x | abs(small)), ("<<2", lambda x: x << 2), (">>3", lambda x: x >> 3),
            ("neg", lambda x: -x), ("abs", torch.abs), ("**2", lambda x: x**2), ("**3", lambda x: x**3),
            ("not", lambda x: ~x), ("clamp", lambda x: x.clamp(2, 40)), ("clamp_max", lambda x: x.clamp(max=60)),
            ("trunc", lambda x: torch.div(x, small, rounding_mode="trunc")),
        ]  # fmt: skip
        name, function = self.rnd.choice(named)
        return _apply(name, function, self.integer(depth - 1))

    def cast(self, depth: int) -> _Expression:
        dtype = self.rnd.choice(INTS)
        if self.rnd.random() < 0.3:
            return _apply("clamped_float_to_int", lambda x: _whole(x).to(dtype), self.floating(depth - 1))
        return _apply(f"to_{str(dtype)[6:]}", lambda x: x.to(dtype), self.integer(depth - 1))

    def counted(self, depth: int) -> _Expression:
        starts = self.ints(self.batch, 4)
        return _apply(
            "count", lambda b, x: (starts[b] <= x).sum(), _Expression(lambda b, h, q, kv: b, "b"), self.index()
        )

    def floating(self, depth: int) -> _Expression:
        rnd = self.rnd
        if depth <= 0:
            return self.read(self.floats, 0)
        c = rnd.choice([0.5, -2.0, 0.1, 3.7])
        kinds: list[Callable[[], _Expression]] = [
            lambda: self.read(self.floats, depth),
            lambda: _apply(f"*{c}", lambda x: x * c, self.integer(depth - 1)),
            lambda: _apply("float", lambda x: x.to(rnd_dtype), self.integer(depth - 1)),
            lambda: _apply("/", torch.div, self.floating(depth - 1), self.integer(depth - 1)),
            lambda: _apply("intdiv", lambda x, y: x / y, self.integer(depth - 1), self.integer(depth - 1)),
            lambda: _apply("+", operator.add, self.floating(depth - 1), self.floating(depth - 1)),
            lambda: _apply("-", operator.sub, self.floating(depth - 1), self.integer(depth - 1)),
            lambda: _apply("*", operator.mul, self.floating(depth - 1), self.floating(depth - 1)),
            lambda: _apply("max", torch.max, self.floating(depth - 1), self.floating(depth - 1)),
            lambda: _apply("one", unary, self.floating(depth - 1)),
            lambda: _apply("where", torch.where, self.truth(depth - 1), self.floating(depth - 1), c),
            lambda: _apply("where", torch.where, self.truth(depth - 1), self.floating(depth - 1), self.scalar()),
            lambda: _apply("*inf", lambda x: x * torch.inf, self.floating(depth - 1)),
            lambda: _apply(
                "nan", lambda t, x: torch.where(t, x, torch.nan), self.truth(depth - 1), self.floating(depth - 1)
            ),
        ]
        rnd_dtype = rnd.choice(FLOATS)
        unary: Any = rnd.choice([torch.abs, torch.neg, torch.floor, torch.ceil, torch.round, torch.sqrt, torch.trunc,
                            torch.exp, lambda x: x.clamp(-1.5, 20), lambda x: x**2, torch.sigmoid])  # fmt: skip
        return rnd.choice(kinds)()

    def truth(self, depth: int) -> _Expression:
        rnd = self.rnd
        if depth <= 0:
            return rnd.choice([self.comparison, lambda _: self.read(self.bools, 0)])(0)
        kinds: list[Callable[[], _Expression]] = [
            lambda: self.comparison(depth),
            lambda: self.comparison(depth),
            lambda: self.read(self.bools, depth),
            lambda: self.logic(depth),
            lambda: self.logic(depth),
            lambda: self.logic(depth),
            lambda: self.over_own_dims(depth),
            lambda: _apply("not", rnd_not, self.truth(depth - 1)),
            lambda: _apply("bool", lambda x: x.to(torch.bool), self.integer(depth - 1)),
            lambda: _apply("where", torch.where, self.truth(depth - 1), self.truth(depth - 1), self.truth(depth - 1)),
        ]
        rnd_not: Any = rnd.choice([operator.invert, torch.logical_not])
        return rnd.choice(kinds)()

    def comparison(self, depth: int) -> _Expression:
        rnd = self.rnd
        relation: Any = rnd.choice([operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne])
        name = relation.__name__
        if rnd.random() < 0.3:
            right = rnd.choice(
                [self.floating(depth - 1), rnd.choice([0.1, 0.5, 2.5]), rnd.randint(0, 9), self.scalar()]
            )
            return _apply(name, relation, self.floating(depth - 1), right)
        right = rnd.choice([self.integer(depth - 1), self.integer(depth - 1), self.number(), self.scalar()])
        return _apply(name, relation, self.integer(depth - 1), right)

    def logic(self, depth: int) -> _Expression:
        named: list[Named] = [
            ("and", operator.and_), ("or", operator.or_), ("xor", operator.xor), ("and", operator.and_),
            ("logical_and", torch.logical_and), ("logical_or", torch.logical_or),
            ("logical_xor", torch.logical_xor), ("bitwise_and", torch.bitwise_and), ("mul", operator.mul),
            ("stack_any", lambda x, y: torch.stack([x, y]).any(0)),
            ("stack_all", lambda x, y: torch.stack([x, y]).all()), ("eq", operator.eq),
            ("and_in_place", lambda x, y: operator.iand(x & x, y)),
        ]  # fmt: skip
        name, function = self.rnd.choice(named)
        return _apply(name, function, self.truth(depth - 1), self.truth(depth - 1))

    def over_own_dims(self, depth: int) -> _Expression:
        starts = self.ints(self.batch, 5)
        relation = self.rnd.choice([operator.le, operator.gt, operator.eq])
        reduce: Any = self.rnd.choice(
            [torch.any, torch.all, lambda x: x.any(-1), lambda x: x.sum() > 2, lambda x: x[1:3].any()]
        )
        b = _Expression(lambda b, h, q, kv: b, "b")
        return _apply("any(starts[b] ~ x)", lambda b, x: reduce(relation(starts[b], x)), b, self.integer(depth - 1))


def _table(text: str, table: Tensor, read: Callable[..., Tensor]) -> _Expression:
    return _Expression(functools.partial(read, table), f"{text}<{_shown(table)}>")


def _whole(value: Tensor) -> Tensor:
    return torch.where(value.isnan(), 0.0, value.float()).clamp(-100, 100)


def _floordiv(left: Tensor, right: Tensor) -> Tensor:
    return left // torch.where(right == 0, torch.ones_like(right), right)


def _mod(left: Tensor, right: Tensor) -> Tensor:
    return left % torch.where(right == 0, torch.ones_like(right), right)


def _div(left: Tensor, right: Tensor, mode: str) -> Tensor:
    return torch.div(left, torch.where(right == 0, torch.ones_like(right), right), rounding_mode=mode)


@dataclass(frozen=True)
class _Callable:
    function: Function

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.function(b, h, q_idx, kv_idx)


def _dressed(rnd: Random, run: Function) -> Function:
    """The same function as people hand it over: a closure, a partial, an object, inside torch's combinations."""

    def closure(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return run(b, h, q_idx, kv_idx)

    def with_extra(extra: int, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return run(b, h, q_idx, kv_idx) & (q_idx >= extra)

    kinds: list[Function] = [closure, functools.partial(with_extra, 3), _Callable(run)]
    kinds += [flex.and_masks(closure, loom.causal), flex.or_masks(closure, functools.partial(with_extra, 2))]
    return rnd.choice(kinds)


# -- maskloom's algebra ------------------------------------------------------------------------------------------------


def _algebra(rnd: Random, batch: int, length: int) -> tuple[Mask, str]:
    mask = _member(rnd, batch, length, rnd.randint(0, 3))
    return mask, repr(mask)


def _member(rnd: Random, batch: int, length: int, depth: int) -> Mask:
    if depth <= 0:
        return _leaf(rnd, batch, length)
    if rnd.random() < 0.25:
        return ~_member(rnd, batch, length, depth - 1)
    join: Callable[[Mask, Mask], Mask] = rnd.choice([operator.and_, operator.and_, operator.or_, operator.xor])
    return join(_member(rnd, batch, length, depth - 1), _member(rnd, batch, length, depth - 1))


def _leaf(rnd: Random, batch: int, length: int) -> Mask:
    seed = torch.Generator().manual_seed(rnd.randint(0, 2**31))

    def lens() -> Tensor:
        return torch.randint(0, length + 1, (batch,), generator=seed)

    def pads() -> Tensor:
        return torch.rand(batch, length, generator=seed) < rnd.choice([0.05, 0.5])

    ids = torch.randint(-1, 5, (length,), generator=seed)
    makers: list[Callable[[], Mask]] = [
        lambda: loom.causal,
        lambda: loom.window(back=rnd.randint(0, 90), ahead=rnd.choice([0, 3, 40])),
        lambda: loom.prefix(rnd.randint(0, length)),
        lambda: loom.prefix(lens()),
        lambda: loom.sinks(rnd.randint(0, 20)),
        lambda: loom.lengths(lens()),
        lambda: loom.lengths(lens(), lens()),
        lambda: loom.padding(pads()),
        lambda: loom.key_padding(pads()),
        lambda: loom.real(pads()),
        lambda: loom.documents(ids),
        lambda: loom.documents(ids.sort().values),
        lambda: loom.documents(torch.randint(-1, 4, (batch, length), generator=seed)),
        lambda: loom.documents(offsets=[0, length // 3, length]),
        lambda: shifted(loom.causal, q_offset=rnd.randint(-50, 50)),
    ]
    return rnd.choice(makers)()
