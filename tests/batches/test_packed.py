"""Padded batches without their padding, and back."""

import pickle

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck

import maskloom as loom
from maskloom.batches import Packed, pack, unpack

LENS = [5, 0, 7]
PADS = torch.tensor([[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 1, 0]]).bool()


def batch(*width, length=11, dtype=torch.float64):
    return torch.randn(len(LENS), length, *width, dtype=dtype)


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.sampled_from(["list", "tensor", "narrow", "pads"]))
def test_every_token_comes_out_once_in_order(lens, form):
    x = torch.arange(len(lens) * 7 * 2).view(len(lens), 7, 2)
    pads = loom.batches.pads_from_lengths(lens, 7)
    told = {
        "list": lens,
        "tensor": torch.tensor(lens),
        "narrow": torch.tensor(lens, dtype=torch.uint8),
        "pads": pads,
    }[form]
    for total in (None, sum(lens)):
        packed = pack(x, told, total=total)
        tokens = [row[:length] for row, length in zip(x, lens, strict=True)]
        assert torch.equal(packed.values, torch.cat(tokens)[None])
        assert packed.offsets.tolist() == loom.batches.offsets_from_lengths(lens).tolist()
        assert torch.equal(unpack(packed), x * ~pads[..., None])
        assert packed.positions.tolist() == packed.columns.tolist() == [[i for n in lens for i in range(n)]]
        assert packed.ids.tolist() == [[row for row, n in enumerate(lens) for _ in range(n)]]


@given(st.integers(0, 2**15 - 1))
def test_padding_may_be_anywhere(bits):
    pads = torch.tensor([bits >> i & 1 for i in range(15)]).bool().view(3, 5)
    x = torch.randn(3, 5, 2)
    for total in (None, int((~pads).sum())):
        packed = pack(x, pads, total=total)
        assert torch.equal(packed.values[0], x[~pads])
        assert torch.equal(unpack(packed), x * ~pads[..., None])
        assert packed.lengths.tolist() == (~pads).sum(1).tolist()
        assert packed.columns[0].tolist() == (~pads).nonzero()[:, 1].tolist()
        assert torch.equal(packed.positions[0], loom.batches.positions(pads=pads)[~pads])


@pytest.mark.parametrize("told", [LENS, PADS], ids=["lengths", "pads"])
def test_both_have_gradients_of_every_order(told):
    x = batch(2, length=5 if told is PADS else 7).requires_grad_()
    packed = pack(x, told)
    values = torch.randn(1, packed.total, 3, dtype=torch.float64, requires_grad=True)
    for function, given_ in (
        (lambda x: pack(x, told).values, x),
        (lambda values: unpack(packed, values), values),
        (lambda x: unpack(pack(x**2, told)), x),
    ):
        assert gradcheck(function, given_) and gradgradcheck(function, given_)
    tangent = torch.func.jvp(lambda x: unpack(pack(x, told)), (x,), (torch.ones_like(x),))[1]
    assert torch.equal(tangent, unpack(pack(torch.ones_like(x), told)))


def test_what_is_in_the_padding_goes_nowhere():
    x = batch(2)
    for row, length in enumerate(LENS):
        x[row, length:] = float("nan")
    x.requires_grad_()
    out = unpack(pack(x, LENS))
    assert torch.isfinite(out).all()
    out.square().sum().backward()
    assert torch.equal(x.grad, unpack(pack(2 * x.detach(), LENS)))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.float16])
def test_any_dtype_and_rank(dtype):
    x = torch.ones(3, 7, dtype=dtype)
    packed = pack(x, [2, 0, 3])
    assert packed.values.dtype == unpack(packed).dtype == dtype
    assert unpack(packed).int().tolist() == [[1, 1, 0, 0, 0, 0, 0], [0] * 7, [1, 1, 1, 0, 0, 0, 0]]
    assert unpack(packed, torch.ones(1, 5, 2, 3)).shape == (3, 7, 2, 3)


