"""Operations that give several tensors are read as one knows them or not at all: never wrongly, and without a crash.

Of the operations of torch 2.13 that `operations` lists, 84 run under ``torch.vmap`` on a row that an index reads, and 166 on a
row that the mask holds: 408 and 961 block masks on the kinds of rows in `ROWS`, compared with torch's.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.program.record import record
from tests.blocks.random_masks import differing
from tests.blocks.several_outputs import ROWS, call, operations, runs_on

B, Q, K, BLOCK = 2, 12, 16, 4
LEFT_OUT = {"_weight_norm_interface"}  # torch leaves memory of its second result as it was


def mask_of(operation: Any, kind: str, held: bool):
    """A mask that reads every result of an operation on the row of an index, or on one that it holds."""

    def mask(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        seen = q_idx >= kv_idx
        for result in results_of(call(operation, ROWS[kind][1 if held else b])):
            numbers = (result.real if result.is_complex() else result).reshape(-1).mul(8).double().round()
            if len(numbers):
                seen = seen ^ (numbers[(q_idx + kv_idx) % len(numbers)] >= numbers[kv_idx % len(numbers)])
        return seen

    return mask


def results_of(out: Any):
    if isinstance(out, Tensor):
        yield out
    elif isinstance(out, (tuple, list)):
        for item in out:
            yield from results_of(item)


def tables(create: Any, mask: Any) -> Any:
    """A block mask, or what is raised in place of it."""
    try:
        return create(mask, B, None, Q, K, "cpu", BLOCK)
    except Exception as error:
        return error


def compared(operation: Any, held: bool) -> list[str | None]:
    """For each kind of row that it takes, what is wrong with its tables, or None; but where torch has none either."""
    kinds = [kind for kind in ROWS if runs_on(operation, kind)]
    return [words for kind in kinds for words in _compared(mask_of(operation, kind, held), f"{operation} on {kind}")]


def _compared(mask: Any, name: str) -> list[str | None]:
    theirs, ours = tables(torch_create_block_mask, mask), tables(loom.create_block_mask, mask)
    if isinstance(theirs, Exception):
        crashed = isinstance(ours, (IndexError, KeyError, AttributeError, AssertionError))
        return [f"{name}: {ours!r}"] if crashed else []
    if isinstance(ours, Exception):
        return [f"{name}: {ours!r}"]
    return [f"{name}: {differing(ours, theirs)}" if differing(ours, theirs) else None]


@pytest.mark.parametrize("held", [False, True], ids=["of an index", "that is held"])
def test_each_of_atens_operations_has_torchs_tables(held):
    tried = [operation for operation in operations() if operation.overloadpacket.__name__ not in LEFT_OUT]
    found = {operation: words for operation in tried if (words := compared(operation, held))}
    assert [words for every in found.values() for words in every if words is not None] == []
    assert len(found) >= (150 if held else 75)


IDS = torch.randint(0, 5, (2, 64), generator=torch.Generator().manual_seed(0))


def written_into_a_part(row: Tensor) -> Tensor:
    copy = row.clone()
    first, _ = copy.split(32)
    first += 2
    return copy


def written_into_the_whole(row: Tensor) -> Tensor:
    copy = row + 0
    parts = copy.unbind()
    copy *= 2
    return torch.stack(parts)


def exchanged(row: Tensor) -> Tensor:
    first, second = (row + 0).chunk(2)
    first -= second
    return torch.cat([first, second])


READS = {
    "sort": lambda row: row.sort().values,
    "places of a stable sort": lambda row: row.sort(stable=True).indices,
    "topk": lambda row: row.topk(9).values.repeat(8),
    "cummax": lambda row: row.cummax(0).values,
    "max": lambda row: row.view(8, 8).max(1).values.repeat(8),
    "median": lambda row: row.view(16, 4).median(0).values.repeat(16),
    "mode": lambda row: row.view(8, 8).mode(1).values.repeat(8),
    "kthvalue": lambda row: row.view(8, 8).kthvalue(3).values.repeat(8),
    "aminmax": lambda row: torch.stack(row.view(32, 2).aminmax(dim=1)).flatten(),
    "var_mean": lambda row: torch.stack(torch.var_mean(row.double().view(32, 2), 1)).flatten().round(),
    "frexp": lambda row: torch.frexp(row.float()).exponent,
    "split": lambda row: row.split(32)[0].repeat(2),
    "split of sizes": lambda row: torch.cat(row.split([3, 50, 11])[::-1]),
    "chunk": lambda row: torch.cat(row.chunk(5)[::-1]),
    "tensor_split": lambda row: torch.cat(row.tensor_split(5)[::-1]),
    "unbind": lambda row: torch.stack(row.unbind()[::-1]),
    "written into a part": written_into_a_part,
    "written into the whole": written_into_the_whole,
    "exchanged": exchanged,
}


@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("of_value", [True, False], ids=["value", "function"])
def test_several_outputs_of_a_row(name, of_value):
    mask = Reads(IDS, name) if of_value else lambda b, h, i, j: READS[name](IDS[b])[i] >= IDS[b, j]
    theirs = torch_create_block_mask(mask, 2, None, 64, 64, "cpu", 16)
    for _ in range(3):  # the third time from a list
        assert differing(loom.create_block_mask(mask, 2, None, 64, 64, "cpu", 16), theirs) == []


@loom.masks.mask_dataclass
class Reads(loom.Mask):
    """One of `READS`, by a mask whose steps are written down."""

    ids: Tensor
    how: str

    def __call__(self, b, h, q_idx, kv_idx):
        return READS[self.how](self.ids[b])[q_idx] >= self.ids[b, kv_idx]


@pytest.mark.parametrize("name", ["sort", "max", "split", "aminmax"])
def test_attention_with_them_while_torch_compiles(name):
    q, k, v = torch.randn(3, 2, 2, 64, 8, generator=torch.Generator().manual_seed(0)).unbind()
    mask = Reads(IDS, name)
    traced = torch.compile(lambda q, k, v: loom.attend(q, k, v, mask), backend="eager")
    torch.testing.assert_close(traced(q, k, v), loom.attend(q, k, v, mask))


def test_parts_of_a_row_are_followed():
    mask = Reads(IDS, "split of sizes")
    decided = loom.blocks.explain_block_mask(mask, 64, 64, batch=2, block_size=16, device="cpu").decided
    assert decided.unsupported_ops == () and decided.evaluation == 0


@pytest.mark.parametrize("op", [torch.sort, torch.max, torch.aminmax, torch.topk])
def test_results_written_where_one_says(op):
    options = {torch.topk: {"k": 3}, torch.sort: {"dim": 0}}.get(op, {"dim": 0})

    def mask(b, h, q_idx, kv_idx):
        row = IDS[b]
        out = tuple(torch.empty_like(result) for result in op(row, **options))
        return op(row, **options, out=out)[0].sum() + q_idx >= kv_idx

    assert "writes into a tensor" in str(record(mask, "cpu").unsupported_reason)


def test_what_has_as_many_results_as_the_values_say_is_not_followed():
    for read in (torch.unique, torch.unique_consecutive, lambda row: row[row > 2]):
        program = record(lambda b, h, i, j, read=read: read(IDS[b]).sum() + i >= j, "cpu")
        assert "as many numbers as the values say" in str(program.unsupported_reason)


def test_all_pairs_of_shapes_of_results():
    """A list in a tuple, none, and a number beside tensors."""
    from maskloom.program.batched import results_in

    shapes = [(1, 2, 3), ([1], (2, [3])), (None, 1, [2, 3])]
    assert [results_in(shape, 3) for shape in shapes] == [(1, 2, 3)] * 3
    assert all(results_in(shape, count) is None for shape, count in itertools.product(shapes, (0, 2, 4)))
