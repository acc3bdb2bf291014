"""What is known of padding: of queries, of keys, and of one sequence that is both."""

import pytest
import torch

import maskloom as loom
from maskloom.masks.known_padding import known_hidden_queries, known_padding

B, L = 3, 7
LENS, KV_LENS = torch.tensor([5, 0, 7]), torch.tensor([2, 3, 6])
BEHIND, KV_BEHIND = torch.arange(L) >= LENS[:, None], torch.arange(L) >= KV_LENS[:, None]

OF_ONE = {
    "one table": (loom.lengths(LENS), BEHIND),
    "equal tables": (loom.lengths(LENS, LENS.clone()), BEHIND),
    "two sides": (loom.lengths(LENS, KV_LENS), BEHIND & KV_BEHIND),
    "two tables": (loom.padding(BEHIND, KV_BEHIND), BEHIND & KV_BEHIND),
    "two real tables": (loom.causal & loom.real(~BEHIND, ~KV_BEHIND), BEHIND & KV_BEHIND),
    "keys alone": (loom.key_padding(KV_BEHIND), KV_BEHIND),
    "keys and both": (loom.lengths(LENS) & loom.key_padding(KV_BEHIND), BEHIND | KV_BEHIND),
    "keys and two sides": (loom.lengths(LENS, KV_LENS) & loom.key_padding(~BEHIND), (BEHIND & KV_BEHIND) | ~BEHIND),
    "sides of two masks": (loom.lengths(LENS, [L] * B) & loom.lengths([L] * B, KV_LENS), BEHIND & KV_BEHIND),
    "queries elsewhere": (
        loom.masks.shifted(loom.lengths(LENS), q_offset=-1),
        ((torch.arange(L) - 1 >= LENS[:, None]) | (torch.arange(L) == 0)) & BEHIND,
    ),
    "keys alone, queries elsewhere": (loom.masks.shifted(loom.key_padding(KV_BEHIND), q_offset=-1), None),
    "both elsewhere": (
        loom.masks.shifted(loom.lengths(LENS), q_offset=2, kv_offset=2),
        torch.arange(L) + 2 >= LENS[:, None],
    ),
    "simplified": (loom.masks.simplify(loom.causal & loom.lengths(LENS)), BEHIND),
    "unknown": (loom.lengths(LENS) | loom.causal, None),
}


@pytest.mark.parametrize("name", OF_ONE)
def test_padding_of_one_sequence_is_hidden_as_query_and_as_key(name):
    mask, expected = OF_ONE[name]
    found = known_padding(mask, L, of_one_sequence=True)
    assert (found is None and expected is None) or torch.equal(found, expected)


def test_sides_are_told_apart():
    mask = loom.lengths(LENS, KV_LENS)
    assert torch.equal(known_padding(mask, L), KV_BEHIND) and torch.equal(known_hidden_queries(mask, L), BEHIND)


def test_tables_of_two_lengths_are_not_one_sequence():
    mask = loom.padding(BEHIND[:, :4], KV_BEHIND)
    with pytest.raises(
        ValueError, match=r"padding for \(batch, length\) = \(3, 7\) and for \(3, 4\): not for one batch"
    ):
        known_padding(mask, L, of_one_sequence=True)


@pytest.mark.parametrize("mask", [loom.lengths(LENS, KV_LENS), loom.padding(BEHIND, KV_BEHIND)], ids=repr)
def test_the_module_leaves_queries_whose_keys_are_hidden(mask):
    torch.manual_seed(0)
    module, x = loom.MultiheadFlexAttention(16, 16, 2), torch.randn(B, L, 16)
    heads = module.in_proj(x).view(B, L, 3, 2, 8).permute(2, 0, 3, 1, 4)
    expected, _ = loom.reference(*heads, mask)
    expected = module.out_proj(expected.transpose(1, 2).reshape(B, L, 16))
    torch.testing.assert_close(module(x, mask).out, expected)
    dirty = x.masked_fill((BEHIND & KV_BEHIND)[..., None], torch.nan)
    torch.testing.assert_close(module(dirty, mask).out[~BEHIND], expected[~BEHIND])