def test_other_tensors_of_the_batch_are_packed_the_same_way():
    x, labels = batch(2), torch.arange(33).view(3, 11)
    packed = pack(x, LENS)
    other = pack(labels, packed)
    assert other.values.tolist() == [[*range(5), *range(22, 29)]]
    assert other.offsets is packed.offsets and other.index is packed.index


def test_nothing_real():
    packed = pack(batch(2), [0, 0, 0])
    assert packed.values.shape == (1, 0, 2) and packed.total == 0
    assert packed.positions.shape == packed.ids.shape == (1, 0)
    assert torch.equal(unpack(packed), torch.zeros(3, 11, 2, dtype=torch.float64))


def test_attention_over_the_packed_row_is_that_over_the_padded_batch():
    attention = loom.MultiheadFlexAttention(6, 10, 2, dtype=torch.float64)
    x = batch(6).requires_grad_()
    packed = pack(x, LENS)
    documents = loom.documents(offsets=packed.offsets, length=packed.total)
    padded = attention(x, loom.causal & loom.lengths(LENS)).out
    real = ~loom.batches.pads_from_lengths(LENS, 11)
    out = unpack(packed, attention(packed.values, loom.causal & documents).out)
    torch.testing.assert_close(out, padded * real[..., None], rtol=0, atol=1e-12)
    grads = [torch.autograd.grad((y * real[..., None]).square().sum(), x)[0] for y in (out, padded)]
    torch.testing.assert_close(*grads, rtol=0, atol=1e-12)


@pytest.mark.parametrize("told", ["list", "total"])
def test_lengths_that_change_do_not_compile_anew(told):
    graphs = []

    def count(module, _):
        graphs.append(module)
        return module.forward

    def both_ways(x, lens, total):
        packed = pack(x, lens, total=total)
        return unpack(packed, 2 * packed.values) + packed.positions.sum()

    torch._dynamo.reset()
    compiled = torch.compile(both_ways, backend=count, fullgraph=True)
    x = batch(2)
    for lens in ([5, 2, 7], [3, 4, 11], [2, 9, 6], [8, 2, 4], [11, 10, 3]):
        args = (x, lens, None) if told == "list" else (x, torch.tensor(lens), sum(lens))
        torch.testing.assert_close(compiled(*args), both_ways(*args))
    assert len(graphs) <= 2


def test_it_moves_and_pickles_and_says_what_it_is():
    packed = pack(batch(2), LENS)
    assert repr(packed) == "Packed(12 tokens of 3 rows of 11, values Tensor float64[1, 12, 2])"
    again = pickle.loads(pickle.dumps(packed))
    assert torch.equal(unpack(again), unpack(packed))
    moved = packed.to("meta")
    assert {moved.values.device.type, moved.offsets.device.type, moved.index.device.type} == {"meta"}
    assert unpack(moved).shape == (3, 11, 2)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: pack([1.0], LENS), TypeError, r"x has shape \(B, L, ...\); got list"),
        (lambda: pack(torch.ones(5), [5]), ValueError, r"x has shape \(B, L, ...\); got Tensor float32\[5\]"),
        (lambda: pack(batch(), [5, 2]), ValueError, "x has 3 rows, and there are 2 lengths"),
        (lambda: pack(batch(), [5, 2, 13]), ValueError, "x has rows of 11 positions, and a length is 13"),
        (lambda: pack(batch(), [5, -2, 1]), ValueError, "at least 0; got -2"),
        (lambda: pack(batch(), LENS, total=11), ValueError, "total is 11, and the lengths add up to 12"),
        (lambda: pack(batch(length=5), PADS, total=3), ValueError, "total is 3, and 6 positions are real"),
        (lambda: pack(batch(), LENS, total="12"), TypeError, "total is a number of real tokens, an int; got str"),
        (lambda: pack(batch(), PADS), ValueError, r"x has \(B, L\) = \(3, 11\), and its padding \(3, 5\)"),
        (lambda: pack(batch(length=5), PADS.long()), ValueError, r"int64\[3, 5\]. For a table where 1 is a real token"),
        (lambda: pack(batch(), torch.ones(3)), TypeError, "pads_or_lengths are integers; got torch.float32"),
        (
            lambda: pack(batch(length=5), pack(batch(), LENS)),
            ValueError,
            r"x has \(B, L\) = \(3, 5\), and the batch that was packed before \(3, 11\)",
        ),
        (
            lambda: pack(batch(), torch.tensor(LENS, device="meta"), total=12),
            ValueError,
            "^pads_or_lengths is on the meta device, where there are no values to read$",
        ),
        (
            lambda: pack(batch().to("meta"), PADS.new_zeros(3, 11).to("meta")),
            ValueError,
            "^pads_or_lengths is on the meta device, .*: give total=, the number of real tokens$",
        ),
        (
            lambda: pack(batch().to("meta"), pack(batch(), LENS)),
            ValueError,
            "^x is on meta, and the packed tokens are on cpu; packed.to moves them$",
        ),
        (
            lambda: unpack(pack(batch(), LENS), torch.ones(1, 12, device="meta")),
            ValueError,
            "^values is on meta, and the packed tokens are on cpu",
        ),
        (lambda: unpack(batch()), TypeError, r"unpack takes what pack returned; got Tensor float64\[3, 11\]"),
        (lambda: unpack(pack(batch(), LENS), [1]), TypeError, r"values is a tensor \(1, 12, ...\); got list"),
        (
            lambda: unpack(pack(batch(), LENS), torch.ones(12, 2)),
            ValueError,
            r"values has shape \(1, 12, ...\), as packed; got \(12, 2\)",
        ),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_a_packed_batch_does_not_change():
    with pytest.raises(AttributeError):
        pack(batch(), LENS).shape = (1, 2)
    assert isinstance(pack(batch(), LENS), Packed)


