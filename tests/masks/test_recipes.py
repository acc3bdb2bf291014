"""The masks of published code: the recipes of docs/masks.md, against plain loops over what that code does."""

import itertools
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from transformers import BigBirdConfig
from transformers import masking_utils as hugging_face
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

import maskloom as loom
from docs.make_masks import RECIPES
from maskloom.testing import public_names
from tests.masks.grid_oracles import along_each_axis, in_rolled_window, on_cells, with_halo

SEQUENCE = 17
IMAGES = [-1, 0, 0, 0, 0, 0, -1, -1, 1, 1, -1, 2, 2, 2, 2, 2, -1]
OFFSETS = [0, 3, 10, 17]
LEFT = [3, 0, 5]
PARENTS = [-1, 0, 0, 2, 1]
CACHED = [7, 2, 0]
RANDOM = {
    1: [4],
    2: [5],
    3: [1],
    4: [2],
    5: [3],
}  # BigBird's random block for each block of queries but the first and last


class Case(NamedTuple):
    """The names of a recipe's expression, Q and K, and ``sees(b, h, q, k)`` in plain Python."""

    names: dict[str, Any]
    sees: Callable[[int, int, int, int], bool]
    q_len: int = SEQUENCE
    kv_len: int = SEQUENCE


def document_of(position, offsets):
    return sum(position >= offset for offset in offsets) - 1


def packed_chunks(b, h, q, k):
    start = max(offset for offset in OFFSETS if offset <= q)
    return start <= k <= q and (q - start) // 4 == (k - start) // 4


def padded_chunks(b, h, q, k):
    return LEFT[b] <= k <= q and (q - LEFT[b]) // 4 == (k - LEFT[b]) // 4


def same_image(q, k):
    """transformers' blockwise_overlay: one group, and not text."""
    return IMAGES[q] == IMAGES[k] >= 0


def streamed(sinks, recent, *, cut_first):
    """A cache that holds the first and the last keys, and is cut before or after a step."""

    def cut(cache):
        return cache if len(cache) <= sinks + recent else cache[:sinks] + cache[len(cache) - recent :]

    def sees(b, h, q, k):
        cache = []
        for position in range(q + 1):
            cache = cut([*cache, position]) if cut_first else [*cut(cache), position]
        return k in cache

    return sees


