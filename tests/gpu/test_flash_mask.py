"""Masks in the form that FlashAttention 4 takes: operations, tables however they lie in memory, offsets, constants."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends.compiled import compiled_kinds
from maskloom.attention.backends.flash import has_flash
from tests.evidence import gather

pytestmark = pytest.mark.skipif(not has_flash(), reason="flash-attn-4 is not installed")

BATCH, HEADS, KV_HEADS, Q, K, D = 3, 4, 2, 300, 517, 64


def check(mask):
    generator = torch.Generator().manual_seed(5)
    shapes = [(BATCH, HEADS, Q, D), (BATCH, KV_HEADS, K, D), (BATCH, KV_HEADS, K, D)]
    tensors = [torch.randn(shape, generator=generator).to("cuda", torch.bfloat16) for shape in shapes]
    table = loom.as_mask(mask).dense(Q, K, batch=BATCH, heads=HEADS, device="cuda")
    assert 0.02 < table.float().mean() < 0.98
    gather(lambda *qkv: loom.attend(*qkv, mask, backend="flash"), *tensors, table=table).check()


def flags(*shape, share=0.4):
    return (torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < share).cuda()


REACH = torch.tensor([[3, 70, 500, 0], [9, 1, 40, 300], [200, 100, 30, 5]], device="cuda" if has_flash() else "cpu")

OPERATIONS = {
    "numbers": lambda b, h, q, k: ((q - k).abs() <= 50) | (2 * q - 400 > -k) & (torch.where(k > 300, k, q) < 410),
    "casts": lambda b, h, q, k: (q.float() * 1.5 >= k) & ((q >= 60).int() + (k.long() > 100).int() >= 1),
    "bits": lambda b, h, q, k: ((q & 12) >= (k & 12)) ^ ((q | 3) != k),
    "by head": lambda b, h, q, k: (q - k <= REACH[b, h]) & ((h < 2) | (k > 50)),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name):
    check(OPERATIONS[name])


def test_dense_tables_however_they_lie():
    check(loom.masks.from_dense(flags(BATCH, Q, K)))
    before = compiled_kinds()
    check(loom.masks.from_dense(flags(BATCH, K, Q).mT))
    check(loom.masks.from_dense(flags(BATCH, Q, 2 * K)[..., ::2]))
    check(loom.masks.from_dense(flags(1, Q, K).expand(BATCH, Q, K)))
    check(loom.masks.from_dense(flags(BATCH, 1, Q, K)))
    check(loom.masks.from_dense(flags(BATCH + 1, Q + 3, K + 9)[1:, 3:, 9:]))
    assert compiled_kinds() == before
    check(loom.masks.from_dense(flags(1, HEADS, Q, K)))
    check(loom.masks.from_dense(flags(BATCH, HEADS, Q, K)))


def test_tables_of_positions_however_they_lie():
    for table in (
        flags(K, BATCH).T, flags(BATCH, 2 * K)[:, ::2], flags(1, K).expand(BATCH, K), flags(BATCH, K)
    ):  # fmt: skip
        check(loom.causal | loom.key_padding(table))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.float32])
def test_tables_of_every_dtype(dtype):
    numbers = torch.randint(-100, 100, (BATCH, K), generator=torch.Generator().manual_seed(1)).to("cuda", dtype)
    check(lambda b, h, q, k: (numbers[b, q] - numbers[b, k] < 5) & (numbers[b, k] > -90))


def test_padding_on_the_left():
    """Positions before 0: tables are read at products of comparisons there."""
    pads = torch.tensor([0, 100, 211], device="cuda")
    documents = loom.documents(offsets=torch.tensor([0, 70, 517], device="cuda"))
    lens = torch.tensor([517, 300, 306], device="cuda")
    for mask in (
        loom.lengths(lens),
        loom.causal & loom.lengths(lens) | loom.window(back=30),
        loom.causal & documents,
        documents & loom.key_padding(flags(BATCH, K)),
    ):
        check(loom.masks.shifted(mask, q_offset=-pads, kv_offset=-pads))
    check(loom.masks.shifted(loom.padding(flags(BATCH, K)), q_offset=torch.tensor(-9, device="cuda"), kv_offset=-5))


def test_an_offset_in_a_tensor():
    before = compiled_kinds()
    for number in (211, 0, 150):
        offset = torch.tensor(number, device="cuda")
        check(loom.masks.shifted(loom.causal & loom.window(back=100), q_offset=offset))
        assert compiled_kinds() - before <= 1