@pytest.mark.parametrize("width", [3, 8])
def test_batched_gradients_and_traces(width):
    """torch's older vmap, and torch.jit.trace, see no memory of the tensors that they are in."""
    x = torch.randn(2, 3, width)

    def there_and_back(x):
        return unpack(pack(x, [2, 1]))

    jacobian = torch.autograd.functional.jacobian(there_and_back, x, vectorize=True)
    assert torch.equal(jacobian, torch.autograd.functional.jacobian(there_and_back, x))
    for one in (x, x.clone().requires_grad_()):
        assert torch.equal(torch.jit.trace(there_and_back, one)(x + 1), there_and_back(x + 1))


MOVED_AS_OTHERS = {
    **dict.fromkeys((torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e8m0fnu), torch.uint8),
    torch.uint16: torch.int16,
    torch.uint32: torch.int32,
    torch.uint64: torch.int64,
}


@pytest.mark.parametrize("width", [1, 3, 16])
@pytest.mark.parametrize("dtype", MOVED_AS_OTHERS)
def test_dtypes_of_which_torch_moves_no_rows(width, dtype):
    x = torch.randn(2, 3, width).abs().mul(9).to(torch.uint8).to(dtype)
    packed = pack(x, [1, 2])
    back = unpack(packed, packed.values)
    assert back.dtype == dtype
    real, bits = torch.arange(3) < torch.tensor([[1], [2]]), MOVED_AS_OTHERS[dtype]
    assert torch.equal(back.view(bits), x.view(bits) * real[..., None])


@pytest.mark.parametrize(
    ("rows", "length", "nothing"),
    [(2, 0, torch.ones(2, 0, dtype=torch.bool)), (2, 0, [0, 0]), (0, 5, ()), (0, 5, []), (0, 5, torch.zeros(0, dtype=torch.int64)), (0, 5, np.zeros(0, np.int64)),
     (0, 5, torch.zeros(0, 5, dtype=torch.bool)), (0, 0, torch.zeros(0, 0, dtype=torch.bool))],
)  # fmt: skip
def test_batches_of_nothing(rows, length, nothing):
    x = torch.randn(rows, length, 4)
    packed = pack(x, nothing)
    assert packed.total == 0 and packed.values.shape == (1, 0, 4) and packed.offsets.tolist() == [0] * (rows + 1)
    assert unpack(packed).shape == x.shape
