"""Weights under the names of other libraries: loaded, run as there, and written back."""

import pytest
import torch
from torch import nn

import maskloom as loom

B, L, K, D, HEADS, KV_HEADS, D_CONTEXT = 3, 7, 11, 20, 5, 1, 13


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def filled(module):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.3)
    return module


def same(one, other):
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("bias", [False, True])
def test_torchs_own_module(bias):
    theirs = filled(nn.MultiheadAttention(D, HEADS, bias=bias, batch_first=True))
    ours = loom.MultiheadFlexAttention(D, D, HEADS, bias=bias, out_bias=bias)
    given = theirs.state_dict()
    before = dict(given)
    assert str(ours.load_state_dict(given)) == "<All keys matched successfully>"
    same(given, before)  # what was given is not changed
    x = sample(B, L, D)
    torch.testing.assert_close(ours(x).out, theirs(x, x, x)[0])
    same(ours.state_dict_as("torch"), theirs.state_dict())
    filled(nn.MultiheadAttention(D, HEADS, bias=bias)).load_state_dict(ours.state_dict_as("torch"))


def test_torchs_own_module_with_a_context():
    theirs = filled(nn.MultiheadAttention(D, HEADS, batch_first=True, kdim=D_CONTEXT, vdim=D_CONTEXT))
    ours = loom.MultiheadFlexAttention(D, D, HEADS, bias=True, d_context=D_CONTEXT)
    ours.load_state_dict(theirs.state_dict())
    x, context = sample(B, L, D), sample(B, K, D_CONTEXT, seed=1)
    torch.testing.assert_close(ours(x, context=context).out, theirs(x, context, context)[0])
    same(ours.state_dict_as("torch"), theirs.state_dict())
    one_width = filled(nn.MultiheadAttention(D, HEADS, batch_first=True))
    apart = loom.MultiheadFlexAttention(D, D, HEADS, bias=True, d_context=D)
    apart.load_state_dict(one_width.state_dict())
    torch.testing.assert_close(apart(x).out, one_width(x, x, x)[0])


def test_one_bias_of_two_becomes_zeros():
    ours = filled(loom.MultiheadFlexAttention(D, D, HEADS))
    theirs = nn.MultiheadAttention(D, HEADS, batch_first=True)
    theirs.load_state_dict(ours.state_dict_as("torch"))
    x = sample(B, L, D)
    torch.testing.assert_close(ours(x).out, theirs(x, x, x)[0])
    ours = filled(loom.MultiheadFlexAttention(D, D, HEADS, bias=True, out_bias=False))
    assert not ours.state_dict_as("torch")["out_proj.bias"].any()


def qwen():
    transformers = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    config = transformers.Qwen3Config(
        hidden_size=D, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, head_dim=6, attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, attn_implementation="eager",
    )  # fmt: skip
    return filled(transformers.Qwen3Attention(config, 0)), transformers.Qwen3RotaryEmbedding(config)


def test_a_layer_of_transformers():
    """Grouped queries, norm, rotary and biases, and causal attention to a padded batch."""
    theirs, embedding = qwen()
    ours = loom.MultiheadFlexAttention(
        D, D, HEADS, bias=True, n_kv_heads=KV_HEADS, d_head=6, qk_norm=True, rotary=loom.nn.Rotary(6, 5000.0)
    )
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    x, mask = (
        sample(B, L, D),
        loom.causal & loom.key_padding(loom.batches.pads_from_lengths(torch.tensor([5, 7, 2]), L)),
    )
    table = torch.where(mask.dense(L, L), 0.0, -torch.inf)
    expected, _ = theirs(x, embedding(x, torch.arange(L)[None]), table)
    real = torch.arange(L) < torch.tensor([5, 7, 2])[:, None]
    torch.testing.assert_close(ours(x, mask).out[real], expected[real])
    same(ours.state_dict_as("llama"), theirs.state_dict())


