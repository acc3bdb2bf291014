"""Kinds of attention in which any two choices meet: of backend, mask, dtype, heads, lengths, head dims and log-sum-exp.

Errors of attention come from two things that meet more often than from one alone (Cohen et al., "The AETG system",
1997). `covering` lists kinds so that each pair of values that is possible is in one of them. What is not possible is
what a backend refuses: the table `REFUSED` says it a second time, in the words of docs/backends.md, so that a refusal too
many, or one too few, is found.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.attention.backends.flash import has_flash
from maskloom.masks.algebra import Mask
from tests.evidence import gather, gather_lse

BATCH = 3
HALF = (torch.bfloat16, torch.float16)


class Heads(NamedTuple):
    query: int
    key: int

    def __str__(self) -> str:
        return f"{self.query}/{self.key}"


class Kind(NamedTuple):
    """One kind of attention, at some lengths.

    Attributes:
        value_dim: None where it is the head dim.
        lengths: pairs of a number of queries and of keys, which one compiled kernel serves.
    """

    backend: str
    mask: str
    dtype: torch.dtype
    heads: Heads
    lengths: tuple[tuple[int, int], ...]
    head_dim: int
    value_dim: int | None
    lse: bool

    def __str__(self) -> str:
        lengths = " ".join(f"{queries}x{keys}" for queries, keys in self.lengths)
        sizes = f"{self.head_dim}+{self.value_dim or self.head_dim}"
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.backend}, {self.mask}, {dtype}, {self.heads}, {lengths}, {sizes}{', lse' if self.lse else ''}"


Axes = dict[str, tuple[Any, ...]]
"""The values of each of `Kind`'s names."""

PREFIX = "(causal | prefix) & lengths"
BY_HEAD = "a table for each head"
DOCUMENTS = "documents & causal"
MASKS = ("causal & lengths", "(window | sinks) & lengths", DOCUMENTS, BY_HEAD, "everything")
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
HEADS = (Heads(4, 4), Heads(4, 2), Heads(6, 2))
HEAD_DIMS = (16, 32, 64, 80, 96, 128, 192, 256)
BACKENDS = (
    "sdpa",
    "varlen",
    "sliced",
    "reference",
    "triton",
    "flash",
)  # a tie takes the first: what is tested most, and does not compile

ON_CPU: Axes = {
    "backend": BACKENDS,
    "mask": MASKS,
    "dtype": DTYPES,
    "heads": HEADS,
    "lengths": tuple(
        (lengths,) for lengths in [(1, 1), (2, 2), (127, 127), (128, 128), (129, 129), (300, 129), (129, 300), (1, 300)]
    ),
    "head_dim": HEAD_DIMS,
    "value_dim": (None, 48),
    "lse": (False, True),
}

ON_GPU: Axes = {  # fewer values: a kind takes 5 to 20 s to compile
    **ON_CPU,
    "mask": ("causal & lengths", PREFIX, DOCUMENTS, BY_HEAD),  # no numbers, with which flash compiles twice
    # first a number of tiles that is no number of rows or heads: equal sizes share a symbol, and a graph more where they part
    "lengths": (((65, 65), (127, 127)), ((1000, 1000), (129, 129)), ((600, 1000), (129, 1000), (1000, 129))),
    "head_dim": (16, 64, 80, 128, 192),
}

Refused = tuple[str, Callable[[Any], bool], str]
"""The name of an axis, whether a value of it is refused, and the words."""