def fixed_by_head(b, h, q, k):
    """``indices = reversed(range(stride))`` in rows of c; head h has row ``h % parts`` beside its own block."""
    indices = [[5, 4], [3, 2], [1, 0]][h % 3]
    return k <= q and (k // 6 == q // 6 or k % 6 in indices)


def bigbird(b, h, q, k, size=2, blocks=7):
    q_block, k_block = q // size, k // size
    if q_block in (0, blocks - 1) or k_block in (0, blocks - 1):
        return True
    return abs(q_block - k_block) <= 1 or k_block in RANDOM[q_block]


BLOCKS = [[min(max(i + step, 0), 6) for step in (-1, 0, 1)] + RANDOM.get(i, [0]) for i in range(7)]


def swin(shape, window):
    """Liu et al.: one decision for the whole grid."""
    side, shift = (min(shape), 0) if min(shape) <= window else (window, window // 2)
    return on_cells(shape, along_each_axis(shape, in_rolled_window, [side] * len(shape), [shift] * len(shape)))


def video_swin(shape, window):
    """``get_window_size``: by axis."""
    sides = [min(size, window) for size in shape]
    shifts = [0 if size <= window else window // 2 for size in shape]
    return on_cells(shape, along_each_axis(shape, in_rolled_window, sides, shifts))


def by_places(b, h, q, k, frames=3, frame_size=5, prompt=2, width=4):
    """Sparse VideoGen for CogVideoX: the prompt, and a window over tokens that lie place by place."""
    return q < prompt or k < prompt or abs(q - k) < width


def to_chunk_end(b, h, q, k):
    """CausVid: ``ends[q]`` is the end of the query's chunk."""
    ends = [min((position // 3 + 1) * 3, SEQUENCE) for position in range(SEQUENCE)]
    return k < ends[q]


def eagle(b, h, q, k, q_len=5):
    return k <= q if k < q_len else (k - q) % q_len == 0


def verified(b, h, q, k):
    """Each row: what is cached, then the path from the root to the node."""
    seen = set(range(CACHED[b]))
    node = q
    while node >= 0:
        seen.add(CACHED[b] + node)
        node = PARENTS[node]
    return k in seen


def diffused(b, h, q, k, n=2, length=17):
    (q_clean, q), (k_clean, k) = divmod(q, length), divmod(k, length)
    if document_of(q, OFFSETS) != document_of(k, OFFSETS):
        return False
    start = max(offset for offset in OFFSETS if offset <= q)
    q_block, k_block = (q - start) // n, (k - start) // n
    if q_clean or k_clean:
        return bool(k_clean) and (q_block >= k_block if q_clean else q_block > k_block)
    return q_block == k_block


IS_REAL = torch.stack([torch.arange(SEQUENCE) >= left for left in LEFT])
TIMES = {
    "Llama 4, packed": [Case({"offsets": OFFSETS, "n": 4}, packed_chunks)],
    "Llama 4, padding on the left": [Case({"n": 4, "left": torch.tensor(LEFT), "is_real": IS_REAL}, padded_chunks)],
    "Gemma 3, sliding layers": [
        Case({"ids": IMAGES, "w": w, "length": SEQUENCE}, lambda b, h, q, k, w=w: k > q - w and (k <= q or same_image(q, k)))
        for w in (1, 3, 20)
    ],
    "Gemma 3, sliding layers before": [
        Case({"ids": IMAGES, "w": 3}, lambda b, h, q, k: q - 3 < k <= q or same_image(q, k)),
    ],
    "StreamingLLM, `evict_for_space`": [Case({"recent": 5, "n": 3}, streamed(3, 5, cut_first=True))],
    "StreamingLLM, evaluation": [Case({"recent": 5, "n": 3}, streamed(3, 5, cut_first=False))],
    "Sparse Transformer's code, near": [Case({"stride": 4}, lambda b, h, q, k: k <= q < k + 4)],
    "Sparse Transformer's code, far": [Case({"stride": 4}, lambda b, h, q, k: k <= q and (q - k) % 4 == 0)],
    "Sparse Transformer's code, fixed": [Case({"stride": 6, "c": 2, "heads": 7, "parts": 3}, fixed_by_head)],
    "BigBird's code": [Case({"blocks": BLOCKS, "size": 2, "length": 14}, bigbird, 14, 14)],
    "Swin": [
        Case({"shape": shape, "w": w}, swin(shape, w), math.prod(shape), math.prod(shape))
        for shape, w in (((6, 9), 3), ((3, 6), 3), ((2, 6), 5), ((8, 4), 4))
    ],
    "Video Swin": [
        Case({"shape": shape, "w": w}, video_swin(shape, w), math.prod(shape), math.prod(shape))
        for shape, w in (((2, 4, 3), 2), ((3, 4, 3), 3), ((4, 2, 3), 3))
    ],
    "HaloNet": [
        Case({"shape": (4, 6), "block": block, "halo": halo},
             on_cells((4, 6), along_each_axis((4, 6), with_halo, (block,) * 2, (halo,) * 2)), 24, 24)
        for block in (1, 2) for halo in (0, 1, 3)
    ],
    "Sparse VideoGen's code, temporal": [
        Case({"frames": 3, "frame_size": 5, "width": 4, "prompt": 2}, by_places),
    ],
    "CausVid, Self-Forcing": [Case({"n": 3}, to_chunk_end)],
    "EAGLE-3, training": [Case({"q_len": 5, "kv_len": 20}, eagle, 5, 20)],
    "Tree verification over a cache": [
        Case({"parents": PARENTS, "lens": torch.tensor(CACHED)}, verified, 5, 13),
    ],
    "BD3-LM, packed": [Case({"offsets": OFFSETS, "n": 2}, diffused, 34, 34)],
}  # fmt: skip


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.of)
def test_recipes(recipe):
    for case in TIMES[recipe.of]:
        mask = eval(recipe.expression, {**public_names(), "torch": torch, **case.names})
        table = mask.dense(case.q_len, case.kv_len)
        batch, heads = table.shape[:2]
        indices = itertools.product(range(batch), range(heads), range(case.q_len), range(case.kv_len))
        assert table.flatten().tolist() == [bool(case.sees(*index)) for index in indices], case.names


def test_every_recipe_has_a_loop():
    assert [recipe.of for recipe in RECIPES] == list(TIMES)


# -- the code itself, where it is installed ----------------------------------------------------------------------------


@pytest.mark.parametrize("w", [1, 3, 20])
def test_gemma_as_transformers_puts_it_together(w):
    ids = torch.tensor([IMAGES, [0] * 5 + [-1] * 5 + [1] * 7])
    theirs = hugging_face.and_masks(
        hugging_face.sliding_window_overlay(w),
        hugging_face.or_masks(hugging_face.causal_mask_function, hugging_face.blockwise_overlay(ids)),
    )
    dense = hugging_face.sdpa_mask(2, SEQUENCE, SEQUENCE, mask_function=theirs, allow_is_causal_skip=False)
    ours = loom.masks.mixed_modal(ids) & loom.window(back=w - 1, ahead=SEQUENCE)
    assert torch.equal(ours.dense(SEQUENCE, SEQUENCE), dense)


def test_bigbird_attends_where_the_recipe_says():
    """The probabilities of transformers' block-sparse attention are above 0 where the mask is."""
    size, blocks = 2, 7
    config = BigBirdConfig(
        hidden_size=8, num_attention_heads=1, block_size=size, num_random_blocks=1, max_position_embeddings=size * blocks,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    attention = BigBirdBlockSparseAttention(config)
    drawn = np.array([RANDOM[i] for i in range(1, blocks - 1)])
    attention._bigbird_block_rand_mask_with_head = lambda **_: [drawn]
    hidden, ones = torch.randn(1, size * blocks, 8), torch.ones(1, size * blocks)
    blocked = ones.view(1, blocks, size)
    band = torch.einsum(
        "blq,blk->blqk", blocked[:, 2:-2], torch.cat([blocked[:, 1:-3], blocked[:, 2:-2], blocked[:, 3:-1]], 2)
    )
    with torch.no_grad():
        probabilities = attention(
            hidden, band[:, None], ones[:, None, :, None], ones[:, None, None], blocked, blocked, output_attentions=True
        )[1]  # fmt: skip
    ends = [*range(size), *range(size * (blocks - 1), size * blocks)]
    ours = (loom.masks.top_k_blocks(BLOCKS, size) | loom.masks.global_tokens(ends)).dense(size * blocks, size * blocks)
    assert torch.equal(ours, probabilities > 0)


def test_windows_of_places_cut_into_a_place_where_whole_places_do_not():
    """Sparse VideoGen's window of n positions in the order of places, beside ``temporal`` in the order of frames."""
    frames, frame_size = 3, 5
    order = [frame * frame_size + place for place in range(frame_size) for frame in range(frames)]
    by_frames = loom.masks.temporal(frames, frame_size, width=2).dense(15, 15)[0, 0][order][:, order]
    in_order = {width: loom.masks.spatial(frame_size, frames, width=width).dense(15, 15)[0, 0] for width in (4, 6)}
    assert bool((in_order[4] <= by_frames).all()) and bool((by_frames <= in_order[6]).all())
    assert not torch.equal(by_frames, in_order[4]) and not torch.equal(by_frames, in_order[6])


def test_a_band_and_random_blocks_of_any_size():
    draw = random.Random(0)
    for _ in range(20):
        size, blocks, k = draw.randint(1, 3), draw.randint(5, 8), draw.randint(0, 2)
        inner = range(1, blocks - 1)
        drawn = {i: draw.sample([j for j in inner if abs(i - j) > 1], min(k, max(0, blocks - 5))) for i in inner}
        width = 3 + max(map(len, drawn.values()))
        rows = [[j for j in (i - 1, i, i + 1) if 0 <= j < blocks] + drawn.get(i, []) for i in range(blocks)]
        table = [(row + [-1] * width)[:width] for row in rows]
        length = size * blocks
        ends = [*range(size), *range(length - size, length)]
        mask = loom.masks.top_k_blocks(table, size, key_blocks=blocks) | loom.masks.global_tokens(ends)
        cells = [(q // size, k // size) for q, k in itertools.product(range(length), repeat=2)]
        last = blocks - 1
        expected = [{q, k} & {0, last} != set() or abs(q - k) <= 1 or k in drawn[q] for q, k in cells]
        assert mask.dense(length, length).flatten().tolist() == expected