class Layer(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.self_attn, self.norm = attention, nn.LayerNorm(D)


@pytest.mark.parametrize("names", ["{}_proj.{}", "w{}.{}", "qkv_proj.{}"])
def test_names_inside_a_model(names):
    model = Layer(loom.MultiheadFlexAttention(D, D, HEADS, n_kv_heads=KV_HEADS, bias=True))
    source = filled(Layer(loom.MultiheadFlexAttention(D, D, HEADS, n_kv_heads=KV_HEADS, bias=True)))
    state = {name: tensor for name, tensor in source.state_dict().items() if "self_attn" not in name}
    other = source.self_attn.state_dict_as("llama", prefix="self_attn.")
    for kind in ("weight", "bias"):
        parts = {letter: other.pop(f"self_attn.{letter}_proj.{kind}") for letter in "qkv"}
        if names.startswith("qkv"):
            state["self_attn." + names.format(kind)] = torch.cat(list(parts.values()))
        else:
            state |= {f"self_attn.{names.format(letter, kind)}": part for letter, part in parts.items()}
        state[f"self_attn.{'wo' if names[0] == 'w' else 'o_proj'}.{kind}"] = other.pop(f"self_attn.o_proj.{kind}")
    assert str(model.load_state_dict(state)) == "<All keys matched successfully>"
    same(model.state_dict(), source.state_dict())
    model = Layer(loom.MultiheadFlexAttention(D, D, HEADS, n_kv_heads=KV_HEADS, bias=True, device="meta"))
    model.norm.to("meta")
    model.load_state_dict(state, assign=True)
    same(model.state_dict(), source.state_dict())


def test_a_bias_that_is_not_there_is_zero():
    """Whisper's keys have none."""
    ours = loom.MultiheadFlexAttention(D, D, HEADS, bias=True)
    state = filled(loom.MultiheadFlexAttention(D, D, HEADS, bias=True)).state_dict_as("llama")
    value = state["v_proj.bias"]
    del state["k_proj.bias"]
    ours.load_state_dict(state)
    assert not ours.in_proj.bias[D : 2 * D].any()
    assert torch.equal(ours.in_proj.bias[2 * D :], value)


def test_own_names_and_missing_ones():
    for options in ({}, {"d_context": D_CONTEXT, "bias": True}):
        ours = filled(loom.MultiheadFlexAttention(D, D, HEADS, **options))
        twin = loom.MultiheadFlexAttention(D, D, HEADS, **options)
        twin.load_state_dict(ours.state_dict())
        same(twin.state_dict(), ours.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "in_proj.weight"'):
        loom.MultiheadFlexAttention(D, D, HEADS).load_state_dict({"q_proj.weight": sample(D, D)})
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "bias_k", "bias_v"'):
        loom.MultiheadFlexAttention(D, D, HEADS, bias=True).load_state_dict(
            nn.MultiheadAttention(D, HEADS, add_bias_kv=True).state_dict()
        )


def of_llama(**others):
    rows = {
        "q_proj.weight": (24, D),
        "k_proj.weight": (8, D),
        "v_proj.weight": (8, D),
        "o_proj.weight": (D, 24),
    } | others
    return {name: sample(*shape) for name, shape in rows.items()}


@pytest.mark.parametrize(
    ("given", "wrong"),
    [
        (of_llama(**{"k_proj.weight": (4, D), "v_proj.weight": (12, D)}), ["k_proj.weight", "v_proj.weight"]),
        (of_llama(**{"q_proj.weight": (20, D), "k_proj.weight": (12, D)}), ["q_proj.weight", "k_proj.weight"]),
        (of_llama(**{"v_proj.weight": (8, D + 1)}), ["v_proj.weight"]),
        ({"in_proj_weight": sample(35, D), "out_proj.weight": sample(D, 24)}, ["in_proj_weight"]),
        (of_llama(**{"q_proj.bias": (24,), "k_proj.bias": (7,), "v_proj.bias": (9,)}), ["k_proj.bias", "v_proj.bias"]),
    ],
)
@pytest.mark.parametrize("context", [None, D])
def test_parts_of_other_sizes(given, wrong, context):
    """Each is named as it was given, with its own shape, though together they may have as many rows."""
    ours = loom.MultiheadFlexAttention(D, D, 6, n_kv_heads=2, d_head=4, bias=True, out_bias=False, d_context=context)
    before = {name: tensor.clone() for name, tensor in ours.named_parameters()}
    with pytest.raises(RuntimeError) as raised:
        nn.Sequential(ours).load_state_dict({f"0.{name}": tensor for name, tensor in given.items()}, strict=False)
    said = [line.split()[3].rstrip(":") for line in str(raised.value).splitlines() if "size mismatch" in line]
    assert said == [f"0.{name}" for name in wrong]
    kind = "bias" if wrong[0].endswith("bias") else "weight"
    kept = [name for name in before if name.endswith(kind) and name != "out_proj.weight"]
    assert kept and all(torch.equal(ours.get_parameter(name), before[name]) for name in kept)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_kv_heads": 1}, "nn.MultiheadAttention has no n_kv_heads; this module has"),
        ({"qk_norm": True, "sinks": True, "gate": True}, "has no qk_norm, no sinks, no gate; this module has"),
        ({"d_head": 6}, "has no d_head"),
    ],
)
def test_words(options, words):
    with pytest.raises(ValueError, match=words):
        loom.MultiheadFlexAttention(D, D, HEADS, **options).state_dict_as("torch")
    with pytest.raises(ValueError, match='names is "llama" or "torch"; got \'jax\''):
        loom.MultiheadFlexAttention(D, D, HEADS).state_dict_as("jax")
    with pytest.raises(ValueError, match="has no d_in other than d_out"):
        loom.MultiheadFlexAttention(D + 1, D, HEADS).state_dict_as("torch")
