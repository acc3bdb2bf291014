"""KVCache: attention to it is attention to all tokens at once, for every form, padding and division into steps."""

import copy
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

import maskloom as loom

B, H, HKV, D, E, T = 3, 4, 2, 5, 7, 17
LENS = [11, 17, 4]


def sample(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


Q, K, V = sample(B, H, T, D), sample(B, HKV, T, D, seed=1), sample(B, HKV, T, E, seed=2)


def made(size=T, **options):
    return loom.nn.KVCache(B, HKV, size, D, d_value=E, dtype=torch.float64, **options)


FORMS = {
    "static": {},
    "growing": {"size": 3, "grow": True},
    "rolling": {"size": 4, "window": 4},
    "rolling, with room": {"size": 7, "window": 4},
    "rolling, one key": {"size": 1, "window": 1},
}


def whole_of(form, user=loom.causal):
    """Attention to all tokens at once, written out, under the window of this form."""
    window = FORMS[form].get("window")
    mask = user if window is None else user & loom.window(back=window - 1)
    return loom.reference(Q, K, V, mask)[0]


def steps_of(*counts):
    starts = [sum(counts[:place]) for place in range(len(counts))]
    return [slice(start, start + count) for start, count in zip(starts, counts, strict=True)]


DIVISIONS = {
    "one by one": [1] * T,
    "prompt, then one by one": [9] + [1] * 8,
    "chunks": [5, 1, 4, 2, 1, 4],
    "at once": [T],
}


@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("form", FORMS)
def test_each_step_is_rows_of_the_whole(form, division):
    cache, expected = made(**FORMS[form]), whole_of(form)
    for now in steps_of(*DIVISIONS[division]):
        keys, values, mask = cache.append(K[:, :, now], V[:, :, now])
        out = loom.attend(Q[:, :, now], keys, values, loom.causal & mask)
        torch.testing.assert_close(out, expected[:, :, now])
    assert cache.lengths.tolist() == [T] * B
    assert cache.longest == T


def padded(pads):
    """The tokens of each row at the places that ``pads`` leaves free, NaN at the others: queries, keys, values."""
    found = []
    for tensor in (Q, K, V):
        rows = tensor.new_full((*tensor.shape[:2], pads.shape[1], tensor.shape[3]), float("nan"))
        for b in range(B):
            rows[b, :, ~pads[b]] = tensor[b, :, : int((~pads[b]).sum())]
        found.append(rows)
    return found


def pads_of(side, width=T + 2):
    pads = loom.batches.pads_from_lengths(torch.tensor(LENS), width)
    if side == "left":
        return pads.flip(1)
    if side == "anywhere":
        return torch.stack([row[torch.randperm(width, generator=torch.Generator().manual_seed(3))] for row in pads])
    return pads


@pytest.mark.parametrize("counts", [[T + 2], [3, 7, 1, 8], [1] * (T + 2)], ids=str)
@pytest.mark.parametrize("side", ["left", "right", "anywhere"])
@pytest.mark.parametrize("form", FORMS)
def test_padding_is_nowhere(form, side, counts):
    """NaN in padding too: each row is as it is alone, in any division, and its padding sees nothing."""
    pads = pads_of(side)
    q, k, v = padded(pads)
    cache, expected = made(**FORMS[form]), whole_of(form)
    outs = []
    for now in steps_of(*counts):
        keys, values, mask = cache.append(k[:, :, now], v[:, :, now], pads=pads[:, now])
        clean = q[:, :, now].masked_fill(pads[:, None, now, None], 0.0)
        outs.append(loom.attend(clean, keys, values, loom.causal & mask))
    out = torch.cat(outs, 2)
    for b, length in enumerate(LENS):
        torch.testing.assert_close(out[b, :, ~pads[b]], expected[b, :, :length])
        assert not out[b, :, pads[b]].any()
    assert cache.lengths.tolist() == LENS
    assert cache.keys.isfinite().all() and cache.values.isfinite().all()


@pytest.mark.parametrize("form", FORMS)
def test_lengths_are_those_of_a_prompt(form):
    prompts, width = [7, 9, 2], 11
    cache, expected = made(**FORMS[form], lengths=prompts), whole_of(form)
    q, k, v = (tensor[:, :, :width].clone() for tensor in (Q, K, V))
    for b, length in enumerate(prompts):
        k[b, :, length:], v[b, :, length:] = float("nan"), float("inf")
    keys, values, mask = cache.append(k, v)
    out = loom.attend(q, keys, values, loom.causal & mask)
    for b, length in enumerate(prompts):
        torch.testing.assert_close(out[b, :, :length], expected[b, :, :length])
        assert not out[b, :, length:].any()
    for step in range(4):
        at = cache.lengths.clone()
        assert at.tolist() == [length + step for length in prompts]
        now = [tensor[torch.arange(B), :, at][:, :, None] for tensor in (Q, K, V)]
        keys, values, mask = cache.append(*now[1:])
        out = loom.attend(now[0], keys, values, loom.causal & mask)
        torch.testing.assert_close(out[:, :, 0], expected[torch.arange(B), :, at])
    assert cache.longest == 13


@given(st.lists(st.integers(1, 6), min_size=1, max_size=9), st.integers(1, 5), st.integers(0, 4), st.randoms())
def test_any_window_division_and_padding(counts, window, room, random):
    width = sum(counts)
    pads = torch.tensor([[random.random() < 0.3 for _ in range(width)] for _ in range(B)])
    q, k, v = (sample(B, heads, width, size, seed=9) for heads, size in ((H, D), (HKV, D), (HKV, E)))
    cache = made(window + room, window=window)
    table = loom.causal.dense(width, width) & ~pads[:, None, None] & ~pads[:, None, :, None]
    rank = (~pads).cumsum(1)
    table &= (rank[:, None, :, None] - rank[:, None, None, :]) < window
    expected = loom.reference(q, k, v, table)[0]
    for now in steps_of(*counts):
        keys, values, mask = cache.append(k[:, :, now], v[:, :, now], pads=pads[:, now])
        out = loom.attend(q[:, :, now], keys, values, loom.causal & mask)
        torch.testing.assert_close(out, expected[:, :, now])


MASKS = {
    "window": loom.window(back=3),
    "sinks": (loom.window(back=2) | loom.sinks(2)) & loom.causal,
    "not": ~loom.window(back=1) & loom.causal | loom.masks.chunked(4) & loom.causal,
    "padding": loom.causal & loom.padding(torch.rand(B, T, generator=torch.Generator().manual_seed(4)) < 0.3),
    "documents": loom.documents(torch.arange(T) // 5) & loom.causal,
    "prefix": loom.causal | loom.prefix(torch.tensor([3, 0, 5])),
    "per head": loom.masks.per_head([loom.causal, loom.window(back=2), loom.causal, loom.window(back=0)]),
    "function": loom.as_mask(lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (kv_idx % 3 != h % 2)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("form", ["static", "growing", "rolling, with room"])
def test_other_masks_speak_of_true_positions(form, name):
    """Tables of positions too, which are shorter than the slots."""
    cache, user = made(**FORMS[form] | ({"size": T + 6} if form == "static" else {})), MASKS[name] & loom.causal
    expected = whole_of(form, user)
    for now in steps_of(5, 1, 1, 6, 4):
        keys, values, mask = cache.append(K[:, :, now], V[:, :, now])
        out = loom.attend(Q[:, :, now], keys, values, user & mask)
        torch.testing.assert_close(out, expected[:, :, now])
        blocks = loom.block_mask(mask & user, now.stop - now.start, keys.shape[2], batch=B, heads=H, block_size=4)
        torch.testing.assert_close(loom.attend(Q[:, :, now], keys, values, blocks), out)


@pytest.mark.parametrize("form", ["static", "rolling, with room"])
def test_a_score_mod_speaks_of_true_positions(form):
    cache, alibi = made(**FORMS[form]), loom.scores.alibi(H)
    window = loom.window(back=FORMS[form].get("window", T) - 1)
    expected, _ = loom.reference(Q, K, V, window & loom.causal, score_mod=alibi)
    for now in steps_of(5, 1, 2, 9):
        keys, values, mask = cache.append(K[:, :, now], V[:, :, now])
        out = loom.attend(Q[:, :, now], keys, values, loom.causal & mask, score_mod=alibi)
        torch.testing.assert_close(out, expected[:, :, now])
        blocks = loom.block_mask(
            loom.causal & mask, now.stop - now.start, keys.shape[2], batch=B, heads=H, block_size=4
        )
        torch.testing.assert_close(loom.attend(Q[:, :, now], keys, values, blocks, score_mod=alibi), out)
        written_out, _ = loom.reference(Q[:, :, now], keys, values, loom.causal & mask, score_mod=alibi)
        torch.testing.assert_close(written_out, out)
        weights = loom.attention_weights(Q[:, :, now], keys, loom.causal & mask, score_mod=alibi)
        torch.testing.assert_close(weights @ values.repeat_interleave(H // HKV, 1), out)


@pytest.mark.parametrize("by", ["int", "rows"])
@pytest.mark.parametrize("form", ["static", "growing", "rolling, with room"])
def test_tokens_taken_back_leave_no_trace(form, by):
    """Drafts with NaN in them, of which some rows accept more than others."""
    cache, expected = made(**FORMS[form]), whole_of(form)
    cache.append(K[:, :, :9], V[:, :, :9])
    draft = K[:, :, 9:12].clone(), V[:, :, 9:12].clone()
    draft[0][:, :, 2:], draft[1][:, :, 2:] = float("nan"), float("nan")
    cache.append(*draft)
    accepted = [10, 10, 10] if by == "int" else [11, 9, 10]
    cache.crop(10 if by == "int" else torch.tensor(accepted))
    assert cache.lengths.tolist() == accepted
    for _ in range(3):
        at = cache.lengths.clone()
        q, k, v = (tensor[torch.arange(B), :, at][:, :, None] for tensor in (Q, K, V))
        keys, values, mask = cache.append(k, v)
        out = loom.attend(q, keys, values, loom.causal & mask)
        torch.testing.assert_close(out[:, :, 0], expected[torch.arange(B), :, at])


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(0, 5)), min_size=1, max_size=8), st.integers(4, 9))
def test_a_rolling_cache_never_shows_what_it_has_lost(calls, room):
    """Tokens come and are taken back, in any order: it refuses, or gives the attention to all tokens that are left."""
    cache, keys, values = made(room, window=4), K[:, :, :0], V[:, :, :0]
    for step, (count, back) in enumerate(calls):
        q, k, v = (sample(B, heads, count, width, seed=step) for heads, width in ((H, D), (HKV, D), (HKV, E)))
        keys, values = torch.cat([keys, k], 2), torch.cat([values, v], 2)
        found, theirs, mask = cache.append(k, v)
        whole = loom.masks.shifted(loom.window(back=3), q_offset=keys.shape[2] - count)
        torch.testing.assert_close(
            loom.attend(q, found, theirs, loom.causal & mask),
            loom.reference(q, keys, values, whole & loom.masks.shifted(loom.causal, q_offset=keys.shape[2] - count))[0],
        )
        kept = max(0, keys.shape[2] - back)
        lengths = cache.lengths.clone()
        try:
            cache.crop(kept)
        except ValueError:
            assert torch.equal(cache.lengths, lengths)
        else:
            keys, values = keys[:, :, :kept], values[:, :, :kept]


def test_a_rolling_cache_counts_what_was_taken_back_before():
    cache = made(8, window=4)
    for at in range(T):
        cache.append(K[:, :, at : at + 1], V[:, :, at : at + 1])
    cache.crop(14)
    cache.crop(14)  # takes nothing back
    cache.reorder([2, 0, 0])
    with pytest.raises(ValueError, match="length=10 of rows that had 17 takes back 7"):
        cache.crop(10)
    cache.reset()
    cache.append(K[:, :, :8], V[:, :, :8])
    cache.crop(2)


@pytest.mark.parametrize("counts", [[9, 1], [3, 2], [1, 1], [4, 8], [9]])
@pytest.mark.parametrize("form", FORMS)
def test_a_refused_call_leaves_the_cache_as_it_was(form, counts):
    """The module's tokens are not in it: the same call without the fault gives what it would have given at first."""
    module = loom.MultiheadFlexAttention(6, 6, 3, dtype=torch.float64).requires_grad_(False)
    x = sample(2, sum(counts), 6)
    options = {"size": T} | FORMS[form]
    caches = [loom.nn.KVCache(2, 3, d_head=2, dtype=torch.float64, **options) for _ in range(2)]
    faults = [
        (loom.causal & loom.lengths([9, 9, 9]), {}),
        (loom.causal, {"sinks": torch.zeros(5)}),
        (loom.causal, {"score_mod": loom.scores.alibi(7)}),
        (loom.causal, {"backend": "flash"}),
        (lambda b, h, q, kv: 1 / 0, {}),
    ]
    for now in steps_of(*counts):
        for mask, wrong in faults:
            lengths = caches[0].lengths.clone()
            with pytest.raises((TypeError, ValueError, ZeroDivisionError)):
                module(x[:, now], mask, cache=caches[0], **wrong)
            assert torch.equal(caches[0].lengths, lengths) and caches[0].longest == caches[1].longest
        found, expected = (module(x[:, now], loom.causal, cache=cache).out for cache in caches)
        torch.testing.assert_close(found, expected)
    if caches[0].window is None:
        assert torch.equal(caches[0].keys, caches[1].keys)


def test_reset_refuses_before_it_empties():
    cache = made(lengths=[5, 2, 3])
    cache.append(K[:, :, :5], V[:, :, :5])
    keys = cache.keys.clone()
    with pytest.raises(ValueError, match="lengths has one for each of 3 batch rows; got 2"):
        cache.reset([1, 2])
    assert cache.lengths.tolist() == [5, 2, 3] and torch.equal(cache.keys, keys) and cache.longest == 5


def test_a_prompt_with_more_padding_than_slots():
    keys, _, _ = made(4, lengths=[3, 2, 4]).append(K[:, :, :7], V[:, :, :7])
    assert keys.shape[2] == 4


def test_cropped_slots_are_zeros():
    cache = made()
    cache.append(K, V)
    cache.crop(5)
    assert not cache.keys[:, :, 5:].any() and not cache.values[:, :, 5:].any()
    assert torch.equal(cache.keys[:, :, :5], K[:, :, :5])
    cache.crop(torch.tensor([2, 7, 0]))
    assert cache.lengths.tolist() == [2, 5, 0]
    assert [int(row.any(-1).sum()) for row in cache.keys[:, 0]] == [2, 5, 0]


@pytest.mark.parametrize("form", ["static", "rolling"])
def test_reordered_rows_are_those_of_their_beams(form):
    rows = torch.tensor([2, 0, 0])
    cache, expected = made(**FORMS[form], lengths=[5, 7, 3]), whole_of(form)
    cache.append(K[:, :, :7], V[:, :, :7])
    cache.reorder(rows)
    assert cache.lengths.tolist() == [3, 5, 5]
    at = cache.lengths.clone()
    q, k, v = (tensor[rows, :, at][:, :, None] for tensor in (Q, K, V))
    keys, values, mask = cache.append(k, v)
    torch.testing.assert_close(loom.attend(q, keys, values, loom.causal & mask)[:, :, 0], expected[rows, :, at])


def test_reset_is_a_new_cache():
    cache = made()
    cache.append(K * float("nan"), V)
    cache.reset(lengths=[5, 2, 3])
    assert not cache.keys.any() and not cache.values.any()
    cache.append(K[:, :, :5], V[:, :, :5])
    assert cache.lengths.tolist() == [5, 2, 3]
    assert cache.longest == 5
    twin = copy.deepcopy(cache)
    twin.append(K[:, :, :1], V[:, :, :1])
    assert cache.lengths.tolist() == [5, 2, 3] != twin.lengths.tolist()


@given(
    st.lists(st.sampled_from(["append", "append", "pads", "crop", "crop rows", "reorder", "reset"]), max_size=12),
    st.randoms(),
)
def test_the_host_counts_each_row(calls, random):
    """So nothing that fits is refused, however the rows differ in what they get and lose."""
    cache = made(40)
    for call in calls:
        width, rows = random.randint(1, 3), [random.randint(0, 9) for _ in range(B)]
        if call in ("append", "pads"):
            pads = torch.tensor([[random.random() < 0.5 for _ in range(width)] for _ in range(B)])
            cache.append(K[:, :, :width], V[:, :, :width], pads=pads if call == "pads" else None)
        elif call == "reorder":
            cache.reorder(random.choices(range(B), k=B))
        elif call == "reset":
            cache.reset(lengths=[min(row, width) for row in rows])
            cache.append(K[:, :, :width], V[:, :, :width])
        else:
            cache.crop(rows[0] if call == "crop" else random.choice([rows, torch.tensor(rows)]))
        assert cache.longest == int(cache.lengths.max())


def test_rows_that_end_and_drafts_that_are_taken_back_need_no_room():
    """The first row ends where the second goes on, step by step, with drafts of 3 tokens of which each row keeps its own number."""
    cache = made(13, lengths=[9, 4, 4])
    cache.append(K[:, :, :9], V[:, :, :9])
    ended = torch.tensor([[True], [False], [False]])
    for kept in ([9, 6, 5], [9, 7, 7], [9, 10, 8], [9, 10, 10]):
        cache.append(K[:, :, :3], V[:, :, :3], pads=ended.expand(-1, 3))
        cache.crop(torch.tensor(kept))
    assert cache.lengths.tolist() == [9, 10, 10]
    with pytest.raises(ValueError, match="the cache has 13 slots in each row, and rows may come to 14 tokens"):
        cache.append(K[:, :, :4], V[:, :, :4])


def test_one_graph_for_a_prompt_with_lengths():
    """The host knows how long the longest row is, in a graph too."""
    torch._dynamo.reset()
    eager, ours = made(13, lengths=[9, 4, 4]), made(13, lengths=[9, 4, 4])
    compiled = torch.compile(lambda k, v: ours.append(k, v)[:2], backend="eager", fullgraph=True)
    for width in (11, 1, 1):
        expected = eager.append(K[:, :, :width], V[:, :, :width])[:2]
        torch.testing.assert_close(compiled(K[:, :, :width], V[:, :, :width]), expected)
    assert ours.longest == eager.longest == 11


def test_a_rolling_cache_takes_back_by_row():
    """Two rows lose one token each; what the short row would still have does not count."""
    cache = made(6, window=4, lengths=[11, 5, 11])
    cache.append(K[:, :, :11], V[:, :, :11])
    cache.crop([10, 4, 9])
    assert cache.lengths.tolist() == [10, 4, 9]
    with pytest.raises(
        ValueError, match=r"take back size - window = 2 tokens; length=.* of rows that had 11 takes back 5"
    ):
        cache.crop([10, 4, 6])


def test_writes_into_what_was_given_are_not_seen():
    lens, k = torch.tensor([5, 2, 3]), K[:, :, :5].clone()
    cache = made(lengths=lens)
    lens.fill_(1)
    cache.append(k, V[:, :, :5])
    k.fill_(float("nan"))
    assert cache.lengths.tolist() == [5, 2, 3]
    assert cache.keys.isfinite().all()


def test_the_mask_of_a_step_stays_as_it_was():
    cache = made()
    *_, first = cache.append(K[:, :, :5], V[:, :, :5])
    before = (loom.causal & first).dense(5, T, batch=B)
    cache.append(K[:, :, 5:7], V[:, :, 5:7])
    assert torch.equal((loom.causal & first).dense(5, T, batch=B), before)


def test_gradients_stop_and_it_says_so():
    k = K[:, :, :5].clone().requires_grad_()
    with pytest.warns(UserWarning, match="a KVCache is for inference: no gradient passes"):
        keys, *_ = made().append(k, V[:, :, :5])
    assert not keys.requires_grad
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        made().append(k, V[:, :, :5])


def test_in_inference_mode_and_out_of_it():
    with torch.inference_mode():
        cache = made(size=5, grow=True)
        cache.append(K[:, :, :7], V[:, :, :7])
    cache.append(K[:, :, 7:9], V[:, :, 7:9])
    with torch.inference_mode():
        keys, values, mask = cache.append(K[:, :, 9:], V[:, :, 9:])
        torch.testing.assert_close(
            loom.attend(Q[:, :, 9:], keys, values, loom.causal & mask), whole_of("static")[:, :, 9:]
        )


def test_autocast_casts_to_the_cache():
    cache = loom.nn.KVCache(B, HKV, T, D)
    with torch.autocast("cpu", torch.bfloat16):
        keys, values, mask = cache.append(K[..., :5].bfloat16(), V[..., :5].bfloat16())
        assert keys.dtype == torch.float32
        assert loom.attend(Q.bfloat16(), keys, values, loom.causal & mask).dtype == torch.bfloat16


@pytest.mark.parametrize("form", ["static", "rolling, with room"])
def test_one_graph_for_all_steps(form):
    def step(cache, q, k, v):
        keys, values, mask = cache.append(k, v)
        return loom.attend(q, keys, values, loom.causal & mask)

    cache, expected, counter = made(**FORMS[form]), whole_of(form), CompileCounter()
    step(cache, Q[:, :, :3], K[:, :, :3], V[:, :, :3])
    torch._dynamo.reset()
    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for at in range(3, T):
        now = slice(at, at + 1)
        out = compiled(cache, Q[:, :, now], K[:, :, now], V[:, :, now])
        torch.testing.assert_close(out, expected[:, :, now])
    assert counter.frame_count <= 2  # torch makes a number dynamic at its second value


def test_it_prints_its_sizes():
    assert repr(made()) == "KVCache(3, 2, 17, 5, dtype=torch.float64, device='cpu')"
    assert repr(made(window=4)) == "KVCache(3, 2, 17, 5, window=4, dtype=torch.float64, device='cpu')"
    assert "grow=True" in repr(made(grow=True))


def appended(cache, k=None, v=None, **options):
    return cache.append(K[:, :, :5] if k is None else k, V[:, :, :5] if v is None else v, **options)


def appended_once():
    cache = made()
    appended(cache)
    return cache


def rolled():
    cache = made(7, window=4)
    cache.append(K, V)
    return cache


NO_PADS = torch.zeros(B, 5, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loom.nn.KVCache(0, HKV, T, D), ValueError, "batch is a number of batch rows, at least 1; got 0"),
        (lambda: loom.nn.KVCache(B, HKV, 2.0, D), TypeError, "size is a number of slots, an int; got float: 2.0"),
        (lambda: made(3, window=4), ValueError, "window is 4 keys, of as many slots at least; got size=3"),
        (lambda: made(grow="no"), TypeError, "grow is True or False; got 'no'"),
        (lambda: made(4, window=4, grow=True), ValueError, "a cache that grows keeps all keys"),
        (lambda: made(lengths=[5, 2]), ValueError, "lengths has one for each of 3 batch rows; got 2"),
        (lambda: made(lengths=[5, 2, -1]), ValueError, "lengths are numbers of positions, at least 0; got -1"),
        (lambda: appended(made(), K[0]), ValueError, r"keys of this cache are \(3, 2, L, 5\); got \(2, 17, 5\)"),
        (lambda: appended(made(), v=K[:, :, :5]), ValueError, r"values of this cache are \(3, 2, L, 7\); got \(3, 2, 5, 5\)"),
        (lambda: appended(made(), v=V), ValueError, "keys and values are of as many tokens; got 5 and 17"),
        (lambda: appended(made(), K[:, :, :0], V[:, :, :0]), ValueError, r"got \(3, 2, 0, 5\)"),
        (lambda: appended(made(), K[:, :, :5].float()), ValueError, "the cache is torch.float64 and keys torch.float32"),
        (lambda: appended(made(), "k"), TypeError, "keys is a tensor .* got str"),
        (lambda: appended(made(4)), ValueError, "the cache has 4 slots in each row, and rows may come to 5 tokens"),
        (lambda: appended(made(lengths=[9, 1, 1])), ValueError, "lengths go up to 9, and the first append has 5 tokens"),
        (lambda: appended(made(lengths=[5, 1, 1]), pads=NO_PADS), ValueError, "give pads or lengths, not both"),
        (lambda: appended(made(), pads=NO_PADS.long()), TypeError, "pads is a bool tensor, True = padding; got torch.int64"),
        (lambda: appended(made(), pads=NO_PADS[:, :4]), ValueError, r"pads has shape \(B, L\) = \(3, 5\) .* got \(3, 4\)"),
        (lambda: appended(made(), upcoming=made().upcoming(4)), ValueError, "upcoming is of 4 tokens, and there are keys of 5"),
        (lambda: appended(made(), upcoming=made().upcoming(5), pads=NO_PADS), ValueError, "give upcoming or pads, not both"),
        (
            lambda: appended(made(), upcoming=loom.nn.KVCache(1, HKV, T, D).upcoming(5)),
            ValueError, "upcoming is of 1 batch rows, and the cache of 3",
        ),
        (
            lambda: appended(appended_once(), upcoming=made().upcoming(5)),
            ValueError, "upcoming is of a cache whose rows have up to 0 tokens; those of this one have up to 5",
        ),
        (lambda: made().upcoming(-1), ValueError, "length is a number of tokens, at least 0; got -1"),
        (lambda: made().upcoming(1.5), TypeError, "length is a number of tokens, an int; got float: 1.5"),
        (lambda: loom.nn.KVCache(B, HKV, T, D, dtype=torch.int32), TypeError, "dtype is that of keys and values, floating point; got torch.int32"),
        (lambda: loom.nn.KVCache(B, HKV, T, D, device="foo"), ValueError, "device is one that torch has here; got 'foo'"),
        (lambda: made().crop(-1), ValueError, "length is a number of positions, at least 0; got -1"),
        (lambda: rolled().crop(13), ValueError, r"take back size - window = 3 tokens; length=13 of rows that had 17 takes back 4"),
        (lambda: made().reorder(torch.tensor([0, 3, 1])), ValueError, r"rows are 3 numbers of rows, 0 to 2; got \[0, 3, 1\]"),
        (lambda: made().reorder([0, -1, 1]), ValueError, r"rows are 3 numbers of rows, 0 to 2; got \[0, -1, 1\]"),
        (lambda: made().crop([5, 2]), ValueError, "length is an int, or one for each of 3 batch rows; got 2"),
        (lambda: made().reorder(torch.tensor([0])), ValueError, "rows are 3 numbers of rows"),
    ],
)  # fmt: skip
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_what_does_not_fit_changes_nothing():
    cache = made(4)
    with pytest.raises(ValueError, match="4 slots"):
        appended(cache)
    assert not cache.keys.any()
    assert cache.longest == 0
    cache.append(K[:, :, :4], V[:, :, :4])
    assert cache.lengths.tolist() == [4] * B


@pytest.mark.parametrize(
    "option",
    [
        {"scale": "3"},
        {"backend": "fastest"},
        {"dropout_seed": 0.5},
        {"dropout_seed": torch.tensor([1, 2])},
        {"dropout": 3},
    ],
)
def test_an_option_that_is_wrong_leaves_the_cache_as_it_was(option):
    attention = loom.MultiheadFlexAttention(6, 6, 3)
    cache = loom.nn.KVCache(2, 3, size=7, d_head=2)
    attention(torch.randn(2, 4, 6), loom.causal, cache=cache)
    with pytest.raises((TypeError, ValueError)):
        attention(torch.randn(2, 1, 6), loom.causal, cache=cache, **option)
    assert cache.lengths.tolist() == [4, 4]
