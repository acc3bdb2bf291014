"""Masks of grids, of generation, and given as tables: laws, meanings, errors, and peers."""

import math
import random

import attn_gym.masks as gym
import pytest
import torch
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.core import captures
from maskloom.masks.known_padding import known_padding
from maskloom.masks.patterns.diffusion import block_diffusion
from maskloom.masks.patterns.from_tables import from_blocks, from_dense, top_k_blocks
from maskloom.masks.patterns.generation import beams, tree
from maskloom.masks.patterns.grids.grid import axial, shifted_windows
from maskloom.masks.patterns.grids.layout import grid_tiles, morton, tiled
from maskloom.masks.patterns.grids.video import spatial, temporal
from maskloom.masks.patterns.grids.windows import grid_window, neighbourhood
from maskloom.masks.patterns.multimodal import flamingo, mixed_modal
from maskloom.masks.patterns.packed.segments import documents
from maskloom.testing import check_mask
from tests.blocks.random_masks import differing
from tests.catalog.grids import BATCH, HEADS, MASKS, flags, integers
from tests.masks.grid_oracles import ORACLES, cells_of, in_shared_cut_window, in_shared_window, sharing


@pytest.mark.parametrize("name", MASKS)
def test_every_law(name):
    make, q_len, kv_len = MASKS[name]
    check_mask(make(), q_len=q_len, kv_len=kv_len)


@pytest.mark.parametrize("block", [4, (8, 2), 16])
@pytest.mark.parametrize("name", MASKS)
def test_block_tables_are_those_of_torch(name, block):
    make, q_len, kv_len = MASKS[name]
    mask = make()
    batch, heads = mask.dense(q_len, kv_len).shape[:2]
    ours = loom.create_block_mask(mask, batch, heads, q_len, kv_len, "cpu", block)
    assert differing(ours, flex.create_block_mask(mask, batch, heads, q_len, kv_len, "cpu", block)) == []


# -- how the block builder decides them, in tiles of 128 ---------------------------------------------------------------

