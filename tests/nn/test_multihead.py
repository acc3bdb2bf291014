"""MultiheadFlexAttention: what it computes, that padding never leaks, and where it works."""

import copy
import math

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest
from torch.nn.attention.flex_attention import and_masks as torch_and

import maskloom as loom

B, L, D_IN, D_OUT, HEADS = 3, 7, 11, 26, 2
LENS = torch.tensor([5, 0, 7])


@pytest.fixture
def module():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS)


def sequences(**how):
    return torch.randn(B, L, D_IN, generator=torch.Generator().manual_seed(1)).to(**how)


def masks():
    pads = loom.batches.pads_from_lengths(LENS, L)
    return {
        "lengths": loom.causal & loom.lengths(LENS),
        "padding": loom.padding(pads) & (loom.window(back=2) | loom.sinks(1)),
        "real": loom.real(~pads),
        "key padding": loom.key_padding(pads),
        "documents by id": loom.documents(torch.where(pads, -1, torch.arange(L) // 3)),
        "two paddings": loom.padding(pads) & loom.causal & loom.real(torch.ones(B, L, dtype=torch.bool)),
        "torch's and": torch_and(loom.causal, loom.padding(pads)),
        "torch's and, twice": torch_and(torch_and(lambda b, h, q, k: q >= k, loom.causal), loom.padding(pads)),
        "torch's and, as a mask": loom.as_mask(torch_and(lambda b, h, q, k: q >= k, loom.padding(pads))),
    }


def test_it_is_multi_head_attention(module):
    """Against torch's own layer, with the same weights."""
    x = sequences()
    theirs = torch.nn.MultiheadAttention(D_OUT, HEADS, bias=False, batch_first=True)
    pads = loom.batches.pads_from_lengths([5, 1, 7], L)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.eye(D_OUT).repeat(3, 1))  # it is given what is projected already
        theirs.out_proj.weight.copy_(module.out_proj.weight)
        expected, _ = theirs(*module.in_proj(x).chunk(3, -1), key_padding_mask=pads)
        out = module(x, loom.key_padding(pads)).out - module.out_proj.bias
    real = ~pads  # at padded queries x is cleaned here, and theirs is not
    torch.testing.assert_close(out[real], expected[real])


def test_the_result_is_a_named_tuple_of_three(module):
    found = module(sequences(), loom.causal)
    out, queries, keys = found
    assert found.out is out
    assert out.shape == (B, L, D_OUT)
    assert queries.shape == keys.shape == (B, HEADS, L, D_OUT // HEADS)


@pytest.mark.parametrize(
    "mask", [loom.key_padding(loom.batches.pads_from_lengths(LENS, L)), loom.lengths(LENS)], ids=repr
)
def test_nor_through_projections_of_a_context_that_there_is_not(mask):
    """With ``d_context`` the module attends to x itself where no context is given: one sequence, whose padding is known."""
    pads = loom.batches.pads_from_lengths(LENS, L)
    module = loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS, d_context=D_IN)
    results = []
    for filling in (0.0, math.nan):
        module.zero_grad()
        x = sequences().masked_fill(pads[..., None], filling).requires_grad_()
        out = module(x, mask).out
        out[~pads].sum().backward()
        results.append([out, x.grad, *(parameter.grad for parameter in module.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert not results[1][1][pads].any()


@pytest.mark.parametrize("name", masks())
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), 1e30])
def test_padding_never_leaks(module, name, garbage):
    mask = masks()[name]
    pads = loom.batches.pads_from_lengths(LENS, L)
    results = []
    for filling in (0.0, garbage):
        module.zero_grad()
        x = sequences().masked_fill(pads[..., None], filling).requires_grad_()
        out = module(x, loom.create_block_mask(mask, B, None, L, L)).out
        (out * ~pads[..., None]).sum().backward()
        results.append([out[~pads], x.grad, *(parameter.grad for parameter in module.parameters())])
    for clean, dirty in zip(*results, strict=True):
        assert torch.equal(clean, dirty)
    assert not results[1][1][pads].any()


@pytest.mark.parametrize("name", masks())
def test_incoming_gradients_of_padding_never_leak(module, name):
    mask = masks()[name]
    pads = loom.batches.pads_from_lengths(LENS, L)[..., None]
    results = []
    for filling in (0.0, float("nan")):
        module.zero_grad()
        x = sequences().requires_grad_()
        out = module(x, mask, clean_padding=True).out
        out.backward(torch.ones_like(out).masked_fill(pads, filling))
        results.append([x.grad, *(parameter.grad for parameter in module.parameters())])
    assert all(map(torch.equal, *results))


def test_the_tail_of_a_packed_row_never_leaks(module):
    x = sequences()
    mask = loom.documents(offsets=[0, 2, 5], length=L) & loom.causal
    expected = module(x, mask).out[:, :5]
    x[:, 5:] = float("nan")
    assert torch.equal(module(x, mask).out[:, :5], expected)


def test_a_query_that_sees_nothing_gives_the_bias(module):
    out = module(sequences(), loom.lengths(LENS)).out
    assert torch.equal(out[1], module.out_proj.bias.expand(L, -1))


def test_one_module_takes_any_batch_and_length(module):
    for batch, length in ((1, 1), (2, 3), (5, 13)):
        assert module(torch.randn(batch, length, D_IN), loom.causal).out.shape == (batch, length, D_OUT)
    assert module(sequences()).out.shape == (B, L, D_OUT)


@pytest.mark.parametrize("name", [name for name in masks() if name in ("lengths", "padding", "torch's and, as a mask")])
def test_under_a_full_graph_compile(module, name):
    blocks = loom.create_block_mask(masks()[name], B, None, L, L)
    x = sequences()
    expected = module(x, blocks).out
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x[loom.batches.pads_from_lengths(LENS, L)] = float("nan")
    torch.testing.assert_close(compiled(x, blocks).out, expected)
    compiled(x.requires_grad_(), blocks).out.sum().backward()
    assert x.grad.isfinite().all()


def test_torchs_own_compositions_are_refused_while_compiling(module):
    torch._dynamo.reset()
    blocks = loom.create_block_mask(masks()["torch's and"], B, None, L, L)
    with pytest.raises(Exception, match=r"cannot look into torch's and_masks.*maskloom\.and_masks"):
        torch.compile(module, backend="eager", fullgraph=True)(sequences(), blocks)


def test_autocast(module):
    blocks = loom.block_mask(masks()["lengths"], L, L)
    exact = module(sequences(), blocks).out
    with torch.autocast("cpu", torch.bfloat16):
        out = module(sequences(), blocks).out
    assert out.dtype == torch.bfloat16
    assert (out.float() - exact).norm() / exact.norm() < 4 * torch.finfo(torch.bfloat16).eps
    out.sum().backward()
    assert module.in_proj.weight.grad.isfinite().all()


def test_float64_deepcopy_and_state_dict(module):
    twin = copy.deepcopy(module).double()
    twin.load_state_dict(module.state_dict())
    exact = twin(sequences(dtype=torch.float64), loom.causal).out
    assert exact.dtype == torch.float64
    torch.testing.assert_close(module(sequences(), loom.causal).out.double(), exact, rtol=1e-5, atol=1e-6)
    assert (
        loom.MultiheadFlexAttention(2, 3, 1, device="meta", dtype=torch.float16).in_proj.weight.dtype == torch.float16
    )


def test_gradients(module):
    module = module.double()
    mask = loom.causal & loom.lengths([3, 5])
    x = torch.randn(2, 5, D_IN, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(x, mask).out, x, fast_mode=True)


def test_repr_and_projections(module):
    assert repr(module).startswith("MultiheadFlexAttention(\n  d_in=11, d_out=26, n_heads=2, bias=False")
    assert module.in_proj.bias is None
    assert module.out_proj.bias is not None
    assert loom.MultiheadFlexAttention(2, 3, 1, bias=True).in_proj.bias is not None


OPTIONS = {
    "score_mod": {"score_mod": loom.scores.alibi(HEADS)},
    "scale": {"scale": 0.3},
    "reference": {"backend": "reference"},
    "sinks": {"sinks": torch.tensor([0.5, -1.0])},
    "clean padding": {"clean_padding": True},
    "deterministic": {"deterministic": True, "allow_slow": True},
    "offset": {"q_offset": 2},
    "offset of rows": {"q_offset": torch.tensor([2, 0, 5])},
    "kernel options": {"kernel_options": {"BLOCK_M": 32}},
    "no log-sum-exp": {"return_aux": None},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_attend(module, name):
    mask = loom.causal if "offset" in name else masks()["lengths"]
    out, queries, keys = module(sequences(), mask, **OPTIONS[name])
    values = module.in_proj(sequences()).view(B, L, 3, HEADS, -1)[:, :, 2].transpose(1, 2)
    attended = loom.attend(queries, keys, values, mask, **OPTIONS[name]).transpose(1, 2).flatten(2)
    torch.testing.assert_close(out, module.out_proj(attended))
    out.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


@pytest.mark.parametrize("offset", [-1, 0, 2, torch.tensor(-1), torch.tensor([0]), torch.tensor([-2, 0, 1])], ids=str)
@pytest.mark.parametrize("name", masks())
def test_an_offset_is_that_of_the_mask(module, name, offset):
    """Padding is looked at with the offset in it: what is real as a query is not zeroed."""
    mask, x = loom.as_mask(masks()[name]), sequences()
    if "lengths" not in name and not (isinstance(offset, int) and offset == 0):
        mask = loom.causal & loom.lengths(LENS, [3, 2, 7])  # tables end, and lengths do not
    found = module(x, mask, q_offset=offset, h_offset=0)
    moved = module(x, loom.masks.shifted(mask, q_offset=offset, h_offset=0), q_offset=0)
    torch.testing.assert_close(found.out, moved.out)
    values = module.in_proj(x).view(B, L, 3, HEADS, -1)[:, :, 2].transpose(1, 2)
    table = loom.masks.shifted(mask, q_offset=offset).dense(L, L, batch=B)
    plain = module.in_proj(x).view(B, L, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    expected, _ = loom.reference(*plain[:2], values, table)
    seen = table.any(-1)[:, 0] & table.any(-2)[:, 0] if name == "key padding" else table.any(-1)[:, 0]
    torch.testing.assert_close(found.out[seen], module.out_proj(expected.transpose(1, 2).flatten(2))[seen])


def test_padding_of_both_sides_never_leaks_under_an_offset(module):
    x, zero = sequences(), torch.tensor(0)
    pads = loom.batches.pads_from_lengths(LENS, L)
    expected = module(x, loom.lengths(LENS), q_offset=zero).out
    x[pads] = float("nan")
    assert torch.equal(module(x, loom.lengths(LENS), q_offset=zero).out, expected)


def test_the_tail_of_documents_never_leaks_into_sinks(module):
    sinks, x = torch.zeros(HEADS, requires_grad=True), sequences()
    x[:, 5:] = float("nan")
    mask = loom.masks.within(loom.documents(offsets=[0, 2, 5], length=L), loom.causal)
    module(x, mask, sinks=sinks).out.sum().backward()
    assert sinks.grad.isfinite().all()


@pytest.mark.parametrize("flag", ["bias", "out_bias", "qk_norm", "sinks", "gate"])
@pytest.mark.parametrize("value", [3, "yes", None])
def test_a_flag_that_is_none_is_named(flag, value):
    with pytest.raises(TypeError, match=f"{flag} is True or False; got '?{value}"):
        loom.MultiheadFlexAttention(4, 8, 2, **{flag: value})


def test_the_log_sum_exp_is_refused_by_name(module):
    for asked in (AuxRequest(), AuxRequest(lse=True)):
        with pytest.raises(TypeError, match=r"returns out, queries and keys, and no log-sum-exp; maskloom.attend\("):
            module(sequences(), loom.causal, return_aux=asked)
    with pytest.raises(TypeError, match="unexpected keyword argument 'drop'"):
        module(sequences(), loom.causal, drop=0.1)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: loom.MultiheadFlexAttention(3, 7, 2), "d_out is a multiple of n_heads; got d_out=7 and n_heads=2"),
        (lambda m: loom.MultiheadFlexAttention(3, 7, 0), "n_heads is an int, at least 1; got 0"),
        (lambda m: loom.MultiheadFlexAttention(4, 8, 2.0), "n_heads is an int, at least 1; got 2.0"),
        (lambda m: m(torch.ones(B, L, 5)), r"x has shape \(batch, length, 11\); got \(3, 7, 5\)"),
        (lambda m: m(torch.ones(L, D_IN)), r"got \(7, 11\)"),
        (lambda m: m(sequences(), loom.block_mask(loom.causal, 5, 5)), r"\(5, 5\); the attention has \(7, 7\)"),
        (
            lambda m: m(sequences(), loom.block_mask(loom.causal, L, L, batch=2)),
            "for 2 batch rows; the attention has 3",
        ),
        (
            lambda m: m(sequences(), loom.lengths([3, 5]) & loom.lengths(LENS)),
            r"knows padding for \(batch, length\) = \(2, 7\) and for \(3, 7\): not for one batch",
        ),
        (
            lambda m: m(sequences(), loom.lengths([3, 9, 5])),
            "batch row 1 has 9 positions .*; x has 7.* give q_offset=0",
        ),
        (lambda m: m(sequences(), loom.lengths([3, 5])), r"\(batch, length\) = \(3, 7\), .* for \(2, 7\)"),
        (lambda m: m(sequences()[:, :0]), r"x has at least one position; got \(3, 0, 11\)"),
        (lambda m: m(sequences(), context=sequences()[:, :0]), r"context has at least one position; got \(3, 0, 11\)"),
        (
            lambda m: m(sequences(dtype=torch.float64)),
            "x is torch.float64, and the module's parameters are torch.float32",
        ),
        (
            lambda m: m(sequences(), context=sequences(dtype=torch.bfloat16)),
            "context is torch.bfloat16, and the module's parameters are torch.float32",
        ),
        (lambda m: m(sequences(), positions=(None, None, None)), "a pair, those of x and those of the context; got 3"),
        (
            lambda m: m(sequences(), need_weights=torch.ones(2, dtype=torch.bool)),
            r"need_weights is True, .*; got bool\[2\]",
        ),
        (
            lambda m: m(sequences(), loom.causal, cache=loom.nn.KVCache(2, HEADS, 9, D_OUT // HEADS)),
            r"the cache is for 2 batch rows, and x has 3; got x \(3, 7, 11\)",
        ),
        (lambda m: loom.MultiheadFlexAttention(4, 8, 2, device="foo"), "device is one that torch has here; got 'foo'"),
        (lambda m: loom.MultiheadFlexAttention(4, 8, 2, softcap=-1.0), "softcap is the greatest size of a score"),
    ],
)
def test_words(module, call, words):
    with pytest.raises(ValueError, match=words):
        call(module)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m([[1.0]]), r"x is a tensor \(batch, length, features\); got list"),
        (
            lambda m: m(torch.ones(B, L, D_IN, dtype=torch.int64)),
            "x is floating point: .* embedding first; got torch.int64",
        ),
        (
            lambda m: m(sequences().to_sparse()),
            "x is a tensor of layout torch.sparse_coo; attention takes dense ones: x.to_dense",
        ),
        (
            lambda m: m(torch.nested.nested_tensor([*sequences()], layout=torch.jagged)),
            "x is a nested tensor; pack its parts",
        ),
        (lambda m: m(sequences(), context=sequences().to_sparse()), "context is a tensor of layout torch.sparse_coo"),
        (
            lambda m: loom.MultiheadFlexAttention(4, 8, 2, dtype=torch.int32),
            "dtype is that of parameters, floating point; got torch.int32",
        ),
        (lambda m: m(sequences(), context=[1.0]), r"context is a tensor \(batch, length, features\); got list"),
        (lambda m: m(sequences(), context=sequences().numpy()), r"got ndarray float32\[3, 7, 11\]"),
        (lambda m: m(sequences(), context=sequences(dtype=torch.bool)), "context is floating point"),
    ],
)
def test_words_of_inputs_of_another_type(module, call, words):
    with pytest.raises(TypeError, match=words):
        call(module)


