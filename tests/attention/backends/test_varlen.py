"""Which masks are packed documents, and what the kernel for them is told; it needs a GPU, so here a loop stands for it."""

import itertools
import math

import pytest
import torch
from torch.nn.attention import varlen as torchs

import maskloom as loom
from maskloom.attention.backends.varlen import _ends, packed, varlen
from maskloom.attention.request import Request
from tests.evidence import gather

B, H, HKV, L, D = 3, 4, 2, 13, 8
DOCUMENTS = loom.documents(offsets=[0, 2, 2, 7, L])
IDS = torch.arange(L) // 5


@pytest.fixture
def kernel(monkeypatch):
    """torch's kernel, one document after the other; what lies outside of all is left unwritten. Returns its windows."""
    windows = []

    def attention(query, key, value, cu_q, cu_k, max_q, max_k, *, scale=None, window_size=(-1, -1), enable_gqa=False):
        assert cu_q.dtype == cu_k.dtype == torch.int32 and torch.equal(cu_q, cu_k)
        assert bool((cu_q.diff() >= 0).all()) and cu_q.diff().max() <= max_q == max_k
        assert enable_gqa or query.shape[1] == key.shape[1]
        windows.append(window_size)
        back, ahead = (math.inf if size == -1 else size for size in window_size)
        parts, ends = [], cu_q.tolist()
        for first, last in itertools.pairwise(ends):
            rows = [tensor[first:last].transpose(0, 1)[None] for tensor in (query, key, value)]
            if first < last:
                at = torch.arange(last - first)
                distance = at[:, None] - at
                table = (distance <= back) & (-distance <= ahead)
                parts.append(loom.reference(*rows, table, scale=scale)[0][0].transpose(0, 1))
        unwritten = query.new_full((len(query) - ends[-1], *query.shape[1:]), math.nan)
        return torch.cat([*parts, unwritten])

    monkeypatch.setattr(torchs, "varlen_attn", attention)
    return windows


PACKED = {
    "documents": (DOCUMENTS, (-1, -1)),
    "causal": (DOCUMENTS & loom.causal, (-1, 0)),
    "causal first": (loom.causal & DOCUMENTS, (-1, 0)),
    "window": (DOCUMENTS & loom.window(back=2), (2, 0)),
    "window both ways": (DOCUMENTS & loom.window(back=2, ahead=3), (2, 3)),
    "its own key alone": (DOCUMENTS & loom.window(back=0), (0, 0)),
    "causal & window": (loom.window(back=2, ahead=3) & DOCUMENTS & loom.causal, (2, 0)),
    "two windows": (loom.window(back=2, ahead=3) & DOCUMENTS & loom.window(back=5, ahead=1), (2, 1)),
    "and_masks": (loom.and_masks(loom.causal, DOCUMENTS), (-1, 0)),
    "a tail": (loom.documents(offsets=[0, 2, 7], length=L) & loom.causal, (-1, 0)),
    "no tail": (loom.documents(offsets=[0, 2, L], length=L), (-1, -1)),
    "more than the row": (loom.documents(offsets=[0, 5, 11, 17, 19]) & loom.causal, (-1, 0)),
    "one document": (loom.documents(offsets=[0, L]), (-1, -1)),
    "empty documents": (loom.documents(offsets=[0, 0, 5, 5, 5], length=L), (-1, -1)),
    "wide offsets": (loom.documents(offsets=torch.tensor([0, 3, L], dtype=torch.int64)) & loom.causal, (-1, 0)),
    "narrow offsets": (loom.documents(offsets=torch.tensor([0, 3, L], dtype=torch.int8)) & loom.causal, (-1, 0)),
}


@pytest.mark.parametrize("kv_heads", [HKV, H])
@pytest.mark.parametrize("name", PACKED)
def test_packed_documents(kernel, name, kv_heads):
    mask, window = PACKED[name]
    generator = torch.Generator().manual_seed(3)
    tensors = [torch.randn(B, heads, L, D, generator=generator) for heads in (H, kv_heads, kv_heads)]
    gather(lambda *qkv: varlen(Request(*qkv, mask, scale=0.3)).out, *tensors, table=mask.dense(L, L), scale=0.3).check()
    assert kernel == [window]


OTHERS = {
    "none": None,
    "causal alone": loom.causal,
    "window alone": loom.window(back=2),
    "by id": loom.documents(IDS),
    "by position": loom.documents(position_ids=IDS),
    "ids of rows": loom.documents(IDS.expand(B, L).contiguous()) & loom.causal,
    "two of them": DOCUMENTS & loom.documents(offsets=[0, 5, L]),
    "the same twice, once shifted": DOCUMENTS & loom.masks.shifted(DOCUMENTS, q_offset=1),
    "or": DOCUMENTS | loom.causal,
    "not": ~DOCUMENTS,
    "xor": DOCUMENTS ^ loom.causal,
    "shifted": loom.masks.shifted(DOCUMENTS & loom.causal, q_offset=2),
    "lengths": DOCUMENTS & loom.lengths([2, 3, 5]),
    "prefix": DOCUMENTS & (loom.causal | loom.prefix(3)),
    "not causal": DOCUMENTS & ~loom.causal,
    "dilated": DOCUMENTS & loom.masks.dilated(back=3, step=2),
    "within": loom.masks.within(DOCUMENTS, loom.causal),
    "function": lambda b, h, q_idx, kv_idx: q_idx >= kv_idx,
    "with a function": DOCUMENTS & loom.as_mask(lambda b, h, q_idx, kv_idx: q_idx >= kv_idx),
    "block mask": loom.block_mask(DOCUMENTS & loom.causal, L, L),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_masks_are_not_proven(name):
    assert packed(OTHERS[name]) is None


def test_what_a_subclass_of_window_or_causal_means_is_its_own():
    kinds = [type(part) for part in (DOCUMENTS, loom.window(back=2), loom.causal)]
    assert not any(kind.__subclasses__() for kind in kinds)  # packed takes an instance for the mask of that name


def test_ends_of_documents_in_all_rows():
    assert _ends(torch.tensor([0, 2, 7]), 2, 7).tolist() == [0, 2, 7, 7, 9, 14, 14]
    assert _ends(torch.tensor([0, 2, 5]), 2, 7).tolist() == [0, 2, 5, 7, 9, 12, 14]  # a tail is one more
    assert _ends(torch.tensor([0, 5, 11]), 2, 7).tolist() == [0, 5, 7, 7, 12, 14, 14]  # more than the row has
    assert _ends(torch.tensor([0, 0]), 3, 5).tolist() == [0, 0, 5, 5, 10, 10, 15]
    assert _ends(torch.tensor([0, 100], dtype=torch.int8), 3, 100).dtype == torch.int32
    assert _ends(torch.tensor([0, 100], dtype=torch.int8), 3, 100).tolist() == [0, 100, 100, 200, 200, 300, 300]
    assert _ends(torch.tensor([0, 100], dtype=torch.int8), 2, 300).tolist() == [0, 100, 300, 400, 600]


def test_nothing_to_do_for_hidden_rows(kernel):
    mask = loom.documents(offsets=[0, 2, 5], length=L)
    query = torch.randn(B, H, L, D, requires_grad=True)
    out = varlen(Request(query, query, query, mask)).out
    out.sum().backward()
    assert not out[:, :, 5:].any() and not query.grad[:, :, 5:].any()
