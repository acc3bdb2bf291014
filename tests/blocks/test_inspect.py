import pytest
import torch
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.blocks.fully_masked import fully_masked_queries
from maskloom.blocks.inspect import (
    balance,
    density,
    explain_block_mask,
    fully_masked_rows,
    summary,
    tiles_per_row,
)


def _blocks(mask, q_len=70, kv_len=50, **options):
    return loom.block_mask(mask, q_len, kv_len, block_size=(32, 16), device="cpu", **options)


def test_density_counts_pairs_not_tiles():
    assert density(_blocks(loom.everything)) == 100.0
    assert density(_blocks(loom.nothing)) == 0.0
    # keys 48 and 49 are the last tile; prefix(48) visits the three before it: 48 of 50 keys
    assert density(_blocks(loom.prefix(48))) == pytest.approx(96.0)


@pytest.mark.parametrize("q_len, kv_len", [(1, 1), (31, 17), (33, 200), (129, 128)])
def test_density_is_the_mean_over_pairs_of_visited_tiles(q_len, kv_len):
    blocks = _blocks(loom.window(back=20), q_len, kv_len)
    dense = loom.window(back=20).dense(q_len, kv_len)[0, 0]
    visited = sum(
        dense[q : q + 32, kv : kv + 16].numel()
        for q in range(0, q_len, 32)
        for kv in range(0, kv_len, 16)
        if dense[q : q + 32, kv : kv + 16].any()
    )
    assert density(blocks) == pytest.approx(100 * visited / (q_len * kv_len))


def test_rows():
    blocks = _blocks(loom.lengths([40, 0]))
    assert tiles_per_row(blocks).tolist() == [[[3, 3, 0]], [[0, 0, 0]]]
    assert fully_masked_rows(blocks).tolist() == [[[False, False, True]], [[True, True, True]]]


BLIND = {
    "lengths": (loom.lengths([40, 0, 70]), 70, 50),
    "window off the keys": (loom.window(back=7), 131, 50),
    "each second query": (loom.as_mask(lambda b, h, q, kv: (q % 2 == 0) & (kv > 45)), 70, 50),
    "full tiles and odd heads": (loom.masks.per_head([loom.everything, ~loom.causal]), 70, 50),
    "a write, which has no program": (loom.as_mask(lambda b, h, q, kv: _at_least(q, 5) & (kv < 3)), 70, 50),
    "everything": (loom.everything, 1, 1),
}


def _at_least(q, least):
    table = torch.zeros(100, dtype=torch.bool)
    table[least:] |= True
    return table[q]


@pytest.mark.parametrize("name", BLIND)
@pytest.mark.parametrize("chunk", [1, 4096])
def test_blind_queries_are_those_of_the_dense_mask(name, chunk, monkeypatch):
    monkeypatch.setattr("maskloom.blocks.fully_masked.CHUNK", chunk)
    mask, q_len, kv_len = BLIND[name]
    assert torch.equal(fully_masked_queries(_blocks(mask, q_len, kv_len)), ~mask.dense(q_len, kv_len).any(-1))


def test_blind_queries_of_a_hand_made_block_mask():
    blocks = flex.create_block_mask(loom.causal, 1, 1, 64, 64, "cpu", 16)
    blocks.mask_mod = loom.nothing  # what is full stays visible
    assert fully_masked_queries(blocks)[0, 0].tolist() == [True] * 16 + [False] * 48


def test_balance():
    assert balance(_blocks(loom.everything), 3) == 100.0
    assert balance(_blocks(loom.everything), 2) == 75.0  # rows of 4, 4 and 4 tiles on two workers: 8 and 4
    assert balance(_blocks(loom.nothing), 2) == 100.0
    with pytest.raises(ValueError, match="workers is a number of workers, at least 1; got 0"):
        balance(_blocks(loom.everything), 0)


@pytest.mark.parametrize(
    "asked",
    [
        loom.blocks.density,
        loom.blocks.tiles_per_row,
        loom.blocks.fully_masked_rows,
        loom.blocks.fully_masked_queries,
        loom.blocks.summary,
        loom.blocks.pin_memory,
    ],
)
def test_a_mask_in_place_of_a_block_mask_is_told(asked):
    with pytest.raises(
        TypeError, match=r"a BlockMask, as block_mask\(mask, q_len, kv_len\) builds one; got Causal: causal"
    ):
        asked(loom.causal)


def test_summary_prints():
    assert str(summary(_blocks(loom.lengths([40, 0])))).splitlines() == [
        "block mask: B=2 H=1 Q=70 KV=50, tiles of 32 × 16",
        "  24 tiles: 2 full, 4 partial, 18 skipped",
        "  43.9 % of the pairs are visited",
        "  0 to 3 tiles for a query tile",
        "  4 query tiles see nothing, 100 queries in all",
    ]


def test_explain_says_who_decided_and_what_had_no_rule():
    explained = explain_block_mask(loom.causal, 64, 64, block_size=16, device="cpu")
    assert str(explained).splitlines() == [
        "16 tiles of 16 × 16, decided by",
        "  intervals         12   75.0 %",
        "  witnesses          4   25.0 %",
        "  evaluation         0    0.0 %",
    ]
    odd = explain_block_mask(lambda b, h, q, kv: torch.sin(q * 1.0) > 2, 64, 64, block_size=16, device="cpu")
    assert odd.share("evaluation") == 100.0
    assert str(odd).splitlines()[-1] == "  no interval rule for: sin"
