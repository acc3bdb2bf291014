"""Whole models that write text with a cache: each step is the whole row's, and each row is as it is alone."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

import maskloom as loom

B, T, D, HEADS, KV_HEADS, D_HEAD, WORDS, PAD = 3, 17, 20, 4, 2, 6, 29, 0
PROMPTS = [7, 11, 2]


class Block(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.norm, self.norm2 = nn.RMSNorm(D), nn.RMSNorm(D)
        self.attention = loom.MultiheadFlexAttention(
            D, D, HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, rotary=loom.nn.Rotary(D_HEAD), **options
        )
        self.mlp = nn.Sequential(nn.Linear(D, 2 * D), nn.GELU(), nn.Linear(2 * D, D))

    def forward(self, x, mask, **options):
        x = x + self.attention(self.norm(x), mask, **options).out
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    """A small decoder; the embedding of its padding token is NaN."""

    def __init__(self, depth=2, **options):
        super().__init__()
        self.embedding, self.head = nn.Embedding(WORDS, D), nn.Linear(D, WORDS)
        self.blocks = nn.ModuleList(Block(**options) for _ in range(depth))
        with torch.no_grad():
            self.embedding.weight[PAD] = float("nan")

    def forward(self, tokens, mask, *, caches=None, **options):
        x = self.embedding(tokens)
        for number, block in enumerate(self.blocks):
            x = block(x, mask, cache=None if caches is None else caches[number], **options)
        return self.head(x)

    def caches(self, size=2 * T, **options):
        dtype = self.head.weight.dtype
        return [loom.nn.KVCache(B, KV_HEADS, size, D_HEAD, dtype=dtype, **options) for _ in self.blocks]


def made(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Model(**options).double().requires_grad_(False)


TOKENS = torch.randint(1, WORDS, (B, T), generator=torch.Generator().manual_seed(1))
FORMS = {
    "static": ({}, loom.causal),
    "growing": ({"size": 5, "grow": True}, loom.causal),
    "rolling": ({"size": 4, "window": 4}, loom.causal & loom.window(back=3)),
    "rolling, with room": ({"size": 9, "window": 4}, loom.causal & loom.window(back=3)),
}
OPTIONS = {"plain": {}, "all": {"qk_norm": True, "sinks": True, "gate": True, "softcap": 4.0, "bias": True}}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("counts", [[1] * T, [9, 1, 1, 4, 2], [T]], ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_decoding_is_the_whole_at_every_position(form, counts, options):
    model, (sizes, mask) = made(**OPTIONS[options]), FORMS[form]
    expected, caches, start = model(TOKENS, mask), model.caches(**sizes), 0
    for count in counts:
        now = slice(start, start := start + count)
        torch.testing.assert_close(model(TOKENS[:, now], loom.causal, caches=caches), expected[:, now])


def padded(side, width):
    """Prompts of unequal length, and where their padding is."""
    pads = loom.batches.pads_from_lengths(torch.tensor(PROMPTS), width)
    pads = pads.flip(1) if side == "left" else pads
    tokens = torch.full((B, width), PAD)
    for b, length in enumerate(PROMPTS):
        tokens[b, ~pads[b]] = TOKENS[b, :length]
    return tokens, pads


def alone(model, mask, steps):
    """What each prompt goes on with by itself, without a cache."""
    rows = []
    for b, length in enumerate(PROMPTS):
        row = TOKENS[b : b + 1, :length]
        for _ in range(steps):
            row = torch.cat([row, model(row, mask)[:, -1:].argmax(-1)], 1)
        rows.append(row[0, length:].tolist())
    return rows


@pytest.mark.parametrize(
    ("side", "chunks"),
    [("lengths", [13]), ("left", [13]), ("right", [13]), ("left", [4, 6, 3]), ("right", [4, 6, 3])],
    ids=str,
)
@pytest.mark.parametrize("form", FORMS)
def test_greedy_generation_gives_each_prompt_its_own_tokens(form, side, chunks):
    model, (sizes, mask) = made(), FORMS[form]
    tokens, pads = padded(side, 13)
    caches = model.caches(**sizes, **({"lengths": PROMPTS} if side == "lengths" else {}))
    last, start = torch.empty(B, WORDS, dtype=torch.float64), 0
    for count in chunks:
        now = slice(start, start := start + count)
        given = {} if side == "lengths" else {"pads": pads[:, now]}
        logits = model(tokens[:, now], loom.causal, caches=caches, **given)
        for b in range(B):
            real = (~pads[b, now]).nonzero()
            if len(real):
                last[b] = logits[b, int(real[-1])]
    found = []
    for _ in range(7):
        found.append(last.argmax(-1, keepdim=True))
        last = model(found[-1], loom.causal, caches=caches)[:, 0]
    assert torch.cat(found, 1).tolist() == alone(model, mask, 7)


def test_rows_that_have_ended_take_no_more():
    model = made()
    caches = model.caches()
    model(TOKENS[:, :5], loom.causal, caches=caches)
    for step in range(5, 9):
        ended = torch.tensor([[False], [step >= 6], [True]])
        tokens = TOKENS[:, step : step + 1].masked_fill(ended, PAD)
        model(tokens, loom.causal, caches=caches, pads=ended)
    assert [cache.lengths.tolist() for cache in caches] == [[9, 6, 5]] * 2
    assert all(cache.keys.isfinite().all() and cache.values.isfinite().all() for cache in caches)
    expected = model(TOKENS[:, :10], loom.causal)
    torch.testing.assert_close(model(TOKENS[:, 9:10], loom.causal, caches=caches)[:1], expected[:1, 9:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_nan_in_padding_stays_there(side):
    """Through a whole model, without a cache: each row is as it is alone, and so are attention's gradients.

    (The layers between pass NaN back at padding: ``clean_padding`` stops it.)
    """
    model = made().requires_grad_()
    tokens, pads = padded(side, 13)
    positions = (~pads).cumsum(1) - 1
    logits = model(tokens, loom.causal & loom.padding(pads), positions=positions, clean_padding=True)
    for b, length in enumerate(PROMPTS):
        torch.testing.assert_close(logits[b, ~pads[b]], model(TOKENS[b : b + 1, :length], loom.causal)[0])
    logits[~pads].sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grads[name].isfinite().all() for name in grads if "attention" in name)
    model.zero_grad()
    sum(model(TOKENS[b : b + 1, :n], loom.causal).sum() for b, n in enumerate(PROMPTS)).backward()
    for name, parameter in model.named_parameters():
        if "attention" in name:
            torch.testing.assert_close(grads[name], parameter.grad)


@pytest.mark.parametrize("form", ["static", "rolling, with room"])
def test_one_graph_for_all_steps(form):
    model, (sizes, mask) = made(depth=1), FORMS[form]
    expected, caches, counter = model(TOKENS, mask), model.caches(**sizes), CompileCounter()
    model(TOKENS[:, :5], loom.causal, caches=caches)
    torch._dynamo.reset()
    step = torch.compile(model, backend=counter, fullgraph=True)
    for at in range(5, T):
        out = step(TOKENS[:, at : at + 1], loom.causal, caches=caches)
        torch.testing.assert_close(out, expected[:, at : at + 1])
    assert counter.frame_count <= 2  # torch makes a number dynamic at its second value


def test_a_score_mod_and_weights_speak_of_true_positions():
    attention, alibi = made().blocks[0].attention, loom.scores.alibi(HEADS)
    x = torch.randn(B, T, D, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = attention(x, loom.causal, score_mod=alibi, need_weights=True)
    cache = made().caches()[0]
    for now in (slice(0, 9), slice(9, 10), slice(10, T)):
        part = attention(x[:, now], loom.causal, cache=cache, score_mod=alibi, need_weights=True)
        torch.testing.assert_close(part.out, whole.out[:, now])
        torch.testing.assert_close(part.queries, whole.queries[:, :, now])
        torch.testing.assert_close(part.keys, whole.keys[:, :, now])
        torch.testing.assert_close(part.weights[..., : now.stop], whole.weights[:, :, now, : now.stop])
        assert not part.weights[..., now.stop :].any()


def test_rotary_that_grows_with_the_row():
    """Dynamic NTK: keys in the cache stay as they were turned; new tokens are turned by the row as it is now."""
    rotary = loom.nn.Rotary(D_HEAD, scaling={"rope_type": "dynamic", "factor": 3.0, "max_position_embeddings": 8})
    attention = loom.MultiheadFlexAttention(D, D, HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, rotary=rotary).double()
    x, cache = torch.randn(B, T, D, dtype=torch.float64), made().caches()[0]
    with torch.no_grad():
        attention(x[:, :5], loom.causal, cache=cache)
        for at in range(5, T):
            keys = attention(x[:, at : at + 1], loom.causal, cache=cache).keys
            plain = attention(x[:, : at + 1], loom.causal).keys
            torch.testing.assert_close(keys[:, :, 0], plain[:, :, at])


ATTENTION = made().blocks[0].attention
X = torch.zeros(B, 5, D, dtype=torch.float64)


def cached(**options):
    return lambda: ATTENTION(X, **{"block_mask": loom.causal, "cache": made().caches()[0], **options})


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (cached(positions=torch.arange(5)), ValueError, "with a cache the module knows the positions itself: give no pos"),
        (cached(q_offset=3), ValueError, "with a cache the module knows the positions itself: give no q_offset"),
        (cached(context=X), ValueError, "give context or cache, not both"),
        (cached(block_mask=loom.block_mask(loom.causal, 5, 5)), TypeError, "true positions, .* got a BlockMask, of fixed"),
        (cached(block_mask=torch.ones(5, 5, dtype=torch.bool)), TypeError, "got a Tensor, of fixed lengths"),
        (cached(block_mask=3), TypeError, "a mask is a function"),
        (cached(cache=[]), TypeError, r"cache is a maskloom.nn.KVCache; got \[\]"),
        (cached(pads=torch.zeros(B, 4, dtype=torch.bool)), ValueError, r"pads has shape \(B, L\) = \(3, 5\)"),
        (cached(cache=None, pads=torch.zeros(B, 5, dtype=torch.bool)), ValueError, "pads are for a cache; without one"),
        (cached(cache=loom.nn.KVCache(B, 4, T, D_HEAD)), ValueError, r"keys of this cache are \(3, 4, L, 6\); got \(3, 2, 5, 6\)"),
        (cached(cache=loom.nn.KVCache(B, KV_HEADS, T, D_HEAD)), ValueError, "the cache is torch.float32 and keys torch.float64"),
        (cached(cache=None, need_weights="all"), ValueError, "need_weights is True, False or \"mean\"; got 'all'"),
        (cached(cache=None, context=X[:2]), ValueError, r"context has shape \(batch, length, 20\), .* got \(2, 5, 20\)"),
        (
            lambda: loom.MultiheadFlexAttention(4, 4, 2)(torch.zeros(1, 3, 4), positions=torch.arange(3)),
            ValueError,
            "positions are for rotary, and this module has none",
        ),
        (
            lambda: loom.MultiheadFlexAttention(4, 4, 2, sinks=True)(torch.zeros(1, 3, 4), sinks=torch.zeros(2)),
            ValueError,
            "this module has sinks of its own: give no sinks=",
        ),
        (lambda: loom.MultiheadFlexAttention(4, 6, 3, n_kv_heads=2), ValueError, "n_heads=3 and n_kv_heads=2"),
        (lambda: loom.MultiheadFlexAttention(4, 6, 3, d_context=0), ValueError, "d_context is an int, at least 1; got 0"),
        (lambda: loom.MultiheadFlexAttention(4, 6, 3, rotary=True), TypeError, "rotary is a maskloom.nn.Rotary; got True"),
        (
            lambda: loom.MultiheadFlexAttention(4, 6, 3, rotary=loom.nn.Rotary(4)),
            ValueError,
            "rotary is for heads of 4 features; these have 2",
        ),
        (lambda: loom.MultiheadFlexAttention(4, 6, 3, softcap=0.0), ValueError, "softcap is the greatest size of a score"),
    ],
)  # fmt: skip
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_is_refused_changes_no_cache():
    cache = made().caches()[0]
    for options in ({"block_mask": 3}, {"score_mod": 3}, {"drop": 0.1}, {"dropout": "some"}):
        with pytest.raises(TypeError):
            ATTENTION(X, **{"block_mask": loom.causal, "cache": cache, **options})
    assert not cache.lengths.any()
