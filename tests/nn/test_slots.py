"""The mask of a cache: which element it shows, and how other masks and score mods are joined to it."""

import copy
import pickle

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks as torch_and

import maskloom as loom
from maskloom import testing
from maskloom.nn.slots import Slots

B, Q, K = 2, 3, 5
POSITIONS = torch.tensor([[-1, 6, 7], [2, 3, -1]])
WRITTEN = torch.tensor([8, 4])
HELD = torch.tensor([[-1, 4, 7, 5, 6], [0, 3, -2, 1, 2]])
KINDS = {
    "plain": Slots(loom.everything, POSITIONS, WRITTEN, None, None, None),
    "plain, window": Slots(loom.everything, POSITIONS, WRITTEN, None, None, 2),
    "ring": Slots(loom.everything, POSITIONS, WRITTEN, None, K, 3),
    "table": Slots(loom.everything, POSITIONS, WRITTEN, HELD, None, 3),
}


def held_by(slots, b, slot):
    """The position in a slot, by going through all that was written; None if there is none."""
    if slots.kv_positions is not None:
        return None if (at := int(slots.kv_positions[b, slot])) < 0 else at
    found = [p for p in range(int(slots.written[b])) if p % (slots.ring or 100) == slot]
    return found[-1] if found else None


@pytest.mark.parametrize("user", [loom.everything, loom.causal, loom.window(back=1, ahead=2), ~loom.sinks(5)], ids=repr)
@pytest.mark.parametrize("kind", KINDS)
def test_each_element(kind, user):
    slots = KINDS[kind]
    found, positions = (user & slots).dense(Q, K, batch=B), user.dense(9, 9)[0, 0]
    for b in range(B):
        for q in range(Q):
            for k in range(K):
                query, key = int(POSITIONS[b, q]), held_by(slots, b, k)
                seen = query >= 0 and key is not None and bool(positions[query, key])
                if slots.window is not None:
                    seen = seen and key > query - slots.window
                assert found[b, 0, q, k] == seen, (b, q, k)


@pytest.mark.parametrize("kind", KINDS)
def test_it_keeps_the_laws_of_masks(kind):
    sizes = testing._Sizes(Q, K, None, None, None)
    for mask in (KINDS[kind], loom.causal & KINDS[kind]):
        testing.check_dense(mask, sizes)
        testing.check_broadcasting(mask, sizes)
        for twin in (copy.deepcopy(mask), pickle.loads(pickle.dumps(mask)), mask.to("cpu")):
            assert twin == mask and hash(twin) == hash(mask)
    testing.check_tracing(loom.causal & KINDS[kind], sizes, "eager")


def test_masks_are_joined_in_any_order():
    slots, lens = KINDS["ring"], loom.key_padding(torch.arange(9)[None] % torch.tensor([[2], [3]]) == 1)
    expected = ((loom.causal & lens) & slots).dense(Q, K, batch=B)
    for mask in (slots & loom.causal & lens, loom.causal & slots & lens, loom.and_masks(lens, slots, loom.causal)):
        assert torch.equal(mask.dense(Q, K, batch=B), expected)
    assert torch.equal(loom.as_mask(torch_and(loom.causal & lens, slots)).dense(Q, K, batch=B), expected)
    assert (loom.everything & slots) is slots
    assert (loom.nothing & slots) == loom.nothing
    assert loom.masks.simplify(loom.causal & loom.window(back=2) & slots).mask == loom.window(back=2)
    assert repr(loom.causal & slots) == "(causal) & slots(int64[2, 3], written=int64[2])"


def test_a_score_mod_gets_positions():
    slots = KINDS["table"]

    def place(score, b, h, q_idx, kv_idx):
        return score + 100 * q_idx + kv_idx

    b, q, k = torch.arange(B)[:, None, None], torch.arange(Q)[:, None], torch.arange(K)
    found = (loom.causal & slots).placed(place)(torch.zeros(()), b, torch.zeros((), dtype=torch.int64), q, k)
    assert torch.equal(found, 100.0 * POSITIONS.clamp(min=0)[:, :, None] + HELD.clamp(min=0)[:, None])
    assert repr(slots.placed(loom.scores.alibi(4))) == "placed(alibi(4))"
    assert slots.placed(slots.placed(place)) == slots.placed(place)
    assert slots.placed(loom.scores.softcap(3.0)) == loom.scores.softcap(3.0)
    with pytest.raises(ValueError, match=r"alibi\(4\) is for 4 query heads; the attention has 3"):
        slots.placed(loom.scores.alibi(4)).check_heads(3)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda slots: loom.causal | slots, "join the others first, and it at last by &"),
        (lambda slots: slots ^ loom.causal, "the mask of a cache speaks of its slots"),
        (lambda slots: ~slots, "the mask of a cache speaks of its slots"),
        (lambda slots: slots & loom.causal & KINDS["plain"], "the mask of a cache speaks of its slots"),
        (lambda slots: loom.masks.shifted(slots, q_offset=2), "give no q_offset or kv_offset"),
    ],
)
def test_words(call, words):
    with pytest.raises(TypeError, match=words):
        call(KINDS["ring"])


def test_a_score_mod_that_is_no_function_of_tables_of_scores():
    """A sum over features: called with all positions at once it would be another number."""
    torch.manual_seed(0)
    near, table = torch.randn(64, 11), torch.randn(4, 64)
    attention, x = loom.MultiheadFlexAttention(16, 16, 4, n_kv_heads=2), torch.randn(2, 13, 16)
    for score_mod in (
        lambda s, b, h, i, j: s + (near[i] * near[j]).sum(),
        lambda s, b, h, i, j: s + table[h][(i - j).abs()],
    ):
        with torch.no_grad():
            cache = loom.nn.KVCache(2, 2, 32, 4)
            steps = [
                attention(x[:, now], loom.causal, cache=cache, score_mod=score_mod).out
                for now in (slice(0, 7), slice(7, 9), slice(9, 13))
            ]
            torch.testing.assert_close(torch.cat(steps, 1), attention(x, loom.causal, score_mod=score_mod).out)