def test_a_layer_that_casts_its_input_gets_any_dtype(module):
    """A layer in place of ``in_proj``, a hook, or autocast."""

    class Casting(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x.to(self.weight.dtype))

    x, expected = sequences(dtype=torch.float64), module(sequences()).out
    with torch.autocast("cpu", torch.bfloat16):
        assert module(sequences(dtype=torch.bfloat16)).out.isfinite().all()
    casting = copy.deepcopy(module)
    casting.in_proj.__class__ = Casting
    torch.testing.assert_close(casting(x).out, expected)
    module.in_proj.register_forward_pre_hook(lambda _, given: (given[0].float(),))
    torch.testing.assert_close(module(x).out, expected)


class Adapted(torch.nn.Module):
    """A layer with an adapter beside it, whose weight and bias are those of the layer alone."""

    def __init__(self, layer):
        super().__init__()
        self.layer, self.beside = layer, torch.nn.Linear(layer.in_features, layer.out_features, bias=False)

    weight = property(lambda self: self.layer.weight)
    bias = property(lambda self: self.layer.bias)

    def forward(self, x):
        return self.layer(x) + self.beside(x)


def adapted(module):
    module.in_proj = Adapted(module.in_proj)


CHANGES = {
    "adapter": adapted,
    "hook": lambda module: module.in_proj.register_forward_hook(lambda layer, given, out: out * 0.5),
    "hook before": lambda module: module.in_proj.register_forward_pre_hook(lambda layer, given: (given[0] * 2,)),
    "parametrization": lambda module: torch.nn.utils.parametrizations.weight_norm(module.in_proj),
    "forward": lambda module: setattr(module.in_proj, "forward", lambda x: torch.nn.functional.linear(x, module.in_proj.weight) + 1),
    "hook of the gradient": lambda module: module.in_proj.register_full_backward_hook(lambda layer, given, came: (given[0] * 3,)),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_context_goes_through_what_stands_for_in_proj(module, change):
    """As x does alone; so a layer in its place, and hooks, count, in the gradient too."""
    CHANGES[change](module)
    found = {}
    for name in ("alone", "context"):
        module.zero_grad()
        x = sequences().requires_grad_()
        context = {"context": x.clone()} if name == "context" else {}
        out = module(x, loom.causal, **context).out
        out.square().sum().backward()
        found[name] = [out, x.grad, *(parameter.grad for parameter in module.parameters())]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("norm", [torch.nn.LayerNorm(5), torch.nn.Identity(), "hook"])
def test_another_norm_of_queries_under_autocast(norm):
    module = loom.MultiheadFlexAttention(D_IN, HEADS * 5, HEADS, qk_norm=True)
    if norm == "hook":
        module.q_norm.register_forward_hook(lambda layer, given, out: out * 0.5)
    else:
        module.q_norm = norm
    with torch.no_grad():
        expected = module(sequences(), loom.causal).queries
        with torch.autocast("cpu", torch.bfloat16):
            found = module(sequences(), loom.causal).queries
    torch.testing.assert_close(found.float(), expected, atol=0.1, rtol=0.1)


def test_positions_beside_a_context_are_a_pair():
    module = loom.MultiheadFlexAttention(D_IN, HEADS * 4, HEADS, rotary=loom.nn.Rotary(4))
    x, at = sequences(), torch.arange(7) + 3
    pair = module(x, context=x, positions=(at, at)).out
    torch.testing.assert_close(pair, module(x, positions=at).out)
    for context in (x, x[:, :5]):
        with pytest.raises(ValueError, match=r"beside a context positions are a pair, .* got one tensor \(7,\)"):
            module(x, context=context, positions=at)


def test_a_table_in_place_of_a_mask():
    torch.manual_seed(0)
    module, x = loom.MultiheadFlexAttention(6, 10, 2), torch.randn(3, 7, 6)
    table = torch.ones(7, 7, dtype=torch.bool).tril()
    expected = module(x, loom.causal).out
    theirs = torch.zeros(7, 7).masked_fill(~table, -math.inf)
    for given in (table, table.expand(3, 7, 7), table[None, None], theirs):
        torch.testing.assert_close(module(x, given).out, expected)
    with pytest.raises(ValueError, match=r"key_padding\(t\)"):
        module(x, torch.ones(3, 7, dtype=torch.bool))


def test_what_a_table_hides_as_query_and_as_key_is_padding():
    torch.manual_seed(0)
    module, x = loom.MultiheadFlexAttention(6, 10, 2), torch.randn(3, 7, 6)
    strictly_before = torch.ones(7, 7, dtype=torch.bool).tril(-1)  # the last key is seen by none, its query sees
    torch.testing.assert_close(module(x, strictly_before).out, module(x, loom.masks.band(-7, -1)).out)
    real = torch.arange(7) < 5
    padded = strictly_before & real & real[:, None]
    clean = module(x, padded).out
    x[:, 5:] = math.nan
    torch.testing.assert_close(module(x, padded).out, clean)


def test_dropout_is_of_training_alone():
    torch.manual_seed(0)
    module = loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS, dropout=0.5)
    x, mask = sequences(), loom.causal & loom.lengths([7, 0, 3])
    first, second = module(x, mask).out, module(x, mask).out
    assert not torch.equal(first, second)
    seed = torch.tensor(3)
    found = module(x, mask, dropout_seed=seed)
    queries, keys, values = module.projected(x, None)
    heads = loom.attend(queries, keys, values, mask, dropout=0.5, dropout_seed=seed)
    torch.testing.assert_close(found.out, module.combined(heads, x))
    module.eval()
    plain = module(x, mask, dropout_seed=seed).out
    assert torch.equal(plain, module(x, mask).out)
    module.dropout = 0.0
    assert torch.equal(module.train()(x, mask).out, plain)


def test_weights_beside_dropout_are_those_before_it():
    module = loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS, dropout=0.5)
    weights = module(sequences(), loom.causal, need_weights=True).weights
    torch.testing.assert_close(weights, module.eval()(sequences(), loom.causal, need_weights=True).weights)


def test_words_about_dropout():
    module = loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS, dropout=0.25)
    assert "bias=False, dropout=0.25" in repr(module)
    assert "dropout" not in repr(loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS))
    with pytest.raises(ValueError, match="dropout is from 0 to 1, the share of probabilities that become 0; got 2"):
        loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS, dropout=2)
    with pytest.raises(ValueError, match=r"this module has dropout=0\.25 of its own, in training: give no dropout="):
        module(sequences(), loom.causal, dropout=0.1)