NO_HALF = "it runs in bfloat16 and float16"
REFUSED: dict[str, tuple[Refused, ...]] = {
    "reference": (),
    "sliced": (),
    "sdpa": (("lse", bool, "it gives no log-sum-exp"),),
    "triton": (("dtype", lambda dtype: dtype is torch.float64, "it runs in float32, bfloat16 and float16"),),
    "varlen": (
        ("mask", lambda mask: mask != DOCUMENTS, "it needs a mask that is documents(offsets=...)"),
        ("dtype", lambda dtype: dtype not in HALF, NO_HALF),
        ("value_dim", lambda size: size is not None, "it has head dims up to 256"),
        ("lengths", lambda lengths: any(queries != keys for queries, keys in lengths), "as many queries as keys"),
        ("lse", bool, "it gives no log-sum-exp"),
    ),
    "flash": (
        ("dtype", lambda dtype: dtype not in HALF, NO_HALF),
        ("head_dim", lambda size: size not in (64, 128), "it has head dims 64, 128"),
        ("value_dim", lambda size: size is not None, "it has head dims 64, 128"),
        ("lse", bool, "log-sum-exp, which return_aux and sinks need"),
    ),
}


def refusals(some: dict[str, Any], *, on_gpu: bool) -> list[str]:
    """Why the backend cannot do this, by the values that are chosen; empty where it can, or none is chosen."""
    backend = some.get("backend")
    if backend is None:
        return []
    if not on_gpu and backend in ("flash", "triton", "varlen"):
        return ["it needs a GPU"]
    if on_gpu and backend == "sliced":
        return ["it is for the CPU"]
    if backend == "flash" and not has_flash():
        return ["it needs FlashAttention 4"]
    return [words for axis, refused, words in REFUSED[backend] if axis in some and refused(some[axis])]


Pair = tuple[tuple[str, Any], tuple[str, Any]]


def pairs_of(axes: Axes) -> Iterator[Pair]:
    """Every two values of two axes."""
    for first, second in itertools.combinations(axes, 2):
        for values in itertools.product(axes[first], axes[second]):
            yield (first, values[0]), (second, values[1])


def covering(axes: Axes, *, on_gpu: bool) -> list[Kind]:
    """Kinds that no backend refuses; each pair of values that is possible is in one of them.

    Greedy: a kind begins with a pair that is missing, and takes on each further axis the value with which most missing pairs
    are met. Backends that compile come first, so that few of theirs are needed: the others meet what is left.
    """
    possible = [pair for pair in pairs_of(axes) if not refusals(dict(pair), on_gpu=on_gpu)]
    costly = {backend: place for place, backend in enumerate(reversed(BACKENDS))}
    missing = dict.fromkeys(sorted(possible, key=lambda pair: costly.get(pair[0][1], len(costly))))
    kinds = []
    while missing:
        some = dict(next(iter(missing)))
        for axis in [name for name in axes if name not in some]:
            fitting = [value for value in axes[axis] if not refusals({**some, axis: value}, on_gpu=on_gpu)]
            some[axis] = max(fitting, key=lambda value: sum(pair in missing for pair in _with(some, axis, value, axes)))
        for pair in itertools.combinations([(axis, some[axis]) for axis in axes], 2):
            missing.pop(pair, None)
        kinds.append(Kind(**some))
    return kinds


def _with(some: dict[str, Any], axis: str, value: Any, axes: Axes) -> Iterator[Pair]:
    """The pairs of this value with those that are chosen, in the order of the axes."""
    order = list(axes)
    for name, chosen in some.items():
        pair = (name, chosen), (axis, value)
        yield pair if order.index(name) < order.index(axis) else pair[::-1]


def refused_kinds(axes: Axes, *, on_gpu: bool) -> list[tuple[Kind, str]]:
    """For each value that a backend refuses a kind in which nothing else is refused, and the words."""
    found = []
    for (_, backend), (axis, value) in (pair for pair in pairs_of(axes) if pair[0][0] == "backend"):
        words = refusals({"backend": backend, axis: value}, on_gpu=on_gpu)
        if not words:
            continue
        some = {"backend": backend, axis: value}
        for name in [name for name in axes if name not in some]:
            fitting = (
                option for option in axes[name] if not refusals({"backend": backend, name: option}, on_gpu=on_gpu)
            )
            some[name] = next(fitting, axes[name][0])
        found.append((Kind(**some), words[0]))
    return found


