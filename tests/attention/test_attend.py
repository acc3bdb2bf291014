"""`attend` on the CPU: right forward and backward, kept tables, and the words of errors."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, noop_mask
from torch.nn.attention.flex_attention import create_block_mask as torch_create_block_mask

import maskloom as loom
from maskloom.blocks.dense import dense_of
from tests.all_masks import ALL_MASKS
from tests.evidence import gather

B, H, HKV, Q, K, D, E = 3, 2, 1, 13, 17, 8, 5


def inputs(*, dtype=torch.float32, q_len=Q, kv_len=K):
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, H, q_len, D), (B, HKV, kv_len, D), (B, HKV, kv_len, E)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", ALL_MASKS)
def test_every_mask_forward_and_backward(name):
    mask = ALL_MASKS[name]()
    table = mask.dense(Q, K)
    for given in (mask, loom.block_mask(mask, Q, K, block_size=(4, 8))):
        gather(lambda *qkv, given=given: loom.attend(*qkv, given), *inputs(), table=table).check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(dtype):
    mask = ALL_MASKS["and"]()
    gather(lambda *qkv: loom.attend(*qkv, mask), *inputs(dtype=dtype), table=mask.dense(Q, K)).check()


@pytest.mark.parametrize("backend", ["sdpa", "sliced", "reference"])
def test_backends_by_name(backend):
    mask = ALL_MASKS["mixed"]()
    gather(lambda *qkv: loom.attend(*qkv, mask, backend=backend), *inputs(), table=mask.dense(Q, K)).check()


def test_score_mod_and_scale():
    def cap(score, b, h, q_idx, kv_idx):
        return torch.tanh(score / 2) * 2

    gather(
        lambda *qkv: loom.attend(*qkv, loom.causal, score_mod=cap, scale=0.7),
        *inputs(),
        table=loom.causal.dense(Q, K),
        score_mod=cap,
        scale=0.7,
    ).check()


def test_scale_without_a_score_mod():
    table = loom.causal.dense(Q, K)
    gather(lambda *qkv: loom.attend(*qkv, loom.causal, scale=0.9), *inputs(), table=table, scale=0.9).check()


def test_groups_of_query_heads_with_masks_of_their_own():
    generator = torch.Generator().manual_seed(5)
    query = torch.randn(B, 6, Q, D, generator=generator)
    key, value = torch.randn(B, 3, K, D, generator=generator), torch.randn(B, 3, K, E, generator=generator)
    reach = torch.tensor([1, 2, 3, 5, 8, 13])
    mask = loom.as_mask(lambda b, h, q_idx, kv_idx: (q_idx - kv_idx).abs() < reach[h])
    for given in (mask, loom.block_mask(mask, Q, K, block_size=4)):
        table = mask.dense(Q, K)
        assert table.shape == (1, 6, Q, K)
        gather(lambda *qkv, given=given: loom.attend(*qkv, given), query, key, value, table=table).check()


def test_without_a_mask_everything_is_seen():
    gather(lambda *qkv: loom.attend(*qkv), *inputs(), table=None).check()


def test_a_block_mask_means_full_tiles_and_partial_tiles_where_mask_mod_says_so():
    one = torch.ones(1, 1, 1, dtype=torch.int32)
    first, second = torch.tensor([[[[0, 1]]]], dtype=torch.int32), torch.tensor([[[[1, 0]]]], dtype=torch.int32)
    blocks = BlockMask.from_kv_blocks(
        one, first, one, second, BLOCK_SIZE=(4, 4), mask_mod=loom.causal, seq_lengths=(3, 7), compute_q_blocks=False
    )
    table = dense_of(blocks, batch=B, heads=H)
    expected = [[True, False, False, False], [True, True, False, False], [True, True, True, False]]
    assert table[0, 0].tolist() == [row + [True] * 3 for row in expected]
    gather(lambda *qkv: loom.attend(*qkv, blocks), *inputs(q_len=3, kv_len=7), table=table).check()
    trivial = BlockMask.from_kv_blocks(
        one * 0, first, one, second, BLOCK_SIZE=(4, 4), mask_mod=noop_mask, seq_lengths=(3, 7)
    )
    assert dense_of(trivial, batch=B, heads=H)[0, 0].tolist() == [[False] * 4 + [True] * 3] * 3


def test_a_query_that_sees_nothing_gives_zero():
    qkv = [tensor.requires_grad_() for tensor in inputs()]
    out = loom.attend(*qkv, loom.lengths([5, 0, 13], [7, 3, 17]))
    out.sum().backward()
    assert not out[1].any()
    assert not out[0, :, 5:].any()
    assert out[2].all()
    assert not qkv[0].grad[1].any()
    assert not qkv[2].grad[1].any()
    assert all(tensor.grad.isfinite().all() for tensor in qkv)


def test_non_contiguous_and_expanded_inputs():
    q, k, v = inputs()
    table = loom.causal.dense(Q, K)
    strided = [tensor.transpose(1, 2).contiguous().transpose(1, 2) for tensor in (q, k, v)]
    torch.testing.assert_close(loom.attend(*strided, loom.causal), loom.attend(q, k, v, loom.causal))
    shared = [tensor[:1].expand_as(tensor) for tensor in (q, k, v)]
    gather(lambda *qkv: loom.attend(*qkv, loom.causal), *shared, table=table).check()


def test_torch_func_grad_and_vmap():
    q, k, v = inputs()
    for mask in (loom.lengths([5, 7, 11]), loom.block_mask(loom.lengths([5, 7, 11]), Q, K)):
        gradient = torch.func.grad(lambda q, mask=mask: loom.attend(q, k, v, mask).square().sum())(q)
        leaf = q.clone().requires_grad_()
        loom.attend(leaf, k, v, mask).square().sum().backward()
        torch.testing.assert_close(gradient, leaf.grad)


def test_tables_of_one_row_that_stand_for_all_are_an_error():
    for sizes in (4, 128):
        blocks = torch_create_block_mask(loom.lengths([2, 7, 11]), None, None, Q, K, device="cpu", BLOCK_SIZE=sizes)
        if sizes == 4:
            with pytest.raises(ValueError, match=r"built with B=None, .* build it with B=3"):
                loom.attend(*inputs(), blocks)
        else:  # one partial tile serves all
            table = loom.lengths([2, 7, 11]).dense(Q, K)
            gather(lambda *qkv, blocks=blocks: loom.attend(*qkv, blocks), *inputs(), table=table).check()


def test_explain():
    q, k, v = inputs()
    blocks = loom.block_mask(loom.causal, Q, K, block_size=(4, 8))
    found = loom.explain(q, k, v, blocks)
    assert (found.backend, found.skipped, found.partial, found.full) == ("sdpa", 6, 5, 1)
    assert str(found).splitlines()[:3] == [
        f"backend: sdpa ({found.reason})",
        "skips: what lies above the diagonal",
        "tiles of the block mask: 6 skipped, 5 partial, 1 full",
    ]
    assert loom.explain(q, k, v, score_mod=lambda score, b, h, q, k: score * 2).backend == "sliced"
    assert loom.explain(q, k, v, backend="reference").reason == "asked for"


def test_a_trace_of_attend_gives_what_attend_gives():
    blocks = loom.block_mask(ALL_MASKS["and"](), Q, K)
    traced = torch.compile(lambda q, k, v, blocks: loom.attend(q, k, v, blocks), backend="aot_eager", fullgraph=True)
    table = ALL_MASKS["and"]().dense(Q, K)
    gather(lambda *qkv: traced(*qkv, blocks), *inputs(), table=table).check()


q, k, v = inputs()


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loom.attend(q.tolist(), k, v), TypeError, "query is a tensor .* got list"),
        (
            lambda: loom.attend(q[0], k, v),
            ValueError,
            r"query has shape \(batch, heads, length, head dim\); got \(2, 13, 8\)",
        ),
        (
            lambda: loom.attend(q.long(), k, v),
            TypeError,
            "query is float64, float32, bfloat16 or float16; got torch.int64",
        ),
        (lambda: loom.attend(q, k, v, scale="0.5"), TypeError, r"scale is a number, .* got '0.5'"),
        (lambda: loom.attend(q, k, v, scale=10**400), ValueError, r"scale is a number, at most 1\.8e\+308; got 1000"),
        (lambda: loom.attend(q, k, v, scale=True), TypeError, "scale is a number, .* got True"),
        (lambda: loom.attend(q, k, v, kernel_options="FLASH"), TypeError, "kernel_options is a dict, .* got 'FLASH'"),
        (
            lambda: loom.attend(q, k, v, kernel_options={"BLOCK_M": [64, 32]}),
            TypeError,
            r"numbers, bools and words by name; got 'BLOCK_M': \[64, 32\]",
        ),
        (
            lambda: loom.explain(q, k, v, kernel_options={"A": None}),
            TypeError,
            "numbers, bools and words by name; got .A.: None",
        ),
        (lambda: loom.attend(q, k.double(), v), ValueError, "one dtype; got query torch.float32, key torch.float64"),
        (lambda: loom.attend(q, k, v.to("meta")), ValueError, "on one device; got query cpu, key cpu, value meta"),
        (
            lambda: loom.attend(q[:2], k, v),
            ValueError,
            r"one batch size; got query \(2, 2, 13, 8\), key \(3, 1, 17, 8\)",
        ),
        (lambda: loom.attend(q, k, v[:, :, :5]), ValueError, "key and value have the same heads and length"),
        (lambda: loom.attend(q[..., :5], k, v), ValueError, r"same head dim; got query \(3, 2, 13, 5\)"),
        (lambda: loom.attend(k, q, q), ValueError, r"multiple of the key heads; got query \(3, 1, 17, 8\), key \(3, 2"),
        (lambda: loom.attend(q[:, :, :0], k, v), ValueError, "nothing to attend to"),
        (
            lambda: loom.attend(*(tensor.to("meta") for tensor in (q, k, v)), loom.causal),
            ValueError,
            "are on the meta device, where there are no values",
        ),
        (lambda: loom.attend(q.to(torch.float8_e4m3fn), k, v), TypeError, "or float16; got torch.float8_e4m3fn"),
        (lambda: loom.attend(q.to(torch.complex64), k, v), TypeError, "or float16; got torch.complex64"),
        (lambda: loom.attend(3, k, v, sinks=torch.zeros(2)), TypeError, "query is a tensor .* got int"),
        (lambda: loom.attend(q[0], k, v, sinks=torch.zeros(2)), ValueError, r"query has shape .* got \(2, 13, 8\)"),
        (lambda: loom.attend(q, k, v, 3), TypeError, "a mask is a function"),
        (
            lambda: loom.attend(q, k, v, loom.block_mask(loom.causal, 7, 5)),
            ValueError,
            r"\(7, 5\); the attention has \(13, 17\)",
        ),
        (
            lambda: loom.attend(q, k, v, loom.block_mask(loom.causal, Q, K, batch=2)),
            ValueError,
            "for 2 batch rows; the attention has 3",
        ),
        (
            lambda: loom.attend(q, k, v, loom.block_mask(loom.causal, Q, K, heads=5)),
            ValueError,
            "for 5 heads; the attention has 2",
        ),
        (lambda: loom.attend(q, k, v, loom.block_mask(loom.causal, Q, K, batch=3)[0]), ValueError, "was sliced"),
        (lambda: loom.attend(q, k, v, loom.lengths([7])), ValueError, r"batch \(B\) is 3, .* for 1 batch rows"),
        (lambda: loom.explain(q, k, v, loom.lengths([3, 4])), ValueError, r"batch \(B\) is 3, .* for 2 batch rows"),
        (
            lambda: loom.attend(q, k, v, loom.lengths([3, 4, 5]).to("meta")),
            ValueError,
            "on meta and the attention on cpu",
        ),
        (
            lambda: loom.attend(q, k, v, loom.block_mask(loom.causal, Q, K).to("meta")),
            ValueError,
            "the block mask is on meta and the attention on cpu",
        ),
        (
            lambda: loom.attend(q, k, v, loom.lengths([3, 4, 5]) & loom.lengths([3, 4, 5]).to("meta")),
            ValueError,
            r"lie on several devices \(cpu, meta\)",
        ),
        (lambda: loom.attend(q, k, v, loom.lengths([3, 4])), ValueError, r"batch \(B\) is 3, .* for 2 batch rows"),
        (
            lambda: loom.attend(q, k, v, backend="fast"),
            ValueError,
            "one of auto, decode, flash, sdpa, varlen, triton, sliced, reference; got 'fast'",
        ),
        (lambda: loom.attend(q, k, v, backend="triton"), ValueError, "'triton' cannot do this: it needs a GPU"),
        (
            lambda: loom.attend(q, k, v, backend="sdpa", score_mod=max),
            ValueError,
            "'sdpa' cannot do this: score_mod is not known to only add to the score",
        ),
    ],
)
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_nested_tensors_are_refused():
    nested = torch.nested.nested_tensor([torch.ones(2, 3, 8), torch.ones(2, 5, 8)], layout=torch.jagged)
    with pytest.raises(TypeError, match="query is a nested tensor"):
        loom.attend(nested, k, v)


NOT_DENSE = {
    "sparse": (lambda tensor: tensor.to_sparse(), r"layout torch.sparse_coo; attention takes dense ones: query.to_dense\(\)"),
    "mkldnn": (lambda tensor: tensor.to_mkldnn(), "layout torch._mkldnn; attention takes dense ones"),
    "nested": (lambda tensor: torch.nested.nested_tensor(list(tensor)), "pack its parts into one row, with a documents mask"),
    "jagged": (lambda tensor: torch.nested.nested_tensor(list(tensor[:, 0]), layout=torch.jagged), "pack its parts into one row"),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_DENSE)
def test_tensors_that_are_not_dense_are_refused(name):
    """Also where a dense one of the same shape went before, whose plan is kept."""
    change, words = NOT_DENSE[name]
    x = torch.randn(3, 2, 5, 7)
    for options in ({}, {"sinks": torch.zeros(2)}, {"mask": loom.causal}, {"mask": torch.ones(5, 5) > 0}):
        for function in (loom.attend, loom.explain, loom.reference):
            function(x, x, x, **options)
            with pytest.raises(TypeError, match=f"^query is a .*{words}"):
                function(change(x), x, x, **options)
    with pytest.raises(TypeError, match=f"^query is a .*{words}"):
        loom.attention_weights(change(x), x)
