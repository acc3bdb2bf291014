"""clean_padding: what lies in padded positions changes nothing elsewhere, forward and backward."""

import math

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention.flex_attention import AuxRequest, BlockMask
from torch.nn.attention.flex_attention import and_masks as torch_and
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention import zeros
from maskloom.attention.zeros import zeros_both_ways
from maskloom.masks.algebra import Mask, mask_dataclass
from maskloom.masks.known_padding import known_hidden_queries, known_padding
from maskloom.masks.padded import PaddingMask

B, H, HKV, L, D, E = 3, 2, 1, 13, 8, 5
LENS = torch.tensor([5, 0, 13])
GARBAGE = [math.nan, math.inf, -math.inf, 1e30]


def pads():
    table = torch.rand(B, L, generator=torch.Generator().manual_seed(5)) < 0.4
    table[1] = True
    return table


BEHIND = loom.batches.pads_from_lengths(LENS, L)
TAIL = (torch.arange(L) >= 7).expand(B, L)
MASKS = {
    "lengths": (lambda: loom.causal & loom.lengths(LENS), BEHIND),
    "padding, anywhere": (lambda: loom.padding(pads()) & (loom.window(back=2) | loom.sinks(1)), pads()),
    "real": (lambda: loom.real(~pads()), pads()),
    "two paddings": (lambda: loom.real(~pads()) & loom.causal & loom.lengths(LENS), pads() | BEHIND),
    "packed documents": (lambda: loom.documents(offsets=[0, 2, 7], length=L) & loom.causal, TAIL),
    "documents by id": (lambda: loom.documents(torch.where(TAIL[0], -1, torch.arange(L) // 3)), TAIL),
    "within": (lambda: loom.masks.within(loom.documents(offsets=[0, 2, 7], length=L), loom.window(back=2)), TAIL),
    "torch's and": (lambda: torch_and(loom.causal, loom.padding(pads())), pads()),
    "torch's and, twice": (lambda: torch_and(torch_and(closure, loom.causal), loom.padding(pads())), pads()),
    "with a closure": (lambda: loom.lengths(LENS) & closure, BEHIND),
    "of some heads": (lambda: loom.masks.shifted(loom.lengths(LENS) & loom.causal, h_offset=2), BEHIND),
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
    "score_mod": {"score_mod": loom.scores.alibi(H)},
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


@pytest.mark.parametrize("score_mod", [None, loom.scores.alibi(H), loom.scores.softcap(3.0)], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "sliced", "reference"])
@pytest.mark.parametrize("name", MASKS)
def test_nor_where_there_are_no_gradients(name, backend, score_mod):
    """Some backends clean values alone then."""
    make, where = MASKS[name]
    options = {"backend": "auto" if backend == "sdpa" else backend, "score_mod": score_mod, "return_aux": AuxRequest()}
    expected = loom.attend(*(poisoned(tensor, where, 0.0) for tensor in inputs()), make(), **options)[0]
    mask = make()
    for poison in (*GARBAGE, math.nan):
        dirty = [poisoned(tensor, where, poison) for tensor in inputs()]
        out, _ = loom.attend(*dirty, mask, clean_padding=True, **options)
        assert torch.equal(out, expected) and not out.transpose(1, 2)[where].any()


def filled(query, key, value, mask, where, **options):
    """What clean_padding amounts to, every tensor filled in both directions by torch's own operations."""
    out, aux = loom.attend(*(poisoned(tensor, where, 0.0) for tensor in (query, key, value)), mask, **options)
    rows = where[:, None]
    lse = None if aux.lse is None else torch.where(rows, aux.lse.detach(), aux.lse)
    return torch.where(rows[..., None], out.detach(), out), lse


def cleaned(query, key, value, mask, where, **options):
    out, aux = loom.attend(query, key, value, mask, clean_padding=True, **options)
    return out, aux.lse


def over_visible(score, b, h, q_idx, kv_idx):
    return score / (~BEHIND).float()[b, kv_idx]


def over_both_visible(score, b, h, q_idx, kv_idx):
    return score / ((~BEHIND).float()[b, q_idx] + (~BEHIND).float()[b, kv_idx])


def root(score, b, h, q_idx, kv_idx):
    return (score - score * (kv_idx >= 0)).sqrt() + score


SCORE_MODS = {
    "none": None,
    "alibi": loom.scores.alibi(H),
    "softcap": loom.scores.softcap(3.0),
    "relative bias": loom.scores.relative_bias(torch.arange(10.0).view(H, 5)),
    "0 / 0 at hidden keys": over_visible,
    "0 / 0 where both are hidden": over_both_visible,
    "of infinite derivative at 0": root,
    "of infinite derivative at 0, where padding is": lambda score, b, h, q_idx, kv_idx: score.abs().sqrt(),
}


def results_of(attention, poison, *, sinks=False, **options):
    """Outputs and gradients, with ``poison`` in all that comes in where padding is."""
    leaves = [poisoned(tensor, BEHIND, poison).requires_grad_() for tensor in inputs()]
    if sinks:
        leaves.append(torch.tensor([0.5, -1.0], requires_grad=True))
        options["sinks"] = leaves[-1]
    found = attention(*leaves[:3], loom.causal & loom.lengths(LENS), BEHIND, **options)
    outputs = [output for output in found if output is not None]
    grads = [torch.randn(output.shape, generator=torch.Generator().manual_seed(7)) for output in outputs]
    for grad in grads:
        grad.transpose(1, 2)[BEHIND] = poison
    return [*outputs, *torch.autograd.grad(outputs, leaves, grads)]


REFERENCE = {"backend": "reference", "return_aux": AuxRequest(lse=True)}


@pytest.mark.parametrize("poison", GARBAGE)
@pytest.mark.parametrize(
    "options",
    [
        {"backend": "sdpa", "return_aux": AuxRequest()},
        *[{**REFERENCE, "sinks": sinks, "score_mod": mod} for sinks in (False, True) for mod in SCORE_MODS.values()],
    ],
    ids=["sdpa", *[f"{name}{with_sinks}" for with_sinks in ("", ", sinks") for name in SCORE_MODS]],
)
def test_results_are_those_of_filling_everything(options, poison):
    ours, expected = (results_of(attention, poison, **options) for attention in (cleaned, filled))
    for result, right in zip(ours, expected, strict=True):
        torch.testing.assert_close(result, right, rtol=0, atol=0, equal_nan=True)
    if options.get("score_mod") is not root:  # whose gradient is NaN at visible keys too
        assert all(gradient.isfinite().all() for gradient in ours[-3:])


@pytest.mark.parametrize("backend", ["sdpa", "sliced", "reference"])
def test_hidden_keys_get_no_gradient_from_queries_that_may_be_anything(backend):
    q, k, v = (tensor.requires_grad_() for tensor in inputs())
    hidden = torch.arange(B)[:, None].expand(B, L) == 1
    dirty = poisoned(q, hidden, math.nan)
    out = loom.attend(dirty, k, v, loom.key_padding(hidden), backend=backend, clean_padding=True)
    out.sum().backward()
    assert all(tensor.grad.isfinite().all() and not tensor.grad[1].any() for tensor in (k, v))


class Passes(TorchDispatchMode):
    """Counts the operations that write a tensor as large as an input: by name."""

    def __init__(self):
        super().__init__()
        self.counts = {}
        self.dtypes = []  # of what is chosen from

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("where", "masked_fill", "mul", "clone", "copy_", "_to_copy"):
            self.counts[name] = self.counts.get(name, 0) + 1
        if name == "where":
            self.dtypes.append(args[2].dtype)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mask", "forward", "backward"),
    [(loom.causal & loom.lengths(LENS), 3, 1), (loom.key_padding(BEHIND), 2, 2), (loom.lengths(LENS), 3, 1)],
)
def test_each_tensor_is_written_once(mask, forward, backward):
    leaves = [tensor.requires_grad_() for tensor in inputs()]
    grad = torch.randn(B, H, L, E)
    counts = []
    for clean in (False, True):
        loom.attend(*leaves, mask, clean_padding=clean)  # what is kept with the mask is kept now
        with Passes() as there:
            out = loom.attend(*leaves, mask, clean_padding=clean)
        with Passes() as back:
            torch.autograd.grad(out, leaves, grad)
        counts.append((there.counts, back.counts))
    without, clean = counts
    for direction, more in ((0, forward), (1, backward)):
        assert clean[direction].pop("where") - without[direction].pop("where", 0) == more
        assert clean[direction] == without[direction]


@pytest.mark.parametrize(("backend", "copies"), [("sdpa", 3), ("sliced", 1), ("reference", 3)])
@pytest.mark.parametrize("trains", [False, True])
def test_without_gradients_a_backend_that_hides_any_score_gets_clean_values_alone(monkeypatch, backend, copies, trains):
    mask, written = loom.causal & loom.lengths(LENS), []
    monkeypatch.setattr(zeros, "_zeroed", lambda tensor, rows: written.append(tensor) or tensor.masked_fill(rows, 0))
    query, key, value = inputs()
    for _ in range(3):
        written.clear()
        loom.attend(query.requires_grad_(trains), key, value, mask, clean_padding=True, backend=backend)
        assert len(written) == (3 if trains else copies)
        assert written[-1].shape == value.shape


def layouts(dtype):
    def randn(*shape):
        return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)

    return {
        "contiguous": randn(B, H, L, D),
        "odd": randn(B, H, L, E),
        "odd, in even rows": randn(B, H, L, D)[..., :E],
        "of projections": randn(B, L, 3, H, D)[:, :, 1].transpose(1, 2),
        "columns": randn(B, H, D, L).transpose(2, 3),
        "begins between": randn(B, H, L, D + 4)[..., 1 : D + 1],
        "rows begin between": randn(B, H, L, D + 1)[..., :D],
        "every other": randn(B, H, L, 2 * D)[..., ::2],
        "expanded": randn(B, 1, L, D).expand(B, H, L, D),
        "one number": randn(1).expand(B, H, L, D),
        "empty": randn(B, H, L, 0),
        "negated": torch._neg_view(randn(B, H, L, D)),
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_zeros_in_any_layout_and_type(dtype):
    rows = BEHIND[:, None, :, None]
    for name, tensor in layouts(dtype).items():
        expected = tensor.masked_fill(rows, 0.0)
        for poison in GARBAGE[:3]:
            if 0 not in tensor.stride():
                tensor.masked_fill_(rows, poison)  # in place: the layout stays
            leaf = tensor.detach().requires_grad_()
            found = zeros_both_ways(leaf, rows)
            (grad,) = torch.autograd.grad(found, leaf, tensor)
            assert torch.equal(found, expected) and torch.equal(grad, expected), name


def test_a_gpu_is_not_asked_for_words_between_its_words():
    memory = bytearray(4 * (4 * D + 1))
    aligned, between = (
        torch.frombuffer(memory, dtype=torch.float32, offset=at, count=4 * D).view(4, D) for at in (0, 4)
    )
    assert aligned.data_ptr() % 8 == 0 and between.data_ptr() % 8 == 4 and between.storage_offset() == 0
    rows = torch.tensor([True, False, False, True])[:, None]
    with Passes() as passes:
        zeros_both_ways(between, rows)
    assert passes.dtypes == [torch.float32]
    with Passes() as passes:
        zeros_both_ways(aligned, rows)
    assert passes.dtypes == [torch.int64]


@pytest.mark.parametrize("length", [2, 12, 13, 16])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_zeros_in_a_log_sum_exp(dtype, length):
    where = loom.batches.pads_from_lengths(torch.tensor([1, 0, length]), length)[:, None]
    query, key, value = (torch.randn(B, heads, length, D).to(dtype) for heads in (H, HKV, HKV))
    _, aux = loom.attend(
        query.requires_grad_(), key, value, loom.lengths([1, 0, length]), backend="reference",
        clean_padding=True, return_aux=AuxRequest(lse=True),
    )  # fmt: skip
    weight = torch.rand(aux.lse.shape).to(aux.lse.dtype)
    (expected,) = torch.autograd.grad(aux.lse, query, weight.masked_fill(where, 0.0), retain_graph=True)
    (found,) = torch.autograd.grad(aux.lse, query, weight.masked_fill(where, math.nan))
    assert torch.equal(found, expected) and found[0, :, 0].any()


def dirty(dtype=torch.float32):
    return [poisoned(tensor.to(dtype), BEHIND, math.nan).requires_grad_() for tensor in inputs()]


def both_ways(call, *, dtype=torch.float32):
    """What ``call`` gives of attention that is cleaned, and of attention that is filled."""
    mask = loom.causal & loom.lengths(LENS)
    options = {"return_aux": AuxRequest(), "backend": "reference"}
    for attention in (cleaned, filled):
        yield call(lambda q, k, v, of=attention: of(q, k, v, mask, BEHIND, **options)[0], *dirty(dtype))


def test_second_derivatives():
    def twice(attention, *leaves):
        out = attention(*leaves)
        weights = [
            torch.randn(leaf.shape, generator=torch.Generator().manual_seed(5)).double() for leaf in (out, *leaves)
        ]
        grad, *seconds = (poisoned(weight, BEHIND, math.nan) for weight in weights)
        firsts = torch.autograd.grad(out, leaves, grad.requires_grad_(), create_graph=True)
        return torch.autograd.grad(firsts, (*leaves, grad), seconds)

    ours, expected = both_ways(twice, dtype=torch.float64)
    assert all(map(torch.equal, ours, expected)) and all(second.isfinite().all() for second in ours)


def test_forward_mode():
    def tangent(attention, q, k, v):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(attention(forward_ad.make_dual(q, k.expand_as(q)), k, v)).tangent

    ours, expected = both_ways(tangent)
    assert torch.equal(ours, expected) and ours.isfinite().all()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint(use_reentrant):
    def gradients(attention, *leaves):
        out = checkpoint(attention, *leaves, use_reentrant=use_reentrant)
        out.backward(poisoned(torch.ones_like(out), BEHIND, math.nan))
        return [leaf.grad for leaf in leaves]

    assert all(map(torch.equal, *both_ways(gradients)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_gradients_under_a_full_graph_compile(backend):
    def gradients(attention, *leaves):
        torch._dynamo.reset()
        out = torch.compile(attention, backend=backend, fullgraph=True)(*leaves)
        return torch.autograd.grad(out, leaves, poisoned(torch.ones_like(out), BEHIND, math.nan))

    ours, expected = both_ways(gradients)
    torch.testing.assert_close(ours, expected)
    assert all(grad.isfinite().all() for grad in ours)


def test_the_output_may_be_written_to_where_attention_allows_it():
    def gradients(attention, *leaves):
        out = attention(*leaves)
        out.mul_(2.0)
        return torch.autograd.grad(out, leaves, poisoned(torch.ones_like(out), BEHIND, math.nan))

    assert all(map(torch.equal, *both_ways(gradients)))
    query, key, _ = dirty()
    for clean in (False, True):  # torch's kernel keeps its output for the backward
        out = loom.attend(query, key, key, loom.lengths(LENS), backend="sdpa", clean_padding=clean)
        out.mul_(2.0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            out.sum().backward()


@pytest.mark.parametrize("name", MASKS)
def test_it_changes_nothing_where_nothing_is_wrong(name):
    make, _ = MASKS[name]
    torch.testing.assert_close(
        loom.attend(*inputs(), make(), clean_padding=True), loom.attend(*inputs(), make()), rtol=0, atol=0
    )


@pytest.mark.parametrize("backend", ["sdpa", "sliced", "reference"])
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


LONG = 2 * L
OFFSETS = {
    "an int": (4, 0),
    "of the keys": (3, 3),
    "a tensor": (torch.tensor(4), torch.tensor(1)),
    "of each row": (torch.tensor([0, 2, 9]), 0),
    "of each row, keys too": (torch.tensor([0, 2, 9]), torch.tensor([3, 0, 1])),
    "keys before 0": (0, -2),
    "left padding": (torch.tensor([0, -2, -5]), torch.tensor([0, -2, -5])),
}
LONG_LENS = torch.tensor([8, 0, 12])
LONG_PADS = torch.rand(B, LONG, generator=torch.Generator().manual_seed(6)) < 0.4
END = torch.tensor([10, 10, 10])
PACKED = loom.documents(offsets=[0, 3, 10], length=LONG)
SHIFTED = {
    "lengths": (loom.lengths(LONG_LENS), LONG_LENS),
    "lengths & causal": (loom.causal & loom.lengths(LONG_LENS), LONG_LENS),  # which simplify changes
    "padding": (loom.padding(LONG_PADS), LONG_PADS),
    "real": (loom.real(~LONG_PADS), LONG_PADS),
    "key padding": (loom.key_padding(LONG_PADS), LONG_PADS),
    "documents by id": (loom.documents(torch.where(LONG_PADS, -1, torch.arange(LONG) // 7)), LONG_PADS),
    "packed documents": (PACKED & loom.causal, END),
    "within": (loom.masks.within(PACKED, loom.window(back=2)), END),
}


def hidden_from(first, hides):
    """Which of L positions from ``first`` on are padding, by lengths (B,) or by a table (B, LONG); those before 0 are."""
    positions = (torch.arange(L) + torch.as_tensor(first)[..., None]).expand(B, L)
    found = positions >= hides[:, None] if hides.ndim == 1 else hides.gather(1, positions.clamp(min=0))
    return found | (positions < 0)


@pytest.mark.parametrize("name", SHIFTED)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("backend", ["sdpa", "sliced", "reference"])
def test_padding_is_known_where_positions_are_shifted(name, offset, backend):
    (mask, hides), (q_offset, kv_offset) = SHIFTED[name], OFFSETS[offset]
    mask = loom.masks.shifted(mask, q_offset=q_offset, kv_offset=kv_offset)
    keys, queries = hidden_from(kv_offset, hides), hidden_from(q_offset, hides)
    assert keys.any() and not keys.all()
    query, key, value = inputs()
    clean = loom.attend(query, key, value, mask, backend=backend)
    key, value = poisoned(key, keys, math.nan), poisoned(value, keys, math.nan)
    if name != "key padding":
        query = poisoned(query, queries, math.nan)
    for given in (mask, loom.block_mask(mask, L, L, batch=B)):
        assert torch.equal(loom.attend(query, key, value, given, backend=backend, clean_padding=True), clean)


def test_positions_before_0_are_padding():
    mask = loom.masks.shifted(loom.padding(LONG_PADS), q_offset=-2, kv_offset=torch.tensor(-2))
    hidden = torch.cat([torch.ones(len(LONG_PADS), 2, dtype=torch.bool), LONG_PADS], 1)[:, :L]
    assert torch.equal(known_padding(mask, L), hidden)
    query, key, value = inputs()
    poison = [poisoned(tensor, hidden, math.nan) for tensor in (query, key, value)]
    clean = loom.attend(query, key, value, mask)
    assert torch.equal(loom.attend(*poison, mask, clean_padding=True), clean)


@mask_dataclass
class FirstThree(PaddingMask):
    """A mask of somebody else's, as docs/your_own_mask.md has it: it knows its padding from position 0 on."""

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx < 3

    def hidden_keys(self, kv_len):
        return torch.arange(kv_len)[None] >= 3


def test_a_padding_mask_of_somebody_else():
    mask = loom.causal & FirstThree()
    query, key, value = inputs()
    behind = (torch.arange(L) >= 3).expand(B, L)
    found = loom.attend(
        query, poisoned(key, behind, math.nan), poisoned(value, behind, math.nan), mask, clean_padding=True
    )
    assert torch.equal(found, loom.attend(query, key, value, mask))


def test_padding_of_one_sequence_is_what_is_hidden_as_key_and_as_query():
    pads, one, two = loom.padding(LONG_PADS), torch.tensor(1), torch.tensor(2)
    together = loom.masks.shifted(pads, q_offset=one, kv_offset=one)
    apart = loom.masks.shifted(pads, q_offset=one, kv_offset=two)
    twice = loom.masks.shifted(together, q_offset=two, kv_offset=two)
    for mask, first in ((together, 1), (twice, 3), (loom.masks.shifted(pads, q_offset=4, kv_offset=4), 4)):
        assert torch.equal(known_padding(mask, L, of_one_sequence=True), LONG_PADS[:, first : first + L])
    for mask in (apart, loom.masks.shifted(apart, q_offset=two, kv_offset=two), loom.masks.shifted(pads, kv_offset=1)):
        keys = known_padding(mask, L)
        assert torch.equal(known_padding(mask, L, of_one_sequence=True), keys & known_hidden_queries(mask, L))
    of_keys = loom.masks.shifted(loom.key_padding(LONG_PADS), q_offset=one)
    assert known_padding(of_keys, L, of_one_sequence=True) is None
    assert known_padding(of_keys, L) is not None


def test_a_cache_that_was_never_written():
    """Decoding from a cache whose end is uninitialised memory: keys behind the length are not there yet."""
    query, key, value = inputs()
    lens = torch.tensor([7, 4, 12])
    behind = torch.arange(L) >= lens[:, None]
    key, value = poisoned(key, behind, math.nan), poisoned(value, behind, math.inf)
    pads = torch.zeros(B, L, dtype=torch.bool).masked_fill(behind, True)
    for padded in (loom.lengths(lens), loom.key_padding(pads)):
        step = loom.attend(
            query[:, :, 3:4], key, value, loom.causal & padded, q_offset=lens - 1, clean_padding=True
        )  # fmt: skip
        assert step.isfinite().all() and step.any(-1).all()


UNKNOWN = [
    None,
    loom.causal,
    loom.causal | loom.lengths(LENS),
    ~loom.lengths(LENS),
    closure,
    lambda b, h, q_idx, kv_idx: kv_idx < LENS[b],
    torch_and(closure, closure),
    loom.masks.per_batch([loom.causal, loom.everything, loom.causal]),
    loom.masks.shifted(loom.lengths(LENS) | loom.causal, q_offset=2),
    loom.block_mask(loom.causal, L, L),
]


@pytest.mark.parametrize(
    "mask", UNKNOWN, ids=lambda mask: repr(mask) if isinstance(mask, Mask) else type(mask).__name__
)
@pytest.mark.parametrize("call", [loom.attend, loom.explain])
def test_padding_must_be_known(call, mask):
    with pytest.raises(ValueError, match=r"clean_padding needs a mask .*joined to others with &, shifted or not; got"):
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
            call(*inputs(), mask, clean_padding=True, q_offset=0)


def test_a_block_mask_whose_mask_is_of_another_size():
    blocks = loom.block_mask(loom.causal, L, L)
    blocks.mask_mod = loom.lengths([3, 5])
    assert isinstance(blocks, BlockMask)
    with pytest.raises(ValueError, match=r"\(batch, length\) = \(3, 13\), and its mask knows padding for \(2, 13\)"):
        loom.attend(*inputs(), blocks, clean_padding=True)
