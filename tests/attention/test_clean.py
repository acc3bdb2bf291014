"""clean_padding: what lies in padded positions changes nothing elsewhere, forward and backward."""

import math

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest, BlockMask
from torch.nn.attention.flex_attention import and_masks as torch_and

import maskloom as loom
from maskloom.masks.algebra import Mask

B, H, HKV, L, D, E = 3, 2, 1, 13, 8, 5
LENS = torch.tensor([5, 0, 13])
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]


def pads():
    table = torch.rand(B, L, generator=torch.Generator().manual_seed(5)) < 0.4
    table[1] = True
    return table


BEHIND = loom.pads_from_lengths(LENS, L)
TAIL = (torch.arange(L) >= 7).expand(B, L)
MASKS = {
    "lengths": (lambda: loom.causal & loom.lengths(LENS), BEHIND),
    "padding, anywhere": (lambda: loom.padding(pads()) & (loom.window(back=2) | loom.sinks(1)), pads()),
    "real": (lambda: loom.real(~pads()), pads()),
    "two paddings": (lambda: loom.real(~pads()) & loom.causal & loom.lengths(LENS), pads() | BEHIND),
    "packed documents": (lambda: loom.documents(offsets=[0, 2, 7], length=L) & loom.causal, TAIL),
    "documents by id": (lambda: loom.documents(torch.where(TAIL[0], -1, torch.arange(L) // 3)), TAIL),
    "within": (lambda: loom.within(loom.documents(offsets=[0, 2, 7], length=L), loom.window(back=2)), TAIL),
    "torch's and": (lambda: torch_and(loom.causal, loom.padding(pads())), pads()),
    "torch's and, twice": (lambda: torch_and(torch_and(closure, loom.causal), loom.padding(pads())), pads()),
    "with a closure": (lambda: loom.lengths(LENS) & closure, BEHIND),
    "of some heads": (lambda: loom.shifted(loom.lengths(LENS) & loom.causal, h_offset=2), BEHIND),
}


def closure(b, h, q_idx, kv_idx):
    return q_idx >= kv_idx - 2


def inputs(seed=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in ((B, H, L, D), (B, HKV, L, D), (B, HKV, L, E))]


def poisoned(tensor, where, poison):
    return tensor.masked_fill(where[:, None, :, None], poison)


def trained(mask, where, poison, *, sinks=False, lse=False, **options):
    """Output and gradients, with ``poison`` in all that comes in where padding is."""
    leaves = [poisoned(tensor, where, poison).requires_grad_() for tensor in inputs()]
    if sinks:
        leaves.append(torch.tensor([0.5, -1.0], requires_grad=True))
        options["sinks"] = leaves[-1]
    out, aux = loom.attend(*leaves[:3], mask, clean_padding=True, return_aux=AuxRequest(lse=lse), **options)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(7))
    outputs, grads = [out], [poisoned(grad, where, poison)]
    if lse:
        outputs.append(aux.lse)
        grads.append(grad[..., 0].masked_fill(where[:, None], poison))
    return [output.detach() for output in outputs], torch.autograd.grad(outputs, leaves, grads)


OPTIONS = {
    "sdpa": {"backend": "sdpa"},
    "reference": {"backend": "reference"},
    "log-sum-exp": {"lse": True},
    "sinks": {"sinks": True},
    "sinks and log-sum-exp": {"sinks": True, "lse": True},
    "score_mod": {"score_mod": loom.alibi(H)},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MASKS)
def test_padding_never_leaks(name, options):
    make, where = MASKS[name]
    clean_outputs, clean_grads = trained(make(), where, 0.0, **OPTIONS[options])
    for poison in GARBAGE:
        outputs, grads = trained(make(), where, poison, **OPTIONS[options])
        for ours, expected in zip([*outputs, *grads], [*clean_outputs, *clean_grads], strict=True):
            assert torch.equal(ours, expected)
        assert not outputs[0].transpose(1, 2)[where].any()
        assert not any(grad.transpose(1, 2)[where].any() for grad in grads[:3])


@pytest.mark.parametrize("name", MASKS)
def test_it_changes_nothing_where_nothing_is_wrong(name):
    make, _ = MASKS[name]
    torch.testing.assert_close(
        loom.attend(*inputs(), make(), clean_padding=True), loom.attend(*inputs(), make()), rtol=0, atol=0
    )


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
@pytest.mark.parametrize("name", [name for name in MASKS if name != "of some heads"])
def test_in_a_block_mask(name, backend):
    make, where = MASKS[name]
    blocks = loom.block_mask(make(), L, L, block_size=(2, 4))
    torchs = loom.create_block_mask(make(), B, None, L, L, BLOCK_SIZE=4)
    for given in (blocks, torchs):
        clean_outputs, clean_grads = trained(given, where, 0.0, backend=backend)
        outputs, grads = trained(given, where, math.nan, backend=backend)
        assert torch.equal(outputs[0], clean_outputs[0])
        assert all(map(torch.equal, grads, clean_grads))


def test_of_keys_alone_queries_are_the_callers():
    q, k, v = inputs()
    mask = loom.key_padding(pads())
    expected = loom.attend(q, k, v, mask)
    for poison in GARBAGE:
        dirty = poisoned(k, pads(), poison), poisoned(v, pads(), poison)
        assert torch.equal(loom.attend(q, *dirty, mask, clean_padding=True), expected)
        out = loom.attend(poisoned(q, pads(), poison), *dirty, mask, clean_padding=True)
        assert torch.equal(out.transpose(1, 2)[~pads()], expected.transpose(1, 2)[~pads()])


def test_queries_and_keys_of_other_lengths():
    q, k, v = inputs()
    mask = loom.lengths([3, 5, 1], [7, 13, 0])
    expected = loom.attend(q[:, :, :5], k, v, mask)
    k[0, :, 7:], v[2], q[2, :, 1:] = math.nan, math.inf, math.nan
    assert torch.equal(loom.attend(q[:, :, :5], k, v, mask, clean_padding=True), expected)


def test_the_inputs_themselves_are_not_written_to():
    q, k, v = (poisoned(tensor, BEHIND, math.nan) for tensor in inputs())
    loom.attend(q, k, v, loom.lengths(LENS), clean_padding=True)
    assert all(tensor.transpose(1, 2)[BEHIND].isnan().all() for tensor in (q, k, v))


def test_expanded_inputs():
    q, k, v = (tensor[:, :, :1].expand_as(tensor) for tensor in inputs())
    expected = loom.attend(q, k, v, loom.lengths(LENS))
    assert torch.equal(loom.attend(q, k, v, loom.lengths(LENS), clean_padding=True), expected)


def test_a_table_that_changes_is_read_anew():
    lens = torch.tensor([5, 7, 11])
    q, k, v = inputs()
    k[0, :, 5:], v[0, :, 5:] = math.nan, math.nan
    mask = loom.lengths(lens)
    assert loom.attend(q, k, v, mask, clean_padding=True).isfinite().all()
    lens[0] = 3
    out = loom.attend(q, k, v, mask, clean_padding=True)
    assert out.isfinite().all() and not out[0, :, 3:].any()


UNKNOWN = [
    None,
    loom.causal,
    loom.causal | loom.lengths(LENS),
    ~loom.lengths(LENS),
    closure,
    lambda b, h, q_idx, kv_idx: kv_idx < LENS[b],
    torch_and(closure, closure),
    loom.per_batch([loom.causal, loom.everything, loom.causal]),
    loom.shifted(loom.lengths(LENS), q_offset=2),
    loom.block_mask(loom.causal, L, L),
]


@pytest.mark.parametrize(
    "mask", UNKNOWN, ids=lambda mask: repr(mask) if isinstance(mask, Mask) else type(mask).__name__
)
@pytest.mark.parametrize("call", [loom.attend, loom.explain])
def test_padding_must_be_known(call, mask):
    with pytest.raises(ValueError, match=r"clean_padding needs a mask .*joined to others with &.*no offset.*; got"):
        call(*inputs(), mask, clean_padding=True)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (loom.lengths([3, 5]), r"batch \(B\) is 3, and the mask reads a table for 2 batch rows"),
        (loom.lengths([3]), r"batch \(B\) is 3, and the mask reads a table for 1 batch rows"),
        (loom.padding(torch.zeros(B, 11, dtype=torch.bool)), "a table with 11 positions, and there are 13 queries"),
        (loom.key_padding(torch.zeros(B, 11, dtype=torch.bool)), "a table with 11 positions, and there are 13 keys"),
        (loom.lengths([3, 5]) & loom.lengths(LENS), "for different numbers of batch rows: 2 and 3"),
        (
            loom.real(torch.ones(B, 11, dtype=torch.bool)) & loom.real(torch.ones(B, 17, dtype=torch.bool)),
            "a table with 11 positions",
        ),
    ],
)
def test_a_table_of_another_size(mask, words):
    for call in (loom.attend, loom.explain):
        with pytest.raises(ValueError, match=words):
            call(*inputs(), mask, clean_padding=True)


def test_a_block_mask_whose_mask_is_of_another_size():
    blocks = loom.block_mask(loom.causal, L, L)
    blocks.mask_mod = loom.lengths([3, 5])
    assert isinstance(blocks, BlockMask)
    with pytest.raises(ValueError, match=r"\(batch, length\) = \(3, 13\), and its mask knows padding for \(2, 13\)"):
        loom.attend(*inputs(), blocks, clean_padding=True)