IMAGES = torch.where(torch.arange(4096) % 700 < 256, torch.arange(4096) // 700, -1)
LARGE = {  # 4096 positions
    "neighbourhood": neighbourhood((64, 64), 13),
    "neighbourhood_dilated": neighbourhood((64, 64), 7, dilation=4),
    "neighbourhood_3d": neighbourhood((16, 16, 16), 5),
    "grid_window": grid_window((64, 64), 13),
    "axial_rows": axial((64, 64), axis=1),
    "axial_columns": axial((64, 64), axis=0),
    "shifted_windows": shifted_windows((64, 64), 8, shift=4),
    "tiled": tiled(neighbourhood((64, 64), 13), (8, 16)),
    "morton": morton(neighbourhood((64, 64), 13)),
    "grid_tiles": grid_tiles((64, 64), (8, 16), 3),
    "spatial": spatial(16, 240, width=480, prompt=256),
    "temporal": temporal(16, 240, width=30, prompt=256),
    "neighbourhood_strided": neighbourhood((64, 64), 16, stride=8),
    "halo": grid_window((64, 64), 8 + 2 * 4, stride=8),
    "block_diffusion": block_diffusion(2048, 32),
    "block_diffusion_documents": block_diffusion(block_size=32, documents=documents(torch.arange(2048) // 300)),
    "tree": tree((torch.arange(512) - 3).div(2, rounding_mode="floor").clamp(min=-1), prefix=3584),
    "mixed_modal": mixed_modal(IMAGES),
    "flamingo": flamingo(torch.arange(4096) % 512 == 7, tokens_per_media=256),
    "from_blocks": from_blocks(flags(64, 64), 64),
    "top_k_blocks": top_k_blocks(integers(-1, 63, 4096, 16), (1, 64)),
}


@pytest.mark.parametrize("name", LARGE)
def test_few_tiles_are_decided_by_their_elements(name):
    explained = loom.blocks.explain_block_mask(LARGE[name], 4096, 4096)
    assert explained.share("evaluation") < (20 if name == "neighbourhood_3d" else 10)
    assert explained.decided.unsupported_ops == ()


@pytest.mark.parametrize("name", ["grid_tiles", "from_blocks"])
def test_whole_blocks_make_no_partial_tiles(name):
    side = 64 if name == "from_blocks" else 128
    assert loom.blocks.summary(loom.block_mask(LARGE[name], 4096, 4096, block_size=side)).partial == 0


# -- meanings: the oracles are in grid_oracles.py -----------------------------------------------------------------------


@pytest.mark.parametrize("name", MASKS)
def test_meanings_in_plain_python(name):
    make, q_len, kv_len = MASKS[name]
    dense = make().dense(q_len, kv_len)
    expected = [[[[bool(ORACLES[name](b, h, q, k)) for k in range(kv_len)] for q in range(q_len)]
                 for h in range(dense.shape[1])] for b in range(dense.shape[0])]  # fmt: skip
    assert dense.tolist() == expected


def test_batch_and_heads_are_as_many_as_the_tables_have():
    sizes = {"_by_row": (BATCH, 1), "_by_head": (1, HEADS), "_by_both": (BATCH, HEADS), "_for_all": (1, 1)}
    for ending, expected in sizes.items():
        for name in [name for name in MASKS if name.endswith(ending)]:
            make, q_len, kv_len = MASKS[name]
            assert make().dense(q_len, kv_len).shape[:2] == expected, name
    assert loom.block_mask(from_dense(torch.ones(1, 1, 5, 7, dtype=torch.bool)), 5, 7, batch=2, heads=3)


def test_a_table_without_its_ones_is_the_same_mask():
    flags = torch.rand(4, 5, 7) < 0.5
    by_head, by_row = from_dense(flags[None]), from_dense(flags[:, None])
    assert (repr(by_head), repr(by_row)) == ("from_dense(bool[1, 4, 5, 7])", "from_dense(bool[4, 5, 7])")
    assert by_head != by_row == from_dense(flags) and from_dense(flags[:1]) == from_dense(flags[0])
    assert repr(from_blocks(flags[None], 2)) == "from_blocks(bool[1, 4, 5, 7], (2, 2))"
    flags[2, 3, 4] = ~flags[2, 3, 4]  # it is held, not copied
    assert torch.equal(by_head.dense(5, 7, heads=4)[0], flags) and torch.equal(by_row.dense(5, 7, batch=4)[:, 0], flags)


# -- pictures: those of the docstrings ---------------------------------------------------------------------------------


def drawn(mask, q_len, kv_len):
    return ["".join("x" if seen else "." for seen in line) for line in mask.dense(q_len, kv_len)[0, 0].tolist()]


def seen_from(mask, shape, *query):
    """The grid as one of its cells sees it; the cell itself is Q."""
    cells = cells_of(shape)
    line = mask.dense(len(cells), len(cells))[0, 0, cells.index(query)].tolist()
    marks = ["Q" if cell == query else "x" if seen else "." for cell, seen in zip(cells, line, strict=True)]
    return ["".join(marks[at : at + shape[-1]]) for at in range(0, len(marks), shape[-1])]


@pytest.mark.parametrize(
    ("mask", "query", "picture"),
    [
        (neighbourhood((3, 5), 3), (0, 0), "Qxx.. xxx.. xxx.."),
        (neighbourhood((3, 5), 3), (1, 0), "xxx.. Qxx.. xxx.."),
        (neighbourhood((3, 5), 3), (0, 2), ".xQx. .xxx. .xxx."),
        (neighbourhood((3, 5), 3), (2, 4), "..xxx ..xxx ..xxQ"),
        (neighbourhood((3, 7), (1, 3), dilation=(1, 2)), (1, 1), "....... .Q.x.x. ......."),
        (grid_window((3, 5), 3), (0, 0), "Qx... xx... ....."),
        (grid_window((3, 5), 3), (1, 0), "xx... Qx... xx..."),
        (grid_window((3, 5), 3), (0, 2), ".xQx. .xxx. ....."),
        (grid_window((3, 5), 3), (2, 4), "..... ...xx ...xQ"),
        (axial((3, 4), axis=1), (1, 1), ".... xQxx ...."),
        (axial((3, 4), axis=0), (1, 1), ".x.. .Q.. .x.."),
    ],
)
def test_what_a_cell_sees(mask, query, picture):
    assert seen_from(mask, mask.shape, *query) == picture.split()


@pytest.mark.parametrize(
    ("shift", "picture"), [(0, "aabb aabb ccdd ccdd"), (1, "abbc deef deef ghhi"), ((0, 1), "abbc abbc deef deef")]
)
def test_windows_by_letters(shift, picture):
    letters = picture.replace(" ", "")
    expected = [[q == k for k in letters] for q in letters]
    assert shifted_windows((4, 4), 2, shift=shift).dense(16, 16)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("layout", "shape", "places"),
    [
        (lambda mask: tiled(mask, (2, 2)), (4, 6), "0 1 4 5 8 9|2 3 6 7 10 11|12 13 16 17 20 21|14 15 18 19 22 23"),
        (morton, (4, 4), "0 1 4 5|2 3 6 7|8 9 12 13|10 11 14 15"),
        (morton, (3, 5), "0 1 4 5 12|2 3 6 7 13|8 9 10 11 14"),
    ],
)
def test_where_positions_lie(layout, shape, places):
    """A mask of rows and one of columns tell where each position lies."""
    grid = torch.tensor([[int(place) for place in row.split()] for row in places.split("|")])
    cells = torch.unravel_index(grid.flatten().argsort(), grid.shape)
    for axis in (0, 1):
        expected = cells[1 - axis][:, None] == cells[1 - axis]
        assert torch.equal(layout(axial(shape, axis)).dense(grid.numel(), grid.numel())[0, 0], expected)


@pytest.mark.parametrize(
    ("mask", "query", "picture"), [((1, 3), 0, "xxx.. ....."), ((1, 3), 2, ".xxx. ....."), ((1, 3), 9, "..... ..xxx")]
)
def test_what_a_tile_sees(mask, query, picture):
    table = grid_tiles((4, 10), 2, mask).dense(40, 40)[0, 0].unflatten(0, (10, 4)).unflatten(2, (10, 4))
    seen = "".join("x" if tile else "." for tile in table[query].any(0).any(-1).tolist())
    assert [seen[:5], seen[5:]] == picture.split()
    assert torch.equal(table.any(1).any(-1), table.all(1).all(-1))  # tiles are seen whole, by whole tiles


@pytest.mark.parametrize(
    ("mask", "picture"),
    [
        (spatial(2, 3, width=2, prompt=1), "xxxxxxx xxx.... xxxx... x.xxx.. x..xxx. x...xxx x....xx"),
        (temporal(2, 3, width=1, prompt=1), "xxxxxxx xx..x.. x.x..x. x..x..x xx..x.. x.x..x. x..x..x"),
        (block_diffusion(4, 2), "xx...... xx...... ..xxxx.. ..xxxx.. ....xx.. ....xx.. ....xxxx ....xxxx"),
        (tree([-1, 0, 0, 1], prefix=2), "x..... xx.... xxx... xxxx.. xxx.x. xxxx.x"),
        (beams([[-1, -1], [1, 1], [0]], prefix=1), "x..... xx.... x.x... x.xx.. x.x.x. x.xx.x"),
        (mixed_modal([-1, 0, 0, -1, 1, 1]), "x..... xxx... xxx... xxxx.. xxxxxx xxxxxx"),
        (flamingo([False, True, False, True], tokens_per_media=2), ".... xx.. xx.. ..xx"),
        (from_dense(torch.tensor([[True, False, True], [False, True, True]])), "x.x .xx"),
        (from_blocks(torch.tensor([[True, False], [True, True]]), 2), "xx.. xx.. xxxx xxxx"),
        (top_k_blocks([[0, -1], [0, 2]], (1, 2)), "xx.... xx..xx"),
    ],
)
def test_pictures(mask, picture):
    lines = picture.split()
    assert drawn(mask, len(lines), len(lines[0])) == lines


# -- relations ---------------------------------------------------------------------------------------------------------


def test_every_query_of_a_neighbourhood_sees_as_many_cells():
    for shape, window, dilation in (((3, 5, 7), (3, 2, 5), 1), ((5, 7), (2, 3), 2)):
        cells = math.prod(shape)
        counts = neighbourhood(shape, window, dilation=dilation).dense(cells, cells).sum(-1)
        assert counts.unique().tolist() == [math.prod(window)]


def test_other_tokens_stand_around_a_grid():
    shape, text = (2, 3), 4
    grid = neighbourhood(shape, (1, 3))
    moved = loom.masks.shifted(grid, q_offset=-text, kv_offset=-text).dense(13, 13)[0, 0]
    expected = torch.zeros(13, 13, dtype=torch.bool)
    expected[text : text + 6, text : text + 6] = grid.dense(6, 6)
    assert torch.equal(moved, expected)
    for mask in (tiled(grid, (1, 3)), morton(grid), grid_tiles((2, 3), 1, 1), spatial(2, 3, width=9), from_blocks(
        torch.ones(2, 3, dtype=torch.bool), (3, 2)), block_diffusion(3, 2), tree([-1, 0, 1, 2, 3, 4])):  # fmt: skip
        table = loom.masks.shifted(mask, q_offset=-text, kv_offset=-text).dense(13, 13)[0, 0]
        assert torch.equal(table[text : text + 6, text : text + 6], mask.dense(6, 6)[0, 0]), mask
        assert not table[:text].any(), mask
        assert not table[:, :text].any(), mask
        assert not table[text + 6 :].any(), mask
        assert not table[:, text + 6 :].any(), mask


def test_nodes_alone_as_queries():
    parents, prefix = [-1, 0, 0, 2], 3
    whole = tree(parents, prefix=prefix).dense(7, 7)
    decoding = loom.masks.shifted(tree(parents, prefix=torch.tensor(prefix)), q_offset=prefix)
    assert torch.equal(decoding.dense(4, 7), whole[:, :, prefix:])


def test_windows_that_move_in_steps():
    """Blocks where the stride is the window; Swin's windows too, where those fit."""
    assert torch.equal(
        neighbourhood((4, 6), (2, 3), stride=(2, 3)).dense(24, 24), shifted_windows((4, 6), (2, 3)).dense(24, 24)
    )
    one = neighbourhood((5, 7), 3, stride=1, causal=[False, False])
    assert one == neighbourhood((5, 7), 3) and repr(one) == "neighbourhood((5, 7), (3, 3))"
    assert repr(grid_window((7,), 5, stride=3, causal=True)) == "grid_window((7,), (5,), stride=(3,), causal=(True,))"
    causal = neighbourhood((7,), 7, causal=True)
    assert torch.equal(causal.dense(7, 7), loom.causal.dense(7, 7))


def test_moved_windows_in_random_cases():
    draw = random.Random(0)
    for _ in range(60):
        shape = [draw.randint(1, 7) for _ in range(draw.randint(1, 2))]
        window = [draw.randint(1, size) for size in shape]
        dilation = [draw.randint(1, size // width) for size, width in zip(shape, window, strict=True)]
        stride, causal = [draw.randint(1, width) for width in window], [draw.random() < 0.4 for _ in window]
        cells = math.prod(shape)
        for make, rule in ((neighbourhood, in_shared_window), (grid_window, in_shared_cut_window)):
            mask = make(shape, window, dilation=dilation, stride=stride, causal=causal)
            sees = sharing(shape, window, dilation, stride, causal, rule)
            expected = [[sees(0, 0, q, k) for k in range(cells)] for q in range(cells)]
            assert mask.dense(cells, cells)[0, 0].tolist() == expected, mask
            assert loom.parse(repr(mask)) == mask


def test_diffused_documents_are_each_what_they_are_alone():
    draw = random.Random(0)
    for paired in (False, True):
        for _ in range(20):
            lens, size = [draw.randint(1, 6) for _ in range(draw.randint(1, 4))], draw.randint(1, 4)
            offsets = loom.batches.offsets_from_lengths(lens)
            mask = block_diffusion(block_size=size, documents=documents(offsets=offsets), paired=paired)
            table = mask.dense(2 * sum(lens), 2 * sum(lens))[0, 0]
            alone = torch.block_diag(*[block_diffusion(n, size).dense(2 * n, 2 * n)[0, 0] for n in lens]).bool()
            if not paired:  # the paired layout, moved to halves
                starts = [2 * int(start) for start in offsets[:-1]]
                order = [[start + half * n + at for start, n in zip(starts, lens, strict=True) for at in range(n)]
                         for half in (0, 1)]  # fmt: skip
                alone = alone[order[0] + order[1]][:, order[0] + order[1]]
            assert torch.equal(table, alone), (lens, size, paired)


def test_diffused_documents_know_their_padding_and_keep_their_tables():
    ids = torch.tensor([[0, 0, 1, -1, -1], [-1, 2, 2, 2, 3]])
    for paired in (False, True):
        mask = block_diffusion(block_size=2, documents=documents(ids.clone()), paired=paired)
        table = mask.dense(10, 10)
        assert torch.equal(known_padding(mask, 10), ~table.any(-1)[:, 0])
    live = ids.clone()
    mask = block_diffusion(5, 2, documents=documents(live))
    live.zero_()
    assert mask == block_diffusion(5, 2, documents=documents(ids))
    assert repr(mask) == "block_diffusion(block_size=2, documents=documents(int64[2, 5]))"
    assert repr(block_diffusion(block_size=2, documents=documents(offsets=[0, 3]), paired=True)) == (
        "block_diffusion(block_size=2, documents=documents(int32[3]), paired=True)"
    )


def test_what_lies_before_position_0_is_no_part_of_a_table():
    """Rows with padding on the left: of what begins there the mask is what it is, and what lies before is hidden."""
    mixed, blocks = mixed_modal([-1, 0, 0, 1, 1]), loom.masks.random_blocks(block_size=2, blocks=2, length=5, seed=1)
    diffused = block_diffusion(block_size=2, documents=documents(offsets=[0, 2, 3]))
    for mask, n in ((mixed, 5), (blocks, 5), (diffused, 6)):
        table = loom.masks.shifted(mask, q_offset=-3, kv_offset=-3).dense(n + 3, n + 3)[0, 0]
        assert torch.equal(table[3:, 3:], mask.dense(n, n)[0, 0])
        assert not table[:3].any() and not table[:, :3].any()
    for marks in ([0, 3], torch.tensor([True, False, False, True])):
        table = loom.masks.shifted(loom.masks.global_tokens(marks), q_offset=-4, kv_offset=-4).dense(8, 8)[0, 0]
        expected = torch.zeros(8, 8, dtype=torch.bool)
        expected[[4, 7]] = expected[:, [4, 7]] = True
        assert torch.equal(table, expected)


def test_positions_before_an_image_are_no_image():
    """Padding on the left of text and of images: what lies before position 0 sees nothing and is not seen."""
    text, tokens = [False, True, False, True], 2
    for all_before in (False, True):
        for images in ({"tokens_per_media": tokens}, {"media_ids": [0, 0, 1, 1]}):
            mask = flamingo(text, **images, all_before=all_before)
            table = loom.masks.shifted(mask, q_offset=-3, kv_offset=-2).dense(7, 6)[0, 0]
            assert torch.equal(table[3:, 2:], mask.dense(4, 4)[0, 0])
            assert not table[:3].any() and not table[:, :2].any()


def test_a_long_chain_is_causal_in_any_order():
    order = torch.randperm(67, generator=torch.Generator().manual_seed(0))
    parents = torch.empty(67, dtype=torch.int64)
    parents[order[1:]], parents[order[0]] = order[:-1], -1
    place = order.argsort()
    assert torch.equal(tree(parents).dense(67, 67)[0, 0], place[:, None] >= place)


def test_whether_values_are_equal_follows_from_meaning():
    assert mixed_modal([-1, 7, 7, 2]) == mixed_modal([-5, 0, 0, 1]) != mixed_modal([-1, 0, 0, 0])
    assert beams([[-1], [0]]) == tree([-1, 0])
    assert top_k_blocks([[1, 1], [0, -1]], 2) == from_blocks(torch.tensor([[False, True], [True, False]]), 2)
    assert axial((2, 3, 5), axis=-1) == axial((2, 3, 5), axis=[2]) != axial((2, 3, 5), axis=1)
    assert neighbourhood([3, 5], 3) == neighbourhood((3, 5), (3, 3)) != grid_window((3, 5), 3)


def test_narrow_and_unsigned_indices_do_not_wrap():
    steps = [torch.full((1,), -1, dtype=torch.int8)] + [torch.zeros(1, dtype=torch.int8)] * 140
    assert torch.equal(beams(steps).dense(141, 141), loom.causal.dense(141, 141))
    chosen_blocks = torch.tensor([[200], [3]], dtype=torch.uint8)
    assert top_k_blocks(chosen_blocks, 1).dense(2, 201)[0, 0].nonzero().tolist() == [[0, 200], [1, 3]]


@pytest.mark.parametrize(
    "make",
    [
        lambda: tree(torch.zeros(2, 5, dtype=torch.int32, device="meta")),
        lambda: beams([torch.zeros(3, 2, device="meta").int(), torch.zeros(3, 5, device="meta").int()]),
        lambda: mixed_modal(torch.zeros(5, device="meta").int()),
        lambda: mixed_modal(torch.zeros(2, 5, device="meta").bool()),
        lambda: flamingo(torch.zeros(2, 5, device="meta").bool(), media_ids=torch.zeros(7, device="meta").int()),
        lambda: from_dense(torch.zeros(5, 7, device="meta").bool()),
        lambda: from_blocks(torch.zeros(2, 5, 7, device="meta").bool(), 3),
        lambda: top_k_blocks(torch.zeros(2, 5, 7, device="meta").int(), 3, key_blocks=11),
    ],
)
def test_making_a_mask_waits_for_no_device(make):
    """A meta tensor has no values to look at."""
    assert all(tensor.is_meta for tensor in captures.tensors(make()))


# -- attention-gym -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs", "q_len", "kv_len"),
    [
        (neighbourhood((7, 7), 3), gym.generate_natten(7, 7, 3, 3), 49, 49),
        (neighbourhood((7, 7), (3, 5)), gym.generate_natten(7, 7, 3, 5), 49, 49),  # its x is our rows
        (tiled(neighbourhood((6, 8), (3, 5)), (2, 4)), gym.generate_tiled_natten(8, 6, 5, 3, 4, 2), 48, 48),
        (morton(neighbourhood((8, 8), (3, 5))), gym.generate_morton_natten(8, 8, 5, 3), 64, 64),
        (grid_tiles((4, 10), 2, (1, 3)), gym.generate_sta_mask_mod_2d((4, 10), (2, 6), (2, 2)), 40, 40),
        (grid_tiles((4, 6), (2, 3), (2, 1)), gym.generate_sta_mask_mod_2d((4, 6), (4, 3), (2, 3)), 24, 24),
        (
            grid_tiles((2, 6, 10), (1, 3, 2), (1, 1, 3)),  # windows in tiles here, in cells there
            gym.generate_sta_mask_mod_3d((2, 6, 10), (1, 3, 6), (1, 3, 2)), 120, 120,
        ),
        (spatial(5, 7, width=14, prompt=3), gym.generate_spatial_head_mask_mod(3, 5, 7, 2, round_width=1), 38, 38),
        (
            spatial(5, 7, width=12, prompt=3, sink_frames=1),  # two frames of 7, rounded down to a multiple of 4
            gym.generate_spatial_head_mask_mod(3, 5, 7, 2, attn_sink=True, round_width=4), 38, 38,
        ),
        (temporal(5, 7, width=2, prompt=3), gym.generate_temporal_head_mask_mod(3, 5, 7, 2), 38, 38),  # 2 · 7 // 5 places
        (block_diffusion(12, 4), gym.generate_block_diffusion_mask(12, 4), 24, 24),
        (block_diffusion(11, 4), gym.generate_block_diffusion_mask(11, 4), 22, 22),
        (
            loom.masks.shifted(tree([-1, 0, 0, 2, 1], prefix=3), q_offset=3),  # its queries are nodes alone
            gym.generate_jetspec_tree_causal_mask_mod(3, gym.build_tree_ancestor_matrix([-1, 0, 0, 2, 1], "cpu")), 5, 8,
        ),
        (
            flamingo([q in (2, 7, 9) for q in range(13)], tokens_per_media=3),  # it has intervals, which may overlap
            gym.generate_vision_cross_attention_mask_mod(torch.tensor([[2, 7], [7, 9], [9, 13]]), 3), 13, 9,
        ),
    ],
)  # fmt: skip
def test_attention_gym_says_the_same(ours, theirs, q_len, kv_len):
    assert torch.equal(ours.dense(q_len, kv_len), loom.as_mask(theirs).dense(q_len, kv_len))


# -- errors ------------------------------------------------------------------------------------------------------------

FLAGS = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: neighbourhood(5, 3), ValueError, r"cells along each axis, \(rows, columns\) say; got 5"),
        (lambda: neighbourhood((), 3), ValueError, r"cells along each axis, .* got \(\)"),
        (lambda: neighbourhood((3, 0), 1), ValueError, "shape is a number of positions, at least 1; got 0"),
        (lambda: neighbourhood((3, 5.0), 1), TypeError, "shape is a number of positions, an int; got float: 5.0"),
        (lambda: neighbourhood((3, 5), (3,)), ValueError, r"window has one number for each of the 2 axes; got \(3,\)"),
        (lambda: neighbourhood((3, 5), 4), ValueError, "a window of 4 does not fit axis 0 of 3 cells"),
        (
            lambda: neighbourhood((6, 5), 3, dilation=2),
            ValueError,
            "a window of 3 with dilation 2 does not fit axis 1 of 5 cells",
        ),
        (lambda: neighbourhood((3, 5), 3, dilation=0), ValueError, "dilation is a number .* at least 1; got 0"),
        (
            lambda: neighbourhood((5, 5), 3, stride=(1, 4)),
            ValueError,
            "stride is at most the window; got 4 for a window of 3 cells along axis 1",
        ),
        (lambda: neighbourhood((5, 5), 3, stride=0), ValueError, "stride is a number .* at least 1; got 0"),
        (lambda: neighbourhood((5, 5), 3, causal=1), TypeError, "causal is True or False, .* 2 axes; got 1"),
        (lambda: grid_window((5, 5), 3, causal=[True]), ValueError, r"for each of the 2 axes; got \[True\]"),
        (lambda: grid_window((3, 5), (3, -1)), ValueError, "window is a number of positions, at least 1; got -1"),
        (
            lambda: grid_window((3, 5), torch.tensor(3)),
            TypeError,
            "window is a number of positions, an int; got Tensor",
        ),
        (lambda: axial((3, 5), axis=2), ValueError, "axis is one of the 2 axes of the grid, 0 to 1; got 2"),
        (
            lambda: axial((3, 5), axis=(0, 1)),
            ValueError,
            r"some axes of \(3, 5\), each once, and not all; got \(0, 1\)",
        ),
        (lambda: axial((3, 5, 2), axis=(1, -2)), ValueError, r"each once, .* got \(1, -2\)"),
        (lambda: axial((3, 5), axis=()), ValueError, r"got \(\)"),
        (
            lambda: shifted_windows((4, 4), 2, shift=(0, 2)),
            ValueError,
            "less than the window; got a shift of 2 and a window of 2 cells",
        ),
        (lambda: shifted_windows((4, 4), 2, shift=-1), ValueError, "shift is a number .* at least 0; got -1"),
        (lambda: tiled(loom.causal, 2), TypeError, r"tiled\(a\) & tiled\(b\); got causal"),
        (lambda: morton(axial((2, 3), 0) & axial((2, 3), 1)), TypeError, "morton takes one mask .* got axial"),
        (
            lambda: tiled(axial((4, 5), 0), 2),
            ValueError,
            r"divides the grid along each axis; got tiles of \(2, 2\) in a grid of \(4, 5\)",
        ),
        (lambda: grid_tiles((4, 6), (3, 2), 1), ValueError, r"got tiles of \(3, 2\) in a grid of \(4, 6\)"),
        (lambda: grid_tiles((4, 6), 2, 3), ValueError, "a window of 3 does not fit axis 0 of 2 cells"),
        (lambda: spatial(0, 5, width=1), ValueError, "frames is a number .* at least 1; got 0"),
        (lambda: spatial(2, 5, width=0), ValueError, "width is a number .* at least 1; got 0"),
        (lambda: spatial(2, 5, width=1, sink_frames=3), ValueError, "sink_frames are some of the 2 frames; got 3"),
        (lambda: temporal(2, 0, width=1), ValueError, "frame_size is a number .* at least 1; got 0"),
        (lambda: temporal(2, 5, width=1, prompt=-3), ValueError, "prompt is a number .* at least 0; got -3"),
        (lambda: block_diffusion(0, 2), ValueError, "length is a number .* at least 1; got 0"),
        (lambda: block_diffusion(4, 1.5), TypeError, "block_size is a number .* got float: 1.5"),
        (lambda: block_diffusion(), TypeError, "length or documents, and block_size; got no block_size"),
        (lambda: block_diffusion(block_size=2), TypeError, "got no length or documents"),
        (lambda: block_diffusion(4), TypeError, "got no block_size"),
        (
            lambda: block_diffusion(5, 2, documents=documents(offsets=[0, 2, 3])),
            ValueError,
            "length is 5, and the documents are for 3 positions",
        ),
        (
            lambda: block_diffusion(3, 2, documents=documents([0, 1, 0])),
            ValueError,
            "block_diffusion needs documents in one piece, .*; document 0 has 2 pieces",
        ),
        (
            lambda: block_diffusion(3, 2, documents=loom.causal),
            TypeError,
            r"block_diffusion takes documents made by documents\(...\); got causal",
        ),
        (lambda: tree(torch.tensor([0.5])), TypeError, "parents are integers; got torch.float32"),
        (lambda: tree(torch.zeros(2, 3, 5).long()), ValueError, r"shape \(N,\) or \(B, N\); got \(2, 3, 5\)"),
        (lambda: tree([-1, 0, 3]), ValueError, r"numbers of nodes, -1 \(a root\) to 2; got 3"),
        (lambda: tree([-1, -2]), ValueError, r"-1 \(a root\) to 1; got -2"),
        (lambda: tree([-1, 2, 3, 1]), ValueError, "a cycle: node 1 never comes to a root"),
        (lambda: tree([-1, 1]), ValueError, "a cycle: node 1"),
        (lambda: tree([-1], prefix=-1), ValueError, "prefix is a number of positions, at least 0; got -1"),
        (lambda: tree([-1], prefix=torch.ones(2)), TypeError, "prefix are integers; got torch.float32"),
        (lambda: tree([-1], prefix=torch.tensor(0.5)), TypeError, "prefix are integers; got torch.float32"),
        (lambda: tree([-1], prefix=[2, -3]), ValueError, "prefix are numbers of positions, at least 0; got -3"),
        (lambda: tree([[-1], [-1]], prefix=[2, 3, 5]), ValueError, "parents has 2 batch rows and prefix has 3"),
        (lambda: beams([]), ValueError, "the pointers of each step; got no step"),
        (lambda: beams([[0, 0]]), ValueError, r"-1 in the first step; got \[0, 0\] in step 0"),
        (lambda: beams([[-1, -1], [2]]), ValueError, r"beams of the step before, 0 to 1; got \[2\] in step 1"),
        (lambda: beams([[-1], []]), ValueError, r"parents are integers, at least one; got \[\]"),
        (lambda: beams([torch.tensor(-1)]), ValueError, r"shape \(beams,\) or \(B, beams\); got \(\)"),
        (
            lambda: beams([[-1, -1], torch.zeros(3, 2).long()]),
            ValueError,
            r"\(B, beams\) in each; got \(2,\) and \(3, 2\)",
        ),
        (lambda: mixed_modal(torch.tensor([0.5])), TypeError, "modality_ids are integers; got torch.float32"),
        (lambda: mixed_modal(torch.zeros(2, 3, 5).long()), ValueError, r"shape \(L,\) or \(B, L\); got \(2, 3, 5\)"),
        (lambda: flamingo([True]), TypeError, "tokens_per_media= or media_ids=, one of them; got neither"),
        (lambda: flamingo([True], tokens_per_media=2, media_ids=[0]), TypeError, "got both"),
        (
            lambda: flamingo(torch.tensor([1, 0]), tokens_per_media=2),
            TypeError,
            "True = an image stands here; got torch.int64",
        ),
        (lambda: flamingo(FLAGS[None], tokens_per_media=2), ValueError, r"shape \(Q,\) or \(B, Q\); got \(1, 2, 3\)"),
        (lambda: flamingo(FLAGS, tokens_per_media=0), ValueError, "tokens_per_media is .* at least 1; got 0"),
        (
            lambda: flamingo(FLAGS, media_ids=torch.zeros(1, 1, 1).long()),
            ValueError,
            r"shape \(K,\) or \(B, K\); got \(1, 1, 1\)",
        ),
        (lambda: from_dense(FLAGS.long()), TypeError, "table is a bool tensor, True = may attend; got torch.int64"),
        (lambda: from_dense(["a"]), TypeError, "table are bools, a tensor or a list of them; got"),
        (lambda: from_dense(FLAGS[0]), ValueError, r"shape \(Q, K\), with B or B, H in front; got \(3,\)"),
        (lambda: from_dense(FLAGS[:0]), ValueError, r"got \(0, 3\)"),
        (
            lambda: from_blocks(FLAGS.float(), 2),
            TypeError,
            "tiles is a bool tensor, True = may attend; got torch.float32",
        ),
        (lambda: from_blocks(FLAGS, 0), ValueError, "block_size is a number of positions, at least 1; got 0"),
        (lambda: from_blocks(FLAGS, (1, 2, 3)), ValueError, r"each of the 2 axes; got \(1, 2, 3\)"),
        (lambda: top_k_blocks(torch.tensor([0, 1]), 2), ValueError, r"shape \(query blocks, k\), .* got \(2,\)"),
        (lambda: top_k_blocks(FLAGS, 2), TypeError, "indices are integers; got torch.bool"),
        (lambda: top_k_blocks([[0, -2]], 2), ValueError, r"-1 \(none\) to 0; got values from -2 to 0"),
        (lambda: top_k_blocks([[0, 5]], 2, key_blocks=5), ValueError, r"-1 \(none\) to 4; got values from 0 to 5"),
        (lambda: top_k_blocks([[0]], 2, key_blocks=0), ValueError, "key_blocks is .* at least 1; got 0"),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (mixed_modal([-1, 0, 0]), "a table with 3 positions, and there are 5 queries"),
        (flamingo([True] * 3, tokens_per_media=2), "a table with 3 positions, and there are 5 queries"),
        (from_dense(torch.ones(5, 3, dtype=torch.bool)), "a table with 3 positions, and there are 7 keys"),
        (from_dense(torch.ones(1, 7, dtype=torch.bool)), "a table with 1 positions, and there are 5 queries"),
    ],
)
def test_tables_are_for_the_positions_that_they_have(mask, words):
    with pytest.raises(ValueError, match=words):
        mask.dense(5, 7)
