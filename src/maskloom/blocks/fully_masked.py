"""Find the queries that attend to no key, and so have output 0. Exact, where tables only describe tiles."""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.open_tiles import CHUNK
from maskloom.blocks.tile_states import FULL, PARTIAL, tile_states
from maskloom.core.block_masks import checked_block_mask
from maskloom.program.elements import Elements, evaluate, widest
from maskloom.program.mask_program import program_of


@torch.no_grad()
def fully_masked_queries(block_mask: BlockMask) -> Tensor:
    """Which queries attend to no key: bool (B or 1, H or 1, Q), for the batch rows and heads of the tables.

    A query with a full tile has keys. For the other queries mask_mod is evaluated in their partial tiles, in bounded
    chunks. Attention gives a fully masked query output 0. This waits for the device.
    """
    states, q_len = tile_states(checked_block_mask(block_mask)), block_mask.seq_lengths[0]
    has_full = (states == FULL).any(-1)
    seen = has_full.repeat_interleave(block_mask.BLOCK_SIZE[0], -1)[..., :q_len].clone()
    tiles = ((states == PARTIAL) & ~has_full[..., None]).nonzero()
    program = program_of(block_mask.mask_mod, tiles.device).program
    q_side, kv_side = map(min, block_mask.BLOCK_SIZE, block_mask.seq_lengths)
    for some in tiles.split(max(1, CHUNK // (q_side * kv_side * widest(program)))):
        elements = _all_elements(some, block_mask)
        sees = evaluate(program, block_mask.mask_mod, elements).any(-1).expand(elements.q_idx.shape)
        tile, place = sees.nonzero(as_tuple=True)
        seen[elements.b[tile], elements.h[tile], elements.q_idx[tile, place]] = True
    return ~seen


def _all_elements(tiles: Tensor, block_mask: BlockMask) -> Elements:
    """All positions of tiles (rows of b, h, query tile, key tile); a tile that the end cuts repeats its last position."""
    b, h, *places = tiles.unbind(1)
    positions = [
        (place[:, None] * block + torch.arange(min(block, length), device=tiles.device)).clamp(max=length - 1)
        for place, block, length in zip(places, block_mask.BLOCK_SIZE, block_mask.seq_lengths, strict=True)
    ]
    return Elements(b, h, *positions)
