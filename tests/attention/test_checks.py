"""What `attend` makes of its arguments before anything runs: dtypes under autocast, whole rows, scales."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.attention.checks import check_mask_fits
from tests.attention.test_host_cost import count_calls

B, H, L, D = 2, 3, 5, 8
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def inputs(*dtypes, length=L):
    generator = torch.Generator().manual_seed(0)
    dtypes = dtypes or (torch.float32,) * 3
    return [torch.randn(B, H, length, D, generator=generator).to(dtype) for dtype in dtypes]


# -- autocast ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("to", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("dtypes", list(itertools.product(FLOATS, repeat=3)))
def test_autocast_is_that_of_torchs_own_attention(dtypes, to, backend):
    tensors = inputs(*dtypes)
    with torch.autocast("cpu", to):
        try:
            expected = F.scaled_dot_product_attention(*tensors, is_causal=True)
        except RuntimeError:
            with pytest.raises(ValueError, match=f"one dtype; got .*autocast casts to {to}, but not float64"):
                loom.attend(*tensors, loom.causal, backend=backend)
            return
        out = loom.attend(*tensors, loom.causal, backend=backend)
    assert out.dtype == expected.dtype
    torch.testing.assert_close(out.double(), expected.double(), rtol=0, atol=4 * torch.finfo(out.dtype).eps)


def test_gradients_under_autocast_have_the_dtypes_of_the_leaves():
    tensors = [tensor.requires_grad_() for tensor in inputs(torch.float32, torch.float32, torch.bfloat16)]
    with torch.autocast("cpu", torch.bfloat16):
        loom.attend(*tensors, loom.causal & loom.lengths([5, 3])).sum().backward()
    assert [tensor.grad.dtype for tensor in tensors] == [tensor.dtype for tensor in tensors]


def test_autocast_that_is_off_casts_nothing():
    mixed = inputs(torch.float32, torch.float32, torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        assert loom.attend(*inputs(), loom.causal).dtype == torch.float32
        with pytest.raises(ValueError, match=r"value torch.bfloat16$"):
            loom.attend(*mixed, loom.causal)


def test_score_mods_sinks_and_log_sum_exps_under_autocast():
    table, sinks = torch.randn(H, 7, requires_grad=True), torch.zeros(H, requires_grad=True)
    how = {"score_mod": loom.scores.relative_bias(table), "sinks": sinks, "return_aux": AuxRequest(lse=True)}
    exact, _ = loom.attend(*inputs(), loom.causal, **how)
    with torch.autocast("cpu", torch.bfloat16):
        out, aux = loom.attend(*inputs(), loom.causal, **how)
        assert loom.explain(*inputs(), loom.causal, **how).backend == "sliced"
    assert (out.dtype, aux.lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out.float(), exact, rtol=0, atol=0.05)
    out.sum().backward()
    assert (table.grad.dtype, sinks.grad.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_around_and_inside_a_compiled_function(inside):
    def attention(q, k, v):
        if not inside:
            return loom.attend(q, k, v, loom.causal)
        with torch.autocast("cpu", torch.bfloat16):
            return loom.attend(q, k, v, loom.causal)

    torch._dynamo.reset()
    tensors = inputs(torch.float32, torch.bfloat16, torch.float32)
    compiled = torch.compile(attention, backend="eager", fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = compiled(*tensors), loom.attend(*tensors, loom.causal)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    if not inside:  # the graph was for autocast
        assert compiled(*inputs()).dtype == torch.float32


# -- rows --------------------------------------------------------------------------------------------------------------

PADS = loom.batches.pads_from_lengths([9, 5], 11)
LONG = {
    "lengths": (lambda: loom.lengths([9, 5]), "batch row 0 has 9 positions"),
    "of keys": (lambda: loom.lengths([2, 3], [4, 7]), "batch row 1 has 7 positions"),
    "among others": (lambda: loom.causal & loom.window(back=3) & loom.lengths([9, 5]), "batch row 0 has 9 positions"),
    "or": (lambda: loom.sinks(1) | loom.lengths([5, 9]), "batch row 1 has 9 positions"),
    "for a head": (lambda: loom.masks.per_head([loom.causal, loom.lengths([9, 5]), loom.causal]), "has 9 positions"),
    "torch's and": (lambda: torch.nn.attention.flex_attention.and_masks(loom.causal, loom.lengths([9, 5])), "has 9"),
    "padding": (lambda: loom.padding(PADS), "batch row 0 has 9 positions"),
    "real": (lambda: loom.real(~PADS), "batch row 0 has 9 positions"),
    "key_padding": (lambda: loom.key_padding(PADS), "batch row 0 has 9 positions"),
    "offsets": (lambda: loom.documents(offsets=[0, 3, 9]), r"a row has 9 positions by the mask's documents\(offsets="),
    "ids": (lambda: loom.documents(torch.arange(9) // 3), "a row has 9 positions"),
    "position_ids": (lambda: loom.documents(position_ids=torch.arange(9) % 4), "a row has 9 positions"),
    "within": (lambda: loom.masks.within(loom.documents(offsets=[0, 3, 9]), loom.causal), "a row has 9 positions"),
}


@pytest.mark.parametrize("name", LONG)
def test_rows_that_the_mask_declares_longer(name):
    make, words = LONG[name]
    tensors = inputs(length=4)
    for call in (loom.attend, loom.explain):
        with pytest.raises(ValueError, match=rf"{words}.*; queries and keys have 4\. .*query is \(2, 3, 4, 8\)"):
            call(*tensors, make())
    first = loom.attend(*tensors, make(), q_offset=0)  # the first chunk of a prefill
    torch.testing.assert_close(first, loom.attend(*tensors, loom.masks.from_dense(loom.as_mask(make()).dense(4, 4))))
    loom.attend(tensors[0][:, :, :3], *tensors[1:], make())  # not of one length: chunks


SHORT = {
    "the row": lambda: loom.lengths([4, 2]),
    "a table that is longer, of padding": lambda: loom.padding(PADS[1:].expand(2, -1) | (torch.arange(11) > 3)),
    "shifted": lambda: loom.masks.shifted(loom.lengths([9, 5]), q_offset=1, kv_offset=1),
    "inside documents": lambda: loom.masks.within(loom.documents(offsets=[0, 4]), loom.masks.key_range(0, 9)),
    "a function": lambda: lambda b, h, q_idx, kv_idx: kv_idx < torch.tensor([9, 5])[b],
    "a table of pairs": lambda: loom.masks.from_dense(torch.ones(9, 9, dtype=torch.bool)),
}


@pytest.mark.parametrize("name", SHORT)
def test_masks_that_declare_no_longer_row(name):
    loom.attend(*inputs(length=4), SHORT[name]())


def test_rows_are_looked_at_once_and_again_when_they_change(monkeypatch):
    from maskloom.attention import checks

    looked = []
    monkeypatch.setattr(checks, "longest_row", lambda mask: looked.append(mask))
    lens = torch.tensor([4, 2])
    mask, tensors = loom.causal & loom.lengths(lens), inputs(length=4)
    for _ in range(3):
        loom.attend(*tensors, mask)
    assert len(looked) == 1
    lens[0] = 3
    loom.attend(*tensors, mask)
    assert len(looked) == 2


def test_nothing_is_looked_at_while_torch_traces():
    torch._dynamo.reset()
    compiled = torch.compile(lambda q, k, v, m: loom.attend(q, k, v, m), backend="eager", fullgraph=True)
    assert compiled(*inputs(length=4), loom.lengths([9, 5])).shape == (B, H, 4, D)


def test_a_ready_block_mask_is_checked_without_its_mask_in_words(monkeypatch):
    """The name of a Mask is its repr, which takes longer than the check."""
    blocks = loom.block_mask(loom.causal & loom.lengths([2, 5]), L, L)
    monkeypatch.setattr(type(blocks.mask_mod), "__repr__", lambda mask: pytest.fail("the mask was put into words"))
    check_mask_fits(blocks, B, H, L, L, torch.device("cpu"))


def test_a_sliced_block_mask_is_refused():
    sliced = loom.block_mask(loom.lengths([2, 5]), L, L)[:1]
    with pytest.raises(ValueError, match="the block mask was sliced, and torch drops the mask"):
        check_mask_fits(sliced, 1, H, L, L, torch.device("cpu"))


def test_the_check_costs_few_calls():
    mask, tensors = loom.causal & loom.lengths([4, 2]), inputs(length=4)
    for how in ({}, {"q_offset": 0}):
        loom.attend(*tensors, mask, **how)
    with_check = count_calls(lambda: loom.attend(*tensors, mask))
    assert with_check - count_calls(lambda: loom.attend(*tensors, mask, q_offset=0)) < 40


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [np.float32(0.25), np.float64(0.25), np.float16(0.25), 0.25])
def test_scales(scale):
    for backend in ("sdpa", "sliced", "reference"):
        found = loom.attend(*inputs(), loom.causal, scale=scale, backend=backend)
        assert torch.equal(found, loom.attend(*inputs(), loom.causal, scale=0.25, backend=backend))


@pytest.mark.parametrize("scale", [True, np.bool_(True), "0.5", [0.5], torch.tensor(0.5)])
def test_what_is_no_scale(scale):
    with pytest.raises(TypeError, match="scale is a number"):
        loom.attend(*inputs(), loom.causal, scale=scale)


@pytest.mark.parametrize("offset", [np.int64(2), np.int32(2), np.array(2), torch.tensor([2]), torch.tensor([[2]]), [2]])
def test_offsets_for_any_batch(offset):
    mask, bias = loom.causal & loom.window(back=3), loom.scores.relative_bias(torch.randn(H, 5))
    for how in ({}, {"score_mod": bias}):
        expected = loom.attend(*inputs(), mask, q_offset=2, **how)
        assert torch.equal(loom.attend(*inputs(), mask, q_offset=offset, **how), expected)


@pytest.mark.parametrize("offset", [True, 1.5, np.float32(2), torch.tensor([2.0]), "2"])
def test_what_is_no_offset(offset):
    for name in ("q_offset", "h_offset"):
        with pytest.raises(TypeError, match=f"{name} is a "):
            loom.attend(*inputs(), loom.causal, **{name: offset})


@pytest.mark.parametrize("scale", [0.0, -0.5, 0, -1])
@pytest.mark.parametrize("mask", [loom.causal, None, loom.window(back=2)])
def test_scales_that_are_not_positive(scale, mask):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 16, dtype=torch.float64).unbind(0)
    expected, _ = loom.reference(q, k, v, mask, scale=scale)
    for backend in ("auto", "sdpa", "sliced", "reference"):
        torch.testing.assert_close(loom.attend(q, k, v, mask, scale=scale, backend=backend), expected)


@pytest.mark.parametrize("scale", [float("nan"), float("inf"), -float("inf"), np.float32("nan")])
def test_a_scale_is_finite(scale):
    q = torch.randn(1, 2, 5, 8)
    for call in (
        lambda: loom.attend(q, q, q, loom.causal, scale=scale),
        lambda: loom.attention_weights(q, q, scale=scale),
    ):
        with pytest.raises(ValueError, match=r"scale is a finite number; got .*(nan|inf)"):
            call()


def test_an_offset_is_checked_at_each_call():
    q = torch.randn(1, 2, 4, 8)
    for offset in (2**63 - 1, 3, 2**63 - 1, 2**40, 2**70, 2**30 + 1, 3):
        if offset == 3:
            assert loom.attend(q, q, q, loom.causal, q_offset=offset).any()
            continue
        with pytest.raises(ValueError, match="q_offset is a position, at most 1073741824 in size; got"):
            loom.attend(q, q, q, loom.causal, q_offset=offset)


@pytest.mark.parametrize("name", ["deterministic", "clean_padding"])
@pytest.mark.parametrize("flag", ["False", [], 2, None, torch.ones(3), np.ones(2)])
def test_flags_are_flags(name, flag):
    q = torch.randn(1, 2, 4, 8)
    with pytest.raises(TypeError, match=f"{name} is True or False; got"):
        loom.attend(q, q, q, loom.causal, **{name: flag})


def test_no_heads_to_share():
    with pytest.raises(ValueError, match="there is nothing to attend to in an empty tensor"):
        loom.attention_weights(torch.zeros(1, 2, 4, 8), torch.zeros(1, 0, 4, 8))