def best_for(kind: Kind, q_len: int, *, on_gpu: bool) -> str:
    """What "auto" takes: the first in the order of docs/backends.md that does not refuse it."""
    order: tuple[str, ...] = ("sdpa", "sliced", "reference")
    if on_gpu and q_len <= 128:
        order = ("varlen", "triton", "reference")
    elif on_gpu:
        whole = kind.mask == "everything" and kind.dtype in HALF
        order = ("flash", *(["sdpa"] if whole else []), "varlen", "triton", "reference")
    chosen = {**kind._asdict(), "lengths": ((q_len, _keys(kind, q_len)),)}
    return next(backend for backend in order if not refusals({**chosen, "backend": backend}, on_gpu=on_gpu))


def _keys(kind: Kind, q_len: int) -> int:
    return next(keys for queries, keys in kind.lengths if queries == q_len)


def mask_of(name: str, q_len: int, kv_len: int, heads: int, device: str) -> Mask:
    longest = max(q_len, kv_len)
    generator = torch.Generator().manual_seed(q_len + kv_len)
    lens = torch.tensor([longest * 7 // 10, longest // 3, longest])
    table = torch.rand(heads, q_len, kv_len, generator=generator) < 0.3
    offsets = torch.tensor([0, longest // 3, longest])
    masks = {
        "causal & lengths": lambda: loom.causal & loom.lengths(lens),
        "(window | sinks) & lengths": lambda: (loom.window(back=40) | loom.sinks(3)) & loom.lengths(lens),
        PREFIX: lambda: (loom.causal | loom.prefix(lens // 2)) & loom.lengths(lens),
        DOCUMENTS: lambda: loom.documents(offsets=offsets, length=longest + 7) & loom.causal,
        BY_HEAD: lambda: loom.masks.from_dense(table[None]),
        "everything": lambda: loom.everything,
    }
    return masks[name]().to(device)


class Given(NamedTuple):
    """What `attend` gets for a kind at one pair of lengths."""

    tensors: list[torch.Tensor]
    mask: Mask
    how: dict[str, Any]


def given(kind: Kind, q_len: int, kv_len: int, device: str) -> Given:
    generator = torch.Generator().manual_seed(q_len * kv_len)
    rows = [(kind.heads.query, q_len, kind.head_dim), (kind.heads.key, kv_len, kind.head_dim)]
    rows.append((kind.heads.key, kv_len, kind.value_dim or kind.head_dim))
    tensors = [torch.randn(BATCH, *shape, generator=generator).to(device, kind.dtype) for shape in rows]
    how = {"return_aux": AuxRequest(lse=True)} if kind.lse else {}
    return Given(tensors, mask_of(kind.mask, q_len, kv_len, kind.heads.query, device), how)


def check(kind: Kind, device: str) -> None:
    """Output, gradients and log-sum-exp are as near to the truth as evidence allows, at every pair of lengths."""
    for q_len, kv_len in kind.lengths:
        tensors, mask, how = given(kind, q_len, kv_len, device)
        table = mask.dense(q_len, kv_len, batch=BATCH, heads=kind.heads.query, device=device)

        def attention(*qkv: torch.Tensor, mask: Mask = mask, how: dict[str, Any] = how) -> Any:
            return loom.attend(*qkv, mask, backend=kind.backend, **how)

        gather(lambda *qkv: attention(*qkv)[0] if kind.lse else attention(*qkv), *tensors, table=table).check()
        if kind.lse:
            for evidence in gather_lse(lambda *qkv: attention(*qkv)[1].lse, *tensors, table=table):
                evidence.check()


def check_choice(kind: Kind, device: str) -> None:
    """ "auto" and the backend by name are what the table says, at every pair of lengths."""
    for q_len, kv_len in kind.lengths:
        tensors, mask, how = given(kind, q_len, kv_len, device)
        assert loom.explain(*tensors, mask, backend=kind.backend, **how).backend == kind.backend
        assert loom.explain(*tensors, mask, **how).backend == best_for(kind, q_len, on_gpu=device == "cuda")
