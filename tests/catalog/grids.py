"""Masks of grids, of generation, and given as tables: ``{name: (factory, q_len, kv_len)}``; every law runs on each."""

from collections.abc import Callable

import torch

from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.diffusion import block_diffusion
from maskloom.masks.patterns.from_tables import from_blocks, from_dense, top_k_blocks
from maskloom.masks.patterns.generation import beams, tree
from maskloom.masks.patterns.grids.grid import axial, shifted_windows
from maskloom.masks.patterns.grids.layout import grid_tiles, morton, tiled
from maskloom.masks.patterns.grids.video import spatial, temporal
from maskloom.masks.patterns.grids.windows import grid_window, neighbourhood
from maskloom.masks.patterns.multimodal import flamingo, mixed_modal
from maskloom.masks.patterns.packed.segments import documents

BATCH, HEADS = 3, 2


def flags(*shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(len(shape))) < 0.4


def integers(least: int, most: int, *shape: int) -> torch.Tensor:
    return torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(most))


# a random tree for each batch row: a node's parent is one before it, or none
PARENTS = (integers(0, 999, BATCH, 11) % (torch.arange(11) + 1)) - 1
BEAMS = [[-1, -1, -1], [2, 0, 0, 2], [3, 3], [1, 0, 1]]
BEAMS_BY_ROW = [torch.full((BATCH, 2), -1), integers(0, 1, BATCH, 5), integers(0, 4, BATCH, 3)]
DOCUMENTS = torch.tensor([[0] * 5 + [1] * 3 + [2] * 3, [-1] * 2 + [4] * 1 + [0] * 6 + [-1] * 2, [7] * 4 + [3] * 7])
TEXT_AND_IMAGES = torch.tensor([-1, 2, 2, 2, 5, 5, -1, -3, 2, 2, -1, 0, 0])

