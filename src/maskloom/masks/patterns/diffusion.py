"""Masks of block diffusion: a noised sequence and the clean one, for one document or for several packed documents."""

import torch
from torch import Tensor

from maskloom.batches.documents import positions_from_ids
from maskloom.core.checks import positive
from maskloom.masks.algebra import Mask, mask_dataclass
from maskloom.masks.lookups import among_first, at
from maskloom.masks.patterns.packed.segments import AnyDocuments, CountedDocuments, Segmented, positions_inside

__all__ = ["block_diffusion"]


@mask_dataclass
class BlockDiffusion(Mask):
    """See `block_diffusion`."""

    length: int | Tensor
    block_size: int | Tensor
    name = "block_diffusion"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_noised, kv_noised = q_idx < self.length, kv_idx < self.length
        q_block, kv_block = (q_idx % self.length) // self.block_size, (kv_idx % self.length) // self.block_size
        inside = among_first(q_idx, 2 * self.length) & among_first(kv_idx, 2 * self.length)
        return _sees(q_noised, kv_noised, q_block, kv_block) & inside


@mask_dataclass
class PackedBlockDiffusion(Segmented):
    """Block diffusion inside documents: the document of each position, its block in it, and whether it is noised.

    All tables are (2 * L,), or (B, 2 * L) if documents differ between rows. See `block_diffusion`.
    """

    runs_in_flash = True

    block_size: int
    paired: bool
    ids: Tensor
    block: Tensor
    is_noised: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self.ids_at(b, q_idx, kv_idx)
        noised = at(self.is_noised, b, q_idx), at(self.is_noised, b, kv_idx)
        seen = _sees(*noised, at(self.block, b, q_idx), at(self.block, b, kv_idx))
        return seen & (q_id == kv_id) & (q_id >= 0)

    def __repr__(self) -> str:
        *rows, positions = self.ids.shape
        ids = f"{str(self.ids.dtype).removeprefix('torch.')}{[*rows, positions // 2]}"
        return (
            f"block_diffusion(block_size={self.block_size}, documents=documents({ids}){', paired=True' * self.paired})"
        )


def block_diffusion(
    length: int | None = None,
    block_size: int | None = None,
    *,
    documents: AnyDocuments | None = None,
    paired: bool = False,
) -> BlockDiffusion | PackedBlockDiffusion:
    """The training mask of block diffusion, for the noised sequence followed by the clean one.

    ::

        block_diffusion(4, 2)   k0 k1 k2 k3 k4 k5 k6 k7
                     noised q0   x  x
                            q1   x  x
                            q2         x  x  x  x
                            q3         x  x  x  x
                      clean q4               x  x
                            q5               x  x
                            q6               x  x  x  x
                            q7               x  x  x  x

    A noised token sees its own noised block, and the clean blocks before that block; a clean token sees the clean
    blocks up to its own. Positions after both sequences see nothing. An incomplete last block is shorter.

    Pass packed documents as ``documents``: blocks start anew in each, and none sees another document. (With ``&
    documents(...)`` blocks would reach from one document into the next.) Padding between documents sees nothing: for
    rows of different lengths, use one document per row, with ids of -1 after it. All noised documents come first, and
    then all clean ones. With ``paired`` each noised document is followed by its clean one, as in packed sequences of
    such pairs::

        block_diffusion(block_size=2, documents=documents(offsets=[0, 1, 4]))   k0 k1 k2 k3 k4 k5 k6 k7
                                                          noised document 0 q0   x
                                                                 document 1 q1      x  x
                                                                            q2      x  x
                                                                            q3            x     x  x
                                                           clean document 0 q4               x
                                                                 document 1 q5                  x  x
                                                                            q6                  x  x
                                                                            q7                  x  x  x

    Source: Arriola et al. 2025 (BD3-LM); the three parts have its names in the code. Paired documents, each masked
    alone, as in the training of SDAR (Cheng et al. 2025).

    Args:
        length: L, the number of positions of the clean sequence, at least 1; the mask has twice as many. Optional with
            ``documents``.
        block_size: positions of a block, at least 1.
        documents: contiguous documents made by `documents`, for the L positions of the clean sequence. Tables of 2 * L
            positions are computed from them: later writes into their tensors do not change the mask.
        paired: whether each noised document is followed by its clean one.

    Raises:
        TypeError: not an int, neither length nor documents, no block size, documents of another kind. ValueError: below
            1, a length that differs from that of the documents, documents in several pieces (checked on the CPU only).
    """
    if block_size is None or (length is None and documents is None):
        missing = "block_size" if block_size is None else "length or documents"
        raise TypeError(f"block_diffusion takes length or documents, and block_size; got no {missing}")
    size = positive("block_size", block_size)
    if documents is None:
        return BlockDiffusion(positive("length", length), size)
    positions = positions_inside("block_diffusion", documents)
    if length is not None and length != positions.shape[-1]:
        raise ValueError(f"length is {length}, and the documents are for {positions.shape[-1]} positions")
    source, is_noised = _pairs(documents.ids) if paired else _halves(documents.ids)
    if isinstance(documents, CountedDocuments):
        positions = documents.position_ids.to(torch.int32)
    ids, block = (table.gather(-1, source) for table in (documents.ids, positions // size))
    return PackedBlockDiffusion(size, paired, ids, block, is_noised)


def _sees(q_noised: Tensor, kv_noised: Tensor, q_block: Tensor, kv_block: Tensor) -> Tensor:
    block_diagonal = q_noised & kv_noised & (q_block == kv_block)
    offset_block_causal = q_noised & ~kv_noised & (q_block > kv_block)
    block_causal = ~q_noised & ~kv_noised & (q_block >= kv_block)
    return block_diagonal | offset_block_causal | block_causal


def _halves(ids: Tensor) -> tuple[Tensor, Tensor]:
    """For 2 * L positions, the source among L positions, and whether it is noised: all noised ones come first."""
    places = torch.arange(2 * ids.shape[-1], device=ids.device).expand(*ids.shape[:-1], -1)
    return places % ids.shape[-1], places < ids.shape[-1]


def _pairs(ids: Tensor) -> tuple[Tensor, Tensor]:
    """`_halves` for pairs: the noised ones of a document, its clean ones, then the next document; also for padding."""
    inside = positions_from_ids(ids).long()
    runs = (inside == 0).cumsum(-1) - 1
    lengths = torch.zeros_like(runs).scatter_add(-1, runs, torch.ones_like(runs)).gather(-1, runs)
    positions = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    noised = 2 * positions - inside  # 2 * (start of the run) + position in the run
    both = torch.cat([positions, positions], -1)
    source = both.scatter(-1, torch.cat([noised, noised + lengths], -1), both)
    return source, torch.zeros_like(source, dtype=torch.bool).scatter(-1, noised, True)
