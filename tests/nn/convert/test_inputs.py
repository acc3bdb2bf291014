"""What the converted module refuses, in the words of what the user gave."""

import pytest
import torch

import maskloom as loom

B, L, S, H, E, KDIM = 2, 5, 7, 3, 12, 11


def zeros(*shape, dtype=torch.float32):
    return torch.zeros(shape, dtype=dtype)


def bools(*shape):
    return zeros(*shape, dtype=torch.bool)


def call(*, batch_first=True, query=(B, L, E), key=(B, S, KDIM), value=(B, S, E), **masks):
    module = loom.nn.MultiheadAttention(E, H, kdim=KDIM, batch_first=batch_first)
    tensors = [zeros(*given) if isinstance(given, tuple) else given for given in (query, key, value)]
    return module(*tensors, **masks)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"query": (B, L, 13)}, r"query has shape \(N, L, 12\); got \(2, 5, 13\)"),
        ({"key": (B, S, E)}, r"key has shape \(N, S, 11\); got \(2, 7, 12\)"),
        ({"batch_first": False, "query": (L, B, 13)}, r"query has shape \(L, N, 12\); got \(5, 2, 13\)"),
        ({"query": (L, 13), "key": (S, KDIM), "value": (S, E)}, r"query has shape \(L, 12\); got \(5, 13\)"),
        ({"value": (B, 6, E)}, r"key and value have the same batch size and length; got .*key \(2, 7, 11\), value \(2, 6, 12\)"),
        ({"query": (3, L, E)}, r"one batch size, N; with batch_first=True: \(N, L, E\); got query \(3, 5, 12\)"),
        ({"batch_first": False}, r"one batch size, N; with batch_first=False: \(L, N, E\); got query \(2, 5, 12\), key"),
        ({"query": (L, E)}, r"all have three dimensions, or all two for one sequence .*; got query \(5, 12\), key \(2, 7, 11\)"),
        ({"key_padding_mask": bools(B, L)}, r"key_padding_mask has shape \(N, S\) = \(2, 7\); got \(2, 5\)"),
        ({"attn_mask": bools(S, L)}, r"attn_mask has shape \(L, S\) = \(5, 7\), or \(N·H, L, S\) = \(6, 5, 7\); got \(7, 5\)"),
        ({"attn_mask": bools(B, L, S)}, r"or \(N·H, L, S\) = \(6, 5, 7\); got \(2, 5, 7\)"),
        ({"attn_mask": bools(L, S).to("meta")}, r"attn_mask is on meta and query on cpu"),
        ({"key_padding_mask": bools(B, S).to("meta")}, r"key_padding_mask is on meta and query on cpu"),
        ({"key": zeros(B, S, KDIM).to("meta")}, "key is on meta, and the module's parameters are on cpu"),
        ({"query": zeros(B, L, E).double()}, "query is torch.float64, and the module's parameters are torch.float32: cast one of them"),
        ({"is_causal": True}, r"is_causal=True is a hint that attn_mask is the causal one, and attn_mask is None: give both"),
    ],
)  # fmt: skip
def test_shapes(given, words):
    with pytest.raises(ValueError, match=words):
        call(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"query": 3}, "query is a tensor; got 3"),
        ({"key": torch.nested.nested_tensor([zeros(3, KDIM), zeros(2, KDIM)], layout=torch.jagged)}, "key is a nested tensor, which this module"),
        ({"value": zeros(B, S, E).to_sparse()}, "value is a tensor of layout torch.sparse_coo; this module takes dense ones: value.to_dense"),
        ({"query": zeros(B, L, E).long()}, "query is floating point; got torch.int64"),
        ({"key_padding_mask": bools(B, S).long()},
         r"key_padding_mask is a tensor, bool \(True = ignored\) or floating point \(added to scores\); got Tensor int64\[2, 7\]. "
         r"Of a table where 1 means the opposite give ~is_real.bool\(\)"),
        ({"attn_mask": bools(L, S).to(torch.uint8)}, r"attn_mask is a tensor, bool \(True = hidden\).*got Tensor uint8\[5, 7\]"),
        ({"attn_mask": [[True]]}, "attn_mask is a tensor, bool .*; got list"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:.*nested")
def test_kinds(given, words):
    with pytest.raises(TypeError, match=words):
        call(**given)


def test_one_sequence():
    shapes = {"query": (L, E), "key": (S, KDIM), "value": (S, E)}
    out, weights = call(**shapes, key_padding_mask=bools(S), attn_mask=bools(H, L, S), average_attn_weights=False)
    assert out.shape == (L, E)
    assert weights.shape == (H, L, S)
    with pytest.raises(ValueError, match=r"key_padding_mask has shape \(S,\) = \(7,\); got \(1, 7\)"):
        call(**shapes, key_padding_mask=bools(1, S))
    with pytest.raises(ValueError, match=r"or \(H, L, S\) = \(3, 5, 7\); got \(2, 5, 7\)"):
        call(**shapes, attn_mask=bools(2, L, S))