MASKS: dict[str, tuple[Callable[[], Mask], int, int]] = {
    "neighbourhood": (lambda: neighbourhood((3, 5), 3), 15, 15),
    "neighbourhood_1d": (lambda: neighbourhood((11,), 5), 11, 13),
    "neighbourhood_even": (lambda: neighbourhood((3, 5), (2, 4)), 15, 17),
    "neighbourhood_3d": (lambda: neighbourhood((2, 3, 5), (1, 3, 2)), 30, 30),
    "neighbourhood_dilated": (lambda: neighbourhood((5, 7), (2, 3), dilation=(2, 1)), 35, 35),
    "neighbourhood_dilated_3d": (lambda: neighbourhood((2, 3, 5), (1, 1, 2), dilation=(2, 3, 2)), 30, 30),
    "neighbourhood_strided": (lambda: neighbourhood((5, 7), (3, 4), stride=(2, 3)), 35, 37),
    "neighbourhood_strided_dilated": (lambda: neighbourhood((11, 3), (5, 3), dilation=(2, 1), stride=(4, 3)), 33, 33),
    "neighbourhood_causal": (lambda: neighbourhood((3, 5), (2, 3), causal=(True, False)), 15, 17),
    "neighbourhood_causal_strided": (lambda: neighbourhood((11,), 5, stride=3, causal=True), 11, 13),
    "neighbourhood_causal_all": (
        lambda: neighbourhood((7, 5), (3, 2), dilation=(2, 1), stride=(2, 1), causal=(True, True)),
        35,
        35,
    ),
    "grid_window_halo": (lambda: grid_window((6, 7), (4, 5), stride=(2, 3)), 42, 43),
    "grid_window_causal": (lambda: grid_window((5, 3), 3, stride=(2, 1), causal=(True, False)), 15, 17),
    "grid_window": (lambda: grid_window((3, 5), 3), 15, 17),
    "grid_window_wide": (lambda: grid_window((2, 3), (5, 4)), 6, 6),
    "grid_window_dilated": (lambda: grid_window((5, 7), 3, dilation=(1, 3)), 35, 35),
    "grid_window_3d": (lambda: grid_window((2, 3, 5), (2, 1, 3)), 30, 31),
    "axial_rows": (lambda: axial((3, 5), axis=1), 15, 15),
    "axial_columns": (lambda: axial((3, 5), axis=0), 17, 15),
    "axial_frames": (lambda: axial((2, 3, 5), axis=(1, 2)), 30, 30),
    "shifted_windows": (lambda: shifted_windows((4, 6), 2, shift=1), 24, 24),
    "shifted_windows_not_shifted": (lambda: shifted_windows((3, 5), (2, 3)), 15, 17),
    "shifted_windows_3d": (lambda: shifted_windows((2, 3, 5), (2, 3, 2), shift=(1, 2, 0)), 30, 30),
    "tiled": (lambda: tiled(neighbourhood((4, 6), 3), (2, 3)), 24, 24),
    "tiled_3d": (lambda: tiled(axial((2, 3, 5), axis=(0, 2)), (2, 1, 5)), 30, 31),
    "morton": (lambda: morton(neighbourhood((3, 5), 3)), 15, 17),
    "morton_square": (lambda: morton(grid_window((4, 4), 3)), 16, 16),
    "morton_3d": (lambda: morton(axial((2, 3, 5), axis=0)), 30, 30),
    "grid_tiles": (lambda: grid_tiles((4, 10), 2, (1, 3)), 40, 41),
    "grid_tiles_even": (lambda: grid_tiles((4, 6), (2, 3), (2, 1)), 24, 24),
    "grid_tiles_3d": (lambda: grid_tiles((2, 3, 10), (1, 3, 2), (1, 1, 3)), 60, 60),
    "spatial": (lambda: spatial(3, 5, width=7, prompt=2), 17, 19),
    "spatial_sinks": (lambda: spatial(3, 5, width=5, sink_frames=1), 15, 15),
    "temporal": (lambda: temporal(3, 5, width=2, prompt=2), 17, 19),
    "temporal_places": (lambda: temporal(3, 5, width=1), 15, 15),
    "block_diffusion": (lambda: block_diffusion(6, 3), 12, 13),
    "block_diffusion_cut": (lambda: block_diffusion(7, 3), 14, 14),
    "block_diffusion_documents": (lambda: block_diffusion(block_size=2, documents=documents(DOCUMENTS[0])), 22, 22),
    "block_diffusion_documents_by_row": (lambda: block_diffusion(11, 3, documents=documents(DOCUMENTS)), 22, 21),
    "block_diffusion_paired": (lambda: block_diffusion(11, 2, documents=documents(DOCUMENTS[1]), paired=True), 22, 22),
    "block_diffusion_paired_by_row": (
        lambda: block_diffusion(block_size=3, documents=documents(DOCUMENTS), paired=True),
        21,
        22,
    ),
    "block_diffusion_counted": (
        lambda: block_diffusion(block_size=2, documents=documents(position_ids=[3, 4, 5, 6, 0, 1, 2])),
        14,
        14,
    ),
    "block_diffusion_packed": (
        lambda: block_diffusion(7, 2, documents=documents(offsets=[0, 3, 3, 6], length=7), paired=True),
        14,
        13,
    ),
    "tree": (lambda: tree(PARENTS[0]), 11, 13),
    "tree_of_a_list": (lambda: tree([-1, 3, -1, 0, 1], prefix=2), 8, 9),
    "tree_by_row": (lambda: tree(PARENTS, prefix=5), 16, 17),
    "tree_prefix_tensor": (lambda: tree(PARENTS, prefix=torch.tensor(3)), 14, 15),
    "tree_prefix_by_row": (lambda: tree(PARENTS[1], prefix=[3, 0, 5]), 17, 17),
    "tree_by_row_prefix_by_row": (lambda: tree(PARENTS, prefix=torch.tensor([2, 5, 3])), 14, 15),
    "beams_prefix_by_row": (lambda: beams(BEAMS, prefix=[3, 1, 2]), 15, 17),
    "beams": (lambda: beams(BEAMS, prefix=3), 15, 17),
    "beams_by_row": (lambda: beams(BEAMS_BY_ROW), 10, 10),
    "mixed_modal": (lambda: mixed_modal(TEXT_AND_IMAGES), 13, 17),
    "mixed_modal_by_row": (lambda: mixed_modal(integers(-1, 1, BATCH, 17)), 17, 17),
    "mixed_modal_flags": (lambda: mixed_modal(flags(BATCH, 17)), 13, 17),
    "flamingo": (lambda: flamingo([False, True, False, False, True, True, False], tokens_per_media=3), 7, 11),
    "flamingo_by_row": (lambda: flamingo(flags(BATCH, 13), tokens_per_media=5), 13, 17),
    "flamingo_ids": (lambda: flamingo(flags(13), media_ids=integers(-1, 3, BATCH, 11)), 13, 11),
    "flamingo_all": (
        lambda: flamingo([False, True, False, False, True, True, False], tokens_per_media=3, all_before=True),
        7,
        11,
    ),
    "flamingo_all_by_row": (
        lambda: flamingo(flags(BATCH, 13), media_ids=integers(-1, 3, BATCH, 11), all_before=True),
        13,
        11,
    ),
    "from_dense": (lambda: from_dense(flags(7, 11)), 7, 11),
    "from_dense_by_row": (lambda: from_dense(flags(BATCH, 7, 11)), 7, 11),
    "from_dense_by_head": (lambda: from_dense(flags(1, HEADS, 7, 11)), 7, 11),
    "from_dense_by_both": (lambda: from_dense(flags(BATCH, HEADS, 7, 11)), 7, 11),
    "from_dense_for_all": (lambda: from_dense(flags(1, 1, 7, 11)), 7, 11),
    "from_blocks": (lambda: from_blocks(flags(2, 5), 3), 7, 17),
    "from_blocks_by_row": (lambda: from_blocks(flags(BATCH, 1, 2, 5), (5, 2)), 7, 10),
    "from_blocks_by_both": (lambda: from_blocks(flags(BATCH, HEADS, 2, 5), (5, 2)), 11, 10),
    "top_k_blocks": (lambda: top_k_blocks(integers(-1, 4, BATCH, HEADS, 3, 2), (5, 3), key_blocks=5), 13, 17),
    "top_k_blocks_by_query": (lambda: top_k_blocks(integers(-1, 2, BATCH, 11, 2), (1, 5)), 11, 13),
}
