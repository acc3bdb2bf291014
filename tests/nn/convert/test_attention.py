"""nn.MultiheadAttention run by maskloom: the same as torch's own, alone and inside torch's Transformer layers."""

import copy
import inspect
import pickle
import warnings
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.nn.convert import attention as room

B, L, S, H, D, KDIM, VDIM = 2, 5, 7, 3, 4, 11, 13
E = H * D
PADS = torch.arange(L) >= torch.tensor([3, 5])[:, None]


def sample(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def filled(module):
    for seed, parameter in enumerate(module.parameters()):
        parameter.data.copy_(sample(*parameter.shape, seed=seed) * 0.4)
    return module


def theirs_of(**options):
    return filled(nn.MultiheadAttention(E, H, dtype=torch.float64, **options))


# -- the same as torch's ---------------------------------------------------------------------------------------------


def attn_masks(rows):
    """Masks of each kind, in which each query sees the first key."""
    may = torch.rand(rows, L, S, generator=torch.Generator().manual_seed(3)) < 0.4
    may[..., 0] = True
    hidden = ~may
    added = sample(rows, L, S, seed=4).masked_fill(hidden, -torch.inf)
    only_hides = torch.zeros(L, S).double().masked_fill(hidden[0], -torch.inf)
    causal = torch.ones(L, S, dtype=torch.bool).triu(1)
    both = {
        "bool": hidden[0],
        "float": added[0],
        "-inf": only_hides,
        "causal": causal,
        "bool 3d": hidden,
        "float 3d": added,
    }
    return {"none": None, **both}


def padding_masks(batch):
    pads = torch.arange(S) >= torch.tensor([4, 6])[:batch, None]
    return {"none": None, "bool": pads, "float": sample(batch, S, seed=5).masked_fill(pads, -torch.inf)}


@st.composite
def cases(draw):
    options = {name: draw(st.booleans()) for name in ("bias", "batch_first", "add_bias_kv", "add_zero_attn")}
    options |= draw(st.sampled_from([{}, {"kdim": KDIM, "vdim": VDIM}, {"vdim": VDIM}]))
    is_batched = draw(st.booleans())
    batch = B if is_batched else 1
    masks, paddings = attn_masks(batch * H), padding_masks(batch)
    padding = paddings[draw(st.sampled_from(list(paddings)))]
    call = {
        "attn_mask": masks[draw(st.sampled_from(list(masks)))],
        "key_padding_mask": padding if padding is None or is_batched else padding[0],
        "need_weights": draw(st.booleans()),
        "average_attn_weights": draw(st.booleans()),
    }
    call["is_causal"] = call["attn_mask"] is not None and draw(st.booleans())
    return options, is_batched, draw(st.sampled_from(["apart", "key is value"])), call


def inputs(module, is_batched, which):
    shapes = {"query": (L, E), "key": (S, module.kdim), "value": (S, module.vdim)}
    made = []
    for seed, (length, width) in enumerate(shapes.values(), start=7):
        batch = ((B, length) if module.batch_first else (length, B)) if is_batched else (length,)
        made.append(sample(*batch, width, seed=seed))
    return (*made[:2], made[1]) if which == "key is value" and module.kdim == module.vdim else tuple(made)


def outcome(module, arguments, call):
    """Output and weights; gradients of inputs, of float masks and of parameters."""
    module.zero_grad()
    leaves = {id(tensor): tensor.clone().requires_grad_() for tensor in arguments}
    learned = {name: value.clone().requires_grad_() for name, value in call.items() if learns(value)}
    out, weights = module(*[leaves[id(tensor)] for tensor in arguments], **(call | learned))
    loss = (out * sample(*out.shape, seed=1)).sum()
    if weights is not None:
        loss = loss + (weights * sample(*weights.shape, seed=2)).sum()
    loss.backward()
    tensors = [*leaves.values(), *learned.values(), *module.parameters()]
    return out, weights, [torch.zeros_like(one) if one.grad is None else one.grad for one in tensors]


def learns(value):
    return isinstance(value, torch.Tensor) and value.is_floating_point()


@pytest.mark.filterwarnings("ignore:Support for mismatched")
@given(cases())
def test_it_is_torchs_own(case):
    options, is_batched, which, call = case
    theirs = theirs_of(**options)
    ours = loom.nn.from_torch(theirs)
    arguments = inputs(theirs, is_batched, which)
    expected, found = outcome(theirs, arguments, call), outcome(ours, arguments, call)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert (found[0] - expected[0]).shape == expected[0].shape
    theirs.eval(), ours.eval()
    with torch.no_grad():
        torch.testing.assert_close(ours(*arguments, **call), theirs(*arguments, **call), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize(("q_len", "kv_len"), [(0, S), (L, 0), (0, 0)])
def test_empty_sequences(q_len, kv_len, need_weights):
    """A memory without keys gives the bias of the projection back, as torch's own module has it."""
    theirs = theirs_of(batch_first=True, dropout=0.0)
    results = []
    for module in (theirs, loom.nn.from_torch(theirs)):
        query, key, value = (
            sample(B, length, width).requires_grad_()
            for length, width in ((q_len, module.embed_dim), (kv_len, module.kdim), (kv_len, module.vdim))
        )
        out, weights = module(query, key, value, need_weights=need_weights)
        module.zero_grad()
        out.sum().backward()
        results.append([out, weights, query.grad, *(each.grad for each in module.parameters())])
    for ours, one in zip(*results, strict=True):
        assert (ours is None) == (one is None)
        assert ours is None or torch.equal(ours, one)


@pytest.mark.parametrize("batch_first", [False, True])
def test_attention_to_itself_in_one_product(batch_first):
    theirs = theirs_of(batch_first=batch_first)
    ours, x = loom.nn.from_torch(theirs), sample(*((B, L) if batch_first else (L, B)), E)
    for call in ({}, {"key_padding_mask": PADS}, {"need_weights": False}):
        for one, other in zip(outcome(ours, (x, x, x), call), outcome(theirs, (x, x, x), call), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    assert ours(x, x, x)[0].view(B * L, E).is_contiguous()  # code that views torch's result does so with ours


def test_the_signature_is_torchs():
    ours, theirs = (
        inspect.signature(one.forward).parameters for one in (room.MultiheadAttention, nn.MultiheadAttention)
    )
    assert [(one.name, one.default, one.kind) for one in ours.values()] == [
        (one.name, one.default, one.kind) for one in theirs.values()
    ]


def test_one_made_new():
    torch.manual_seed(0)
    ours = loom.nn.MultiheadAttention(E, H, kdim=KDIM, vdim=VDIM, bias=False, batch_first=True, dtype=torch.float64)
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(E, H, kdim=KDIM, vdim=VDIM, bias=False, batch_first=True, dtype=torch.float64)
    same(ours, theirs)
    ours = loom.nn.MultiheadAttention(E, H, add_bias_kv=True)
    before = ours.in_proj_weight.clone()
    ours._reset_parameters()
    assert not torch.equal(before, ours.in_proj_weight)
    assert repr(ours).startswith("maskloom.nn.MultiheadAttention(")


def same(one, other):
    one, other = one.state_dict(), other.state_dict()
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


# -- what differs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float", "both"])
def test_a_query_that_sees_nothing_attends_to_nothing(kind, need_weights):
    ours = loom.nn.from_torch(theirs_of(batch_first=True))
    hidden = torch.zeros(L, S, dtype=torch.bool)
    hidden[2] = True
    table = hidden if kind == "bool" else sample(L, S).masked_fill(hidden, -torch.inf).requires_grad_()
    padding = torch.tensor([[False] * S, [True] * S]) if kind == "both" else None
    query, key = sample(B, L, E, seed=1).requires_grad_(), sample(B, S, E, seed=2)
    out, weights = ours(query, key, key, padding, need_weights, table)
    blind = torch.zeros(B, L, dtype=torch.bool)
    blind[:, 2] = True
    blind[1] |= kind == "both"
    assert torch.equal(out[blind], ours.out_proj.bias.expand_as(out[blind]))
    if need_weights:
        assert not weights[blind].any()
        torch.testing.assert_close(weights[~blind].sum(-1), torch.ones(int((~blind).sum())).double())
    out.sum().backward()
    assert not query.grad[blind].any()
    assert query.grad.isfinite().all()


@pytest.mark.parametrize("garbage", [torch.nan, torch.inf])
@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("batch_first", [False, True])
def test_hidden_keys_never_leak(batch_first, need_weights, kind, garbage):
    ours = loom.nn.from_torch(theirs_of(batch_first=batch_first, kdim=KDIM, vdim=VDIM))
    pads = padding_masks(B)["bool"]
    mask = pads if kind == torch.bool else torch.zeros(B, S).double().masked_fill(pads, -torch.inf)
    results = []
    for filling in (0.0, garbage):
        ours.zero_grad()
        query, key, value = inputs(ours, is_batched=True, which="apart")
        for tensor in (key, value):
            tensor[pads if batch_first else pads.T] = filling
        out = ours(query, key, value, mask, need_weights)[0]
        out.square().sum().backward()
        results.append([out, *(parameter.grad for parameter in ours.parameters())])
    assert all(map(torch.equal, *results))


def test_the_hint_counts_where_torchs_does():
    """Without weights and padding it stands for attn_mask, which is not read; else attn_mask is."""
    ours = loom.nn.from_torch(theirs_of())
    query, key, value = inputs(ours, is_batched=True, which="apart")
    causal, nothing = attn_masks(B * H)["causal"], torch.zeros(L, S, dtype=torch.bool)
    out = ours(query, key, value, attn_mask=nothing, is_causal=True, need_weights=False)[0]
    assert torch.equal(out, ours(query, key, value, attn_mask=causal, need_weights=False)[0])
    out = ours(query, key, value, attn_mask=nothing, is_causal=True)[0]
    torch.testing.assert_close(out, ours(query, key, value)[0])


# -- dropout, and weights that are not made -----------------------------------------------------------------------------


class Softmaxes(TorchDispatchMode):
    """Counts the operations that make tables of weights."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "softmax" in str(function)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("mask", ["none", "bool", "bool 3d"])
def test_without_weights_no_table_of_them_is_made(mask):
    ours = loom.nn.from_torch(theirs_of(dropout=0.3)).float().eval()
    query, key, value = (tensor.float() for tensor in inputs(ours, is_batched=True, which="apart"))
    call = {"attn_mask": attn_masks(B * H)[mask], "key_padding_mask": padding_masks(B)["bool"]}
    ours(query, key, value, need_weights=False, **call)  # the masks are read
    for need_weights in (False, True):
        with Softmaxes() as softmaxes, torch.no_grad():
            ours(query, key, value, need_weights=need_weights, **call)
        assert softmaxes.count == need_weights


def test_dropout_is_torchs():
    theirs = theirs_of(dropout=0.3, batch_first=True)
    ours = loom.nn.from_torch(theirs)
    x = sample(B, L, E)
    for call in ({"key_padding_mask": PADS}, {"average_attn_weights": False}):
        found = []
        for module in (theirs, ours):
            torch.manual_seed(0)
            found.append(module(x, x, x, **call))
        torch.testing.assert_close(*found)
    weights = found[1][1]
    kept = weights != 0
    torch.testing.assert_close((weights * 0.7)[kept], ours.eval()(x, x, x, **call)[1][kept])


def test_dropout_without_weights_makes_no_table():
    ours = loom.nn.from_torch(theirs_of(dropout=0.3, batch_first=True))
    x = sample(B, L, E)
    with Softmaxes() as softmaxes, torch.no_grad():
        out = ours(x, x, x, key_padding_mask=PADS, need_weights=False)[0]
    assert softmaxes.count == 0 and out.isfinite().all()


def test_dropout_without_weights():
    """Probabilities are dropped: the mean over many calls is the output without dropout."""
    ours = loom.nn.from_torch(theirs_of(dropout=0.3, batch_first=True))
    x = sample(1, L, E).expand(4000, -1, -1)
    torch.manual_seed(0)
    out, weights = ours(x, x, x, need_weights=False)
    assert weights is None
    assert out[0].ne(out[1]).any()
    expected = ours.eval()(x[:1], x[:1], x[:1])[0][0]
    standard_errors = (out.mean(0) - expected).abs() / (out.std(0) / 4000**0.5)
    assert standard_errors.max() < 5


# -- where it works --------------------------------------------------------------------------------------------------


def test_from_torch_and_back():
    theirs = theirs_of(dropout=0.2, batch_first=True, add_bias_kv=True).eval()
    seen = []
    theirs.register_forward_hook(lambda module, arguments, result: seen.append(type(module)))
    theirs.in_proj_weight.requires_grad_(False)
    ours = loom.nn.from_torch(theirs)
    back = ours.to_torch()
    assert (type(theirs), type(ours), type(back)) == (
        nn.MultiheadAttention,
        loom.nn.MultiheadAttention,
        nn.MultiheadAttention,
    )
    assert (back.dropout, back.training, back._qkv_same_embed_dim) == (0.2, False, True)
    assert not loom.nn.from_torch(theirs_of(vdim=VDIM)).to_torch()._qkv_same_embed_dim
    x = sample(B, L, E)
    for module in (ours, back):
        same(module, theirs)
        assert module.in_proj_weight is not theirs.in_proj_weight
        assert not module.in_proj_weight.requires_grad
        torch.testing.assert_close(module(x, x, x), theirs(x, x, x))
    assert len(seen) == 4
    assert type(loom.nn.from_torch(ours)) is loom.nn.MultiheadAttention


def test_state_dicts_of_each_load_into_the_other():
    for options in ({}, {"kdim": KDIM, "vdim": VDIM, "add_bias_kv": True}, {"bias": False}):
        theirs, ours = theirs_of(**options), loom.nn.MultiheadAttention(E, H, dtype=torch.float64, **options)
        assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
        same(ours, theirs)
        assert str(theirs_of(**options).load_state_dict(ours.state_dict())) == "<All keys matched successfully>"


def test_copies_and_pickles():
    ours = loom.nn.from_torch(theirs_of(batch_first=True))
    x = sample(B, L, E)
    for twin in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(twin) is type(ours)
        torch.testing.assert_close(twin(x, x, x, PADS), ours(x, x, x, PADS))
        assert not twin._qkv_same_embed_dim


@pytest.mark.parametrize("need_weights", [False, True])
def test_under_a_full_graph_compile(need_weights):
    ours = loom.nn.from_torch(theirs_of(batch_first=True, add_zero_attn=True))
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    masks, pads = attn_masks(B * H), padding_masks(B)
    query, key, value = inputs(ours, is_batched=True, which="apart")
    for table, padding in (("bool 3d", "bool"), ("float", "float")):
        call = {"attn_mask": masks[table], "key_padding_mask": pads[padding], "need_weights": need_weights}
        expected = outcome(ours, (query, key, value), call)
        for one, other in zip(outcome(compiled, (query, key, value), call), expected, strict=True):
            torch.testing.assert_close(one, other)


def test_one_graph_for_many_lengths():
    ours = loom.nn.from_torch(theirs_of(batch_first=True))
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(ours, backend=graphs, fullgraph=True, dynamic=True)
    for length in (5, 7, 11):
        x, pads = sample(B, length, E), torch.arange(length) >= torch.tensor([3, 5])[:, None]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        torch.testing.assert_close(compiled(x, x, x, pads, False, hidden), ours(x, x, x, pads, False, hidden))
    assert graphs.frame_count == 1


@pytest.mark.parametrize("need_weights", [False, True])
def test_masks_of_other_dtypes(need_weights):
    """torch takes float masks in the dtype of the query only."""
    ours = loom.nn.from_torch(theirs_of(batch_first=True))
    x, table, pads = sample(B, L, E), sample(L, L, seed=1).half(), torch.zeros(B, L).masked_fill(PADS, -torch.inf)
    found = ours(x, x, x, pads.bfloat16(), need_weights, table)
    torch.testing.assert_close(
        found, ours(x, x, x, pads.double(), need_weights, table.double()), rtol=1e-10, atol=1e-10
    )


def test_autocast():
    ours = loom.nn.from_torch(theirs_of(batch_first=True, add_bias_kv=True)).float()
    x, table = sample(B, L, E).float(), sample(L, L, seed=1).float()
    for call in ({"key_padding_mask": PADS}, {"attn_mask": table}, {"attn_mask": table, "need_weights": False}):
        exact = ours(x, x, x, **call)[0]
        with torch.autocast("cpu", torch.bfloat16):
            out = ours(x, x, x, **call)[0]
        assert out.dtype == torch.bfloat16
        assert (out.float() - exact).norm() / exact.norm() < 4 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize("need_weights", [False, True])
def test_activation_checkpointing(need_weights):
    ours = loom.nn.from_torch(theirs_of(batch_first=True, dropout=0.3))
    gradients = []
    for saves in (True, False):
        torch.manual_seed(0)
        x = sample(B, L, E).requires_grad_()
        run = (lambda x: ours(x, x, x, PADS, need_weights)[0]) if saves else (
            lambda x: checkpoint(lambda x: ours(x, x, x, PADS, need_weights)[0], x, use_reentrant=False)
        )  # fmt: skip
        run(x).square().sum().backward()
        gradients.append(x.grad)
    assert torch.equal(*gradients)


def test_an_empty_batch():
    ours = loom.nn.from_torch(theirs_of(batch_first=True))
    out, weights = ours(sample(0, L, E), sample(0, S, E), sample(0, S, E), key_padding_mask=torch.ones(0, S).bool())
    assert out.shape == (0, L, E)
    assert weights.shape == (0, L, S)


# -- whole models ----------------------------------------------------------------------------------------------------


def encoder(**options):
    layer = nn.TransformerEncoderLayer(
        2 * D, 2, 17, dtype=torch.float64, **{"dropout": 0.1, "batch_first": True} | options
    )
    return filled(nn.TransformerEncoder(layer, 2, norm=nn.LayerNorm(2 * D, dtype=torch.float64)))


def calls_of(function):
    """What a function returns, and how often a converted module ran meanwhile."""
    forward = room.MultiheadAttention.forward
    with mock.patch.object(room.MultiheadAttention, "forward", autospec=True, side_effect=forward) as counted:
        return function(), counted.call_count


TABLE = torch.ones(L, L, dtype=torch.bool).triu(1)
CALLS = {
    "nothing": {},
    "padding": {"src_key_padding_mask": PADS},
    "mask": {"mask": TABLE},
    "causal": {"mask": nn.Transformer.generate_square_subsequent_mask(L, dtype=torch.float64), "is_causal": True},
    "both": {"mask": TABLE, "src_key_padding_mask": PADS},
}


@pytest.mark.filterwarnings("ignore:.*nested", "ignore:Support for mismatched")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("options", [{}, {"batch_first": False}, {"norm_first": True}, {"bias": False}], ids=str)
def test_an_encoder_calls_the_new_modules_in_inference_too(options, name):
    theirs = encoder(**options).eval()
    ours = loom.nn.replace_attention(copy.deepcopy(theirs))
    first = options.get("batch_first", True)
    x = sample(*((B, L) if first else (L, B)), 2 * D)
    with torch.no_grad():
        expected = theirs(x, **CALLS[name])  # by torch's fast path, where it can
        found, calls = calls_of(lambda: ours(x, **CALLS[name]))
        assert calls == 2
        real = ~(PADS if first else PADS.T) if "padding" in name else slice(None)
        torch.testing.assert_close(found[real], expected[real], rtol=1e-10, atol=1e-10)
        poisoned = x.clone()
        if "src_key_padding_mask" in CALLS[name]:
            pads = PADS if first else PADS.T
            poisoned[pads] = torch.nan
            assert torch.equal(ours(poisoned, **CALLS[name])[~pads], found[~pads])
    ours.train(), theirs.train()
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    gradients = []
    for model in (theirs, ours):
        model(x, **CALLS[name]).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*nested", "ignore:Support for mismatched")
def test_a_whole_transformer():
    theirs = filled(nn.Transformer(2 * D, 2, 2, 2, 17, batch_first=True, dtype=torch.float64)).eval()
    ours = loom.nn.replace_attention(copy.deepcopy(theirs))
    assert not ours.encoder.use_nested_tensor
    source, target = sample(B, L, 2 * D), sample(B, S, 2 * D, seed=1)
    call = {
        "tgt_mask": nn.Transformer.generate_square_subsequent_mask(S, dtype=torch.float64),
        "tgt_is_causal": True,
        "src_key_padding_mask": PADS,
        "memory_key_padding_mask": PADS,
    }
    with torch.no_grad():
        found, calls = calls_of(lambda: ours(source, target, **call))
        assert calls == 2 + 2 * 2
        torch.testing.assert_close(found, theirs(source, target, **call), rtol=1e-10, atol=1e-10)
    same(ours, theirs)
    assert str(theirs.load_state_dict(ours.state_dict())) == "<All keys matched successfully>"
    twin = pickle.loads(pickle.dumps(ours))
    assert torch.equal(twin(source, target, **call), ours(source, target, **call))


@pytest.mark.parametrize("name", ["mask", "both"])
def test_an_encoder_compiles_in_one_graph(name):
    """Where torch looks whether the mask is causal, the hint has no value in the trace; torch's own refuses it in training."""
    ours = loom.nn.replace_attention(encoder(dropout=0.0))
    torch._dynamo.reset()
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    x = sample(B, L, 2 * D)
    torch.testing.assert_close(compiled(x, **CALLS[name]), ours(x, **CALLS[name]))


def test_an_encoder_is_exported():
    ours = loom.nn.replace_attention(encoder(dropout=0.0)).eval()
    x = sample(B, L, 2 * D)
    exported = torch.export.export(ours, (x,), {"src_key_padding_mask": PADS}).module()
    torch.testing.assert_close(exported(x, src_key_padding_mask=PADS), ours(x, src_key_padding_mask=PADS))


def test_a_model_of_transformers():
    transformers = pytest.importorskip("transformers.models.siglip.modeling_siglip")
    config = transformers.SiglipVisionConfig(
        hidden_size=2 * D, intermediate_size=17, num_hidden_layers=1, num_attention_heads=2, image_size=6, patch_size=2
    )
    theirs = filled(transformers.SiglipVisionModel(config)).eval()
    ours = loom.nn.replace_attention(copy.deepcopy(theirs))
    images = sample(B, 3, 6, 6).float()
    found, calls = calls_of(lambda: ours(images).pooler_output)
    assert calls == 1
    torch.testing.assert_close(found, theirs(images).pooler_output)


def test_the_modules_themselves_are_changed():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = theirs_of()
            self.same, self.others = self.one, nn.ModuleList([theirs_of(vdim=VDIM), nn.Linear(E, E)])

    model = Model()
    before = list(model.parameters())
    one = model.one
    assert loom.nn.replace_attention(model) is model
    assert model.one is model.same is one
    assert all(map(lambda new, old: new is old, model.parameters(), before))  # an optimiser still holds them
    assert [type(module) for module in (one, model.others[0])] == [loom.nn.MultiheadAttention] * 2
    assert loom.nn.replace_attention(model) is model  # again
    assert loom.nn.replace_attention(alone := theirs_of()) is alone
    assert type(alone) is loom.nn.MultiheadAttention


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True, but")
def test_an_encoder_made_of_a_converted_layer():
    layer = loom.nn.replace_attention(nn.TransformerEncoderLayer(2 * D, 2, 17, batch_first=True, dtype=torch.float64))
    model = nn.TransformerEncoder(layer, 2).eval()
    with torch.no_grad():
        assert calls_of(lambda: model(sample(B, L, 2 * D), src_key_padding_mask=PADS))[1] == 2


@pytest.mark.filterwarnings("ignore:.*nested")
def test_a_layer_converted_behind_the_encoders_back_says_what_to_do():
    model = encoder().eval()
    for layer in model.layers:
        layer.self_attn = loom.nn.from_torch(layer.self_attn)
    words = (
        r"query is a nested tensor.*give a padded one and key_padding_mask.*call replace_attention on the whole encoder"
    )
    with torch.no_grad(), pytest.raises(TypeError, match=words):
        model(sample(B, L, 2 * D), src_key_padding_mask=PADS)


# -- words -----------------------------------------------------------------------------------------------------------


class Own(nn.MultiheadAttention):
    pass


def test_what_is_not_converted():
    with pytest.raises(
        TypeError, match=r"from_torch takes an nn\.MultiheadAttention; got Linear; replace_attention takes"
    ):
        loom.nn.from_torch(nn.Linear(2, 3))
    with pytest.raises(TypeError, match=r"from_torch takes an nn\.MultiheadAttention; got int$"):
        loom.nn.from_torch(3)
    with pytest.raises(
        TypeError, match=r"MultiheadAttention itself; got .*\.Own, a subclass, which may compute something"
    ):
        loom.nn.from_torch(Own(E, H))
    model = nn.Sequential(theirs_of(), Own(E, H))
    with pytest.raises(TypeError, match=r"^1 should be an nn\.MultiheadAttention itself; got .*\.Own, a subclass"):
        loom.nn.replace_attention(model)
    assert type(model[0]) is nn.MultiheadAttention  # nothing was changed
    with pytest.raises(TypeError, match="Convert before it is sharded, parametrized or quantized"):
        loom.nn.from_torch(parametrizations.weight_norm(theirs_of(), "in_proj_weight"))
    with pytest.raises(ValueError, match=r"there is no nn\.MultiheadAttention in this Linear"):
        loom.nn.replace_attention(nn.Linear(2, 3))
    with pytest.raises(TypeError, match="replace_attention takes a module; got 'model'"):
        loom.nn.replace_attention("model")


def test_converting_says_nothing():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loom.nn.replace_attention(encoder())


@pytest.mark.filterwarnings("ignore:There is a performance drop", "ignore:Support for mismatched")
def test_transforms_and_inference_mode():
    theirs = theirs_of(batch_first=True)
    ours, x, table = loom.nn.from_torch(theirs), sample(B, L, E), sample(L, L, seed=1)

    def gradients(module, call):
        def loss(parameters, x):
            return torch.func.functional_call(module, parameters, (x, x, x), call)[0].square().sum()

        parameters = dict(module.named_parameters())
        return list(torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x).values())

    for call in ({"attn_mask": table}, {"attn_mask": table > 1, "need_weights": False}):
        torch.testing.assert_close(gradients(ours, call), gradients(theirs, call))
        with torch.inference_mode():
            torch.testing.assert_close(ours(x, x, x, PADS, **call), theirs(x, x, x, PADS, **call))
