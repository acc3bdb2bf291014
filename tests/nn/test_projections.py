"""Every constructor option of MultiheadFlexAttention, against the same written out by hand; and where parameters come from."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint

import maskloom as loom

B, L, K, D_IN, D_OUT, HEADS, KV_HEADS, D_HEAD, D_CONTEXT = 3, 7, 11, 13, 20, 4, 2, 6, 17
LENS, KV_LENS = torch.tensor([5, 0, 7]), torch.tensor([3, 11, 2])


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(*, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = loom.MultiheadFlexAttention(D_IN, D_OUT, HEADS, dtype=torch.float64, **options)
        for parameter in module.parameters():  # none at 0 or 1, where a mistake would not show
            torch.nn.init.normal_(parameter, std=0.4)
    return module


def turned(x, positions, base=10000.0):
    half = x.shape[-1] // 2
    angles = (positions[:, None] * base ** (-torch.arange(half) / half)).to(torch.float32)
    cos, sin = angles.cos().double(), angles.sin().double()
    return torch.cat([x[..., :half] * cos - x[..., half:] * sin, x[..., half:] * cos + x[..., :half] * sin], -1)


def by_hand(module, x, context, table, *, q_positions=None, score=lambda score: score):
    """One head after another; keys and values of a group by their number."""
    state, heads, width = module.state_dict(), module.n_heads, module.d_head
    kv_heads, source = module.n_kv_heads, x if context is None else context
    fused = state.get("in_proj.weight")
    if fused is None:
        weights = [state["q_proj.weight"], *state["kv_proj.weight"].chunk(2)]
        biases = [
            state.get("q_proj.bias"),
            *(state["kv_proj.bias"].chunk(2) if "kv_proj.bias" in state else (None,) * 2),
        ]
    else:
        rows = [heads * width, kv_heads * width, kv_heads * width]
        weights, bias = fused.split(rows), state.get("in_proj.bias")
        biases = bias.split(rows) if bias is not None else (None,) * 3
    q, k, v = (F.linear(given, w, b) for given, w, b in zip((x, source, source), weights, biases, strict=True))
    outs, probabilities = [], []
    for h in range(heads):
        group = h // (heads // kv_heads)
        query, key, value = (t[..., g * width : (g + 1) * width] for t, g in ((q, h), (k, group), (v, group)))
        if "q_norm.weight" in state:
            query = query / (query.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state["q_norm.weight"]
            key = key / (key.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * state["k_norm.weight"]
        if module.rotary is not None:
            query = turned(query, torch.arange(x.shape[1]) if q_positions is None else q_positions)
            key = turned(key, torch.arange(source.shape[1]))
        scores = score(query @ key.mT / width**0.5)
        scores = scores.masked_fill(~table, -float("inf"))
        if "sinks" in state:
            scores = torch.cat([scores, state["sinks"][h].expand(*scores.shape[:-1], 1)], -1)
        weight = scores.softmax(-1).nan_to_num(0.0)[..., : key.shape[1]]
        probabilities.append(weight)
        outs.append(weight @ value)
    found = torch.cat(outs, -1)
    if "gate_proj.weight" in state:
        found = found * torch.sigmoid(F.linear(x, state["gate_proj.weight"], state.get("gate_proj.bias")))
    return F.linear(found, state["out_proj.weight"], state.get("out_proj.bias")), torch.stack(probabilities, 1)


def rotary():
    return loom.nn.Rotary(D_HEAD)


OPTIONS = {
    "plain": {},
    "bias": {"bias": True},
    "no out bias": {"out_bias": False},
    "grouped": {"n_kv_heads": KV_HEADS},
    "one key head": {"n_kv_heads": 1, "bias": True},
    "d_head": {"d_head": D_HEAD},
    "norm": {"qk_norm": True},
    "sinks": {"sinks": True},
    "gate": {"gate": True},
    "gate, bias": {"gate": True, "bias": True},
    "context": {"d_context": D_CONTEXT, "bias": True},
    "rotary": {"d_head": D_HEAD, "rotary": rotary()},
    "all": {
        "n_kv_heads": KV_HEADS, "d_head": D_HEAD, "qk_norm": True, "sinks": True, "gate": True, "rotary": rotary(),
        "bias": True,
    },
    "all, context": {
        "n_kv_heads": KV_HEADS, "d_head": D_HEAD, "qk_norm": True, "sinks": True, "gate": True, "rotary": rotary(),
        "d_context": D_CONTEXT,
    },
}  # fmt: skip


@pytest.mark.parametrize("crossed", [False, True])
@pytest.mark.parametrize("name", OPTIONS)
def test_each_option_is_its_formula(name, crossed):
    """Self-attention, and attention to a context, padded on both sides; every padding full of NaN."""
    module, width = made(**OPTIONS[name]), OPTIONS[name].get("d_context", D_IN)
    if not crossed and width != D_IN:
        with pytest.raises(ValueError, match="attends to a context with d_context=17 features: give context="):
            module(sample(B, L, D_IN))
        return
    x, context = sample(B, L, D_IN), sample(B, K, width, seed=1) if crossed else None
    mask = loom.lengths(LENS, KV_LENS) if crossed else loom.causal & loom.lengths(LENS)
    table = mask.dense(L, K if crossed else L)[:, 0]
    expected, probabilities = by_hand(module, x, context, table)
    x[loom.batches.pads_from_lengths(LENS, L)] = float("nan")
    if crossed:
        context[loom.batches.pads_from_lengths(KV_LENS, K)] = float("nan")
    x.requires_grad_()
    found = module(x, mask, context=context, need_weights=True)
    real = ~loom.batches.pads_from_lengths(LENS, L)
    torch.testing.assert_close(found.out[real], expected[real])
    torch.testing.assert_close(found.weights.transpose(1, 2)[real], probabilities.transpose(1, 2)[real])
    assert torch.equal(found.weights.any(1), table)
    assert found.queries.shape == (B, HEADS, L, module.d_head)
    assert found.keys.shape == (B, module.n_kv_heads, K if crossed else L, module.d_head)
    found.out[real].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in (x, *module.parameters()))
    mean = module(x, mask, context=context, need_weights="mean")
    torch.testing.assert_close(mean.weights, found.weights.mean(1))
    assert len(module(x, mask, context=context)) == 3


def test_softcap_comes_before_a_score_mod():
    module, x = made(softcap=0.7), sample(B, L, D_IN)
    table = torch.ones(L, L, dtype=torch.bool)
    for score_mod, add in (
        (None, 0.0),
        (lambda score, b, h, q, k: score + q - k, torch.arange(L)[:, None] - torch.arange(L)),
    ):
        expected, weights = by_hand(
            module, x, None, table, score=lambda score, add=add: 0.7 * torch.tanh(score / 0.7) + add
        )
        found = module(x, score_mod=score_mod, need_weights=True)
        torch.testing.assert_close(found.out, expected)
        torch.testing.assert_close(found.weights, weights)


def test_rotary_goes_by_positions():
    module, x = made(d_head=D_HEAD, rotary=rotary()), sample(B, L, D_IN)
    packed = torch.tensor([0, 1, 2, 0, 1, 2, 3])
    out = module(x, loom.documents(position_ids=packed) & loom.causal, positions=packed).out
    for part in (slice(0, 3), slice(3, L)):
        torch.testing.assert_close(out[:, part], module(x[:, part], loom.causal).out)
    left = torch.arange(L) - torch.tensor([[2], [0], [5]])  # padding on the left
    out = module(x, loom.padding(left < 0) & loom.causal, positions=left).out
    for b, pads in enumerate((2, 0, 5)):
        torch.testing.assert_close(out[b, pads:], module(x[b : b + 1, pads:], loom.causal).out[0])


def test_rotary_goes_by_offsets_and_pairs():
    module, x, context = made(d_head=D_HEAD, rotary=rotary()), sample(B, L, D_IN), sample(B, K, D_IN, seed=1)
    table = loom.causal.dense(L, K, q_offset=4)[0, 0]
    expected, _ = by_hand(module, x, context, table, q_positions=torch.arange(4, 4 + L))
    for q_offset in (4, torch.tensor(4), torch.full((B,), 4)):
        torch.testing.assert_close(module(x, loom.causal, context=context, q_offset=q_offset).out, expected)
    pair = torch.arange(4, 4 + L), None
    torch.testing.assert_close(module(x, table, context=context, positions=pair).out, expected)


def test_dynamic_scaling_turns_both_sides_alike():
    scaling = {"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 5}
    module = made(d_head=D_HEAD, rotary=loom.nn.Rotary(D_HEAD, scaling=scaling))
    x, context = sample(B, 3, D_IN), sample(B, K, D_IN, seed=1)
    queries = module(x, context=context).queries
    torch.testing.assert_close(queries, module(torch.cat([x, context[:, 3:]], 1)).queries[:, :, :3])


@pytest.mark.parametrize("name", ["all", "all, context"])
def test_where_it_works(name):
    """Autocast, torch.compile for many lengths, activation checkpointing, deepcopy, the meta device."""
    module, width = made(**OPTIONS[name]).float(), OPTIONS[name].get("d_context", D_IN)
    torch._dynamo.reset()
    counter = CompileCounter()
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=True)
    for length in (7, 5, 3):
        x, context = (
            sample(B, length, D_IN).float(),
            sample(B, K, width).float() if "d_context" in OPTIONS[name] else None,
        )
        mask = loom.lengths(LENS.clamp(max=length), KV_LENS) if context is not None else loom.causal
        expected = module(x, mask, context=context).out
        torch.testing.assert_close(compiled(x, mask, context=context).out, expected)
        with torch.autocast("cpu", torch.bfloat16):
            half = module(x, mask, context=context, need_weights=True)
            assert {tensor.dtype for tensor in half} == {torch.bfloat16}
        assert (half.out - expected).norm() / expected.norm() < 0.05
        twin = copy.deepcopy(module)
        again = checkpoint(lambda x, m=mask, c=context: twin(x, m, context=c).out, x, use_reentrant=False)
        torch.testing.assert_close(again, expected)
    assert counter.frame_count == 1
    again.sum().backward()
    module(x, mask, context=context).out.sum().backward()
    for one, other in zip(module.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("name", OPTIONS)
def test_it_is_made_on_the_meta_device(name):
    with torch.device("meta"):
        module = made(**OPTIONS[name])
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}
    source, context = made(**OPTIONS[name]), sample(B, K, OPTIONS[name].get("d_context", D_IN))
    filled = copy.deepcopy(module).to_empty(device="cpu")
    filled.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in filled.parameters())
    filled.load_state_dict(source.state_dict())
    module.load_state_dict(source.state_dict(), assign=True)
    x = sample(B, L, D_IN)
    for loaded in (filled, module):
        assert torch.equal(loaded(x, context=context).out, source(x, context=context).out)


def test_it_prints_what_was_given():
    text = repr(made(**OPTIONS["all, context"] | {"softcap": 5.0, "out_bias": False}))
    assert "bias=False, n_kv_heads=2, d_head=6, d_context=17, out_bias=False, sinks=True, softcap=5.0" in text
    assert "(rotary): Rotary(6, base=10000" in text
    assert repr(made()).startswith("MultiheadFlexAttention(\n  d_in=13, d_out=20, n_heads=4, bias=False\n")


def test_options_together():
    """All pairs of options make a module whose weights sum up to what they should."""
    choices = [
        {"n_kv_heads": 2},
        {"qk_norm": True},
        {"sinks": True},
        {"gate": True},
        {"softcap": 3.0},
        {"d_head": D_HEAD},
    ]
    x, table = sample(B, L, D_IN), loom.causal.dense(L, L)[0, 0]
    for one, other in itertools.combinations(choices, 2):
        module = made(**one, **other)
        cap = (lambda s: 3.0 * torch.tanh(s / 3.0)) if module.softcap is not None else (lambda s: s)
        torch.testing.assert_close(module(x, loom.causal).out, by_hand(module, x, None, table, score=cap)[0])


class Exported(torch.nn.Module):
    def __init__(self):
        super().__init__()
        # on torch 2.11 grouped heads on the reference, where sinks and score mods run, cannot be exported with dynamic lengths
        self.own, self.crossed = made(**OPTIONS["all"] | {"sinks": False}), made(**OPTIONS["context"], sinks=True)
        self.narrow = torch.nn.Linear(D_OUT, D_IN, dtype=torch.float64)

    def forward(self, x, lens, context):
        x = self.narrow(self.own(x, loom.causal & loom.lengths(lens)).out)
        found = self.crossed(x, loom.lengths(lens, lens), context=context, need_weights=True)
        return found.out, found.weights


def test_it_is_exported_for_any_batch_and_length():
    module = Exported()
    batch, length = torch.export.Dim("batch", min=2, max=13), torch.export.Dim("length", min=2, max=64)
    given = sample(B, L, D_IN), LENS, sample(B, L, D_CONTEXT)
    shapes = ({0: batch, 1: length}, {0: batch}, {0: batch, 1: length})
    program = torch.export.export(module, given, dynamic_shapes=shapes, strict=False)
    other = sample(5, 11, D_IN), torch.tensor([5, 7, 2, 11, 1]), sample(5, 11, D_CONTEXT)
    torch.testing.assert_close(program.module()(*other), module(*other))
