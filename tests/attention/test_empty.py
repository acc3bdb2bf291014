"""An empty batch, B = 0: it goes through every function, forward and backward, as any other."""

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom

H, L, D = 2, 5, 8


def ids(*shape):
    return torch.zeros(0, *shape, dtype=torch.int64)


def flags(*shape):
    return torch.zeros(0, *shape, dtype=torch.bool)


MASKS = {
    "causal": lambda: loom.causal,
    "lengths": lambda: loom.causal & loom.lengths(ids()),
    "lengths of nothing": lambda: loom.lengths([]),
    "lengths of both": lambda: loom.lengths(ids(), ids()),
    "padding": lambda: loom.padding(flags(L)),
    "real": lambda: loom.real(ids(L)),
    "key_padding": lambda: loom.key_padding(flags(L)) | loom.sinks(1),
    "documents": lambda: loom.documents(ids(L)),
    "position_ids": lambda: loom.documents(position_ids=ids(L)),
    "within": lambda: loom.masks.within(loom.documents(position_ids=ids(L)), loom.masks.chunked(2)),
    "document_prefix": lambda: loom.masks.document_prefix(loom.documents(ids(L)), ids(3)),
    "prefix": lambda: loom.prefix(ids()),
    "key_range": lambda: loom.masks.key_range(1, ids()),
    "global_tokens": lambda: loom.masks.global_tokens(flags(L)),
    "shifted": lambda: loom.masks.shifted(loom.causal, q_offset=ids()),
    "turns": lambda: loom.masks.turns(ids(L), visible=torch.ones(3, 3).bool()),
    "shared_prefix": lambda: loom.masks.shared_prefix(ids(), ids(3), length=L),
    "tree": lambda: loom.masks.tree(ids(L)),
    "mixed_modal": lambda: loom.masks.mixed_modal(flags(L)),
    "flamingo": lambda: loom.masks.flamingo(flags(L), media_ids=ids(L)),
    "from_dense": lambda: loom.masks.from_dense(flags(H, L, L)),
    "from_blocks": lambda: loom.masks.from_blocks(flags(2, 3), (4, 2)),
    "top_k_blocks": lambda: loom.masks.top_k_blocks(ids(2, 1), (4, 5)),
    "per_head": lambda: loom.masks.per_head([loom.causal, loom.lengths(ids())]),
    "function": lambda: reads_rows_of(ids()),
}


def reads_rows_of(lens):
    return lambda b, h, q_idx, kv_idx: kv_idx < lens[b]


def inputs():
    return [torch.zeros(0, heads, L, D, requires_grad=True) for heads in (H, 1, 1)]


@pytest.mark.parametrize(
    "score_mod",
    [
        lambda s, b, h, i, j: s - b,
        lambda s, b, h, i, j: s * 2 - b,
        lambda s, b, h, i, j: s + torch.zeros(0, L)[b, j],
        loom.scores.alibi(H),
        loom.scores.compose(loom.scores.softcap(2.0), lambda s, b, h, i, j: s + torch.zeros(0, H, L)[b, h, i]),
    ],
    ids=["the row", "not added", "a table of rows", "alibi", "composed"],
)
def test_score_mods_that_know_the_row(score_mod):
    query, key, value = inputs()
    for call in (
        lambda: loom.attend(query, key, value, loom.causal, score_mod=score_mod),
        lambda: loom.attend(query, key, value, score_mod=score_mod, dropout=0.5),
        lambda: loom.reference(query, key, value, loom.causal, score_mod=score_mod)[0],
    ):
        assert call().shape == (0, H, L, D)
    assert loom.attention_weights(query, key, loom.causal, score_mod=score_mod).shape == (0, H, L, L)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", MASKS)
def test_attend_forward_and_backward(name, backend):
    tensors = inputs()
    out = loom.attend(*tensors, MASKS[name](), backend=backend)
    assert out.shape == (0, H, L, D)
    out.sum().backward()
    assert [tensor.grad.shape for tensor in tensors] == [tensor.shape for tensor in tensors]
    assert loom.explain(*tensors, MASKS[name](), backend=backend).backend in ("sdpa", "reference")


@pytest.mark.parametrize("name", MASKS)
def test_block_masks_and_tables(name):
    mask = MASKS[name]()
    for blocks in (
        loom.block_mask(mask, L, L, batch=0, heads=H, device="cpu"),
        loom.create_block_mask(mask, 0, H, L, L, device="cpu"),
    ):
        assert blocks.shape == (0, H, L, L)
        assert loom.attend(*inputs(), blocks).shape == (0, H, L, D)
        assert loom.blocks.summary(blocks).density == 0
    assert loom.as_mask(mask).dense(L, L, batch=0, heads=H).shape == (0, H, L, L)


def test_the_batch_is_inferred():
    mask = loom.causal & loom.lengths(ids())
    assert loom.block_mask(mask, L, L).shape == (0, 1, L, L)
    assert mask.dense(L, 7).shape == (0, 1, L, 7)


@pytest.mark.parametrize("name", ["causal", "lengths", "padding", "documents"])
def test_the_module_has_gradients_for_all_its_parameters(name):
    module = loom.MultiheadFlexAttention(11, 6, H)
    x = torch.zeros(0, L, 11, requires_grad=True)
    module(x, MASKS[name]()).out.sum().backward()
    assert x.grad.shape == x.shape
    assert all(not parameter.grad.any() for parameter in module.parameters())


def test_what_is_learned_has_a_gradient():
    table, sinks = torch.full((H, 7), torch.nan, requires_grad=True), torch.zeros(H, requires_grad=True)
    wants = AuxRequest(lse=True)
    bias = loom.scores.relative_bias(table)
    out, aux = loom.attend(*inputs(), MASKS["lengths"](), score_mod=bias, sinks=sinks, return_aux=wants)
    (out.sum() + aux.lse.sum()).backward()
    assert aux.lse.shape == (0, H, L)
    assert not table.grad.any()
    assert not sinks.grad.any()


def test_padding_is_cleaned():
    out = loom.attend(*inputs(), MASKS["padding"](), clean_padding=True)
    assert out.shape == (0, H, L, D)


def test_under_a_full_graph_compile():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v, mask: loom.attend(q, k, v, mask), backend="eager", fullgraph=True)
    assert compiled(*inputs(), MASKS["lengths"]()).shape == (0, H, L, D)


def test_words():
    with pytest.raises(ValueError, match=r"batch \(B\) is 0, and the mask reads a table for 3 batch rows"):
        loom.attend(*inputs(), loom.lengths([2, 3, 5]))
    with pytest.raises(ValueError, match="nothing to attend to in an empty tensor"):
        loom.attend(*(torch.zeros(0, H, 0, D) for _ in range(3)))
    with pytest.raises(ValueError, match=r"batch \(B\) is a number of batch rows, at least 0; got -1"):
        loom.block_mask(loom.causal, L, L, batch=-1, device="cpu")
    with pytest.raises(ValueError, match=r"heads \(H\) is a number of heads, at least 1; got 0"):
        loom.block_mask(loom.causal, L, L, heads=0, device="cpu")
