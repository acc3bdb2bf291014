"""Masks by what they are made from: name → (constructor, tensors, what is written into those later, Q, K). Tables fit B=3, H=2."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import maskloom as loom

BATCH, HEADS, Q, K = 3, 2, 13, 17


def flags(*shape: int, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.4


def ids(*shape: int, seed: int, least: int = -1, most: int = 2) -> Tensor:
    return torch.randint(least, most + 1, shape, generator=torch.Generator().manual_seed(seed))


def pieces(*shape: int, seed: int) -> Tensor:
    """Ids of documents in one piece each, padding behind them."""
    numbers = ids(*shape, seed=seed, least=0, most=3).sort(-1).values
    return torch.where(torch.arange(shape[-1]) < 11 + seed % 3, numbers, -1)


def positions(*shape: int, seed: int) -> Tensor:
    return torch.arange(shape[-1]) % torch.randint(
        2, 7, (*shape[:-1], 1), generator=torch.Generator().manual_seed(seed)
    )


def parents(*shape: int, seed: int) -> Tensor:
    return ids(*shape, seed=seed, least=0, most=999) % (torch.arange(shape[-1]) + 1) - 1


Row = tuple[Callable[..., Any], list[Tensor], list[Tensor]]


def both(make: Callable[..., Any], draw: Callable[..., Tensor], *shapes: tuple[int, ...], **options: Any) -> Row:
    """A mask of tensors that are drawn, and drawn anew."""
    drawn = [[draw(*shape, seed=seed + place, **options) for place, shape in enumerate(shapes)] for seed in (0, 7)]
    return make, drawn[0], drawn[1]


OFFSETS = [torch.tensor([0, 3, 8, 13])], [torch.tensor([0, 6, 7, 11])]
LENS = [torch.tensor([5, 0, 17])], [torch.tensor([11, 7, 2])]
VISIBLE = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()

SOURCES: dict[str, Row] = {
    "lengths": (loom.lengths, *LENS),
    "lengths_cross": (loom.lengths, LENS[0] * 2, [LENS[1][0], LENS[0][0].flip(0)]),
    "real": both(loom.real, flags, (BATCH, K)),
    "real_cross": both(loom.real, flags, (BATCH, Q), (BATCH, K)),
    "real_from_ones": both(loom.real, ids, (BATCH, K), least=0, most=1),
    "real_from_ones_cross": both(loom.real, ids, (BATCH, Q), (BATCH, K), least=0, most=1),
    "padding": both(loom.padding, flags, (BATCH, K)),
    "padding_cross": both(loom.padding, flags, (BATCH, Q), (BATCH, K)),
    "key_padding": both(loom.key_padding, flags, (BATCH, K)),
    "prefix": (loom.prefix, *LENS),
    "key_range": (loom.masks.key_range, [torch.tensor([0, 3, 5]), torch.tensor([17, 3, 11])],
                  [torch.tensor([0, 1, 2]), torch.tensor([18, 7, 15])]),
    "query_range": (loom.masks.query_range, [torch.tensor([0, 3, 5]), torch.tensor([17, 3, 11])],
                    [torch.tensor([0, 1, 2]), torch.tensor([18, 7, 15])]),
    "global_tokens": both(loom.masks.global_tokens, flags, (BATCH, K)),
    "documents": both(loom.documents, ids, (K,)),
    "documents_by_row": both(loom.documents, ids, (BATCH, K)),
    "documents_packed": (lambda offsets: loom.documents(offsets=offsets, length=K), *OFFSETS),
    "documents_counted": both(lambda table: loom.documents(position_ids=table), positions, (K,)),
    "documents_counted_by_row": both(lambda table: loom.documents(position_ids=table), positions, (BATCH, K)),
    "within_ids": both(lambda table: loom.masks.within(loom.documents(table), loom.masks.chunked(3)), pieces, (BATCH, K)),
    "within_offsets": (
        lambda offsets: loom.masks.within(loom.documents(offsets=offsets, length=K), loom.sinks(1)), *OFFSETS
    ),
    "within_counted": both(
        lambda table: loom.masks.within(loom.documents(position_ids=table.int()), loom.sinks(1)), positions, (BATCH, K)
    ),
    "within_and_prefix": (
        lambda offsets, n: loom.masks.within(loom.documents(offsets=offsets, length=K), loom.prefix(n)),
        [*OFFSETS[0], torch.tensor([1, 0, 3])], [*OFFSETS[1], torch.tensor([2, 5, 1])],
    ),
    "document_prefix": (
        lambda offsets, n: loom.masks.document_prefix(loom.documents(offsets=offsets, length=K), n),
        [*OFFSETS[0], torch.tensor([1, 4, 2])], [*OFFSETS[1], torch.tensor([3, 1, 5])],
    ),
    "document_prefix_of_ids": (
        lambda table, n: loom.masks.document_prefix(loom.documents(table), n),
        [pieces(BATCH, K, seed=0), torch.tensor([1, 4, 2, 3])], [pieces(BATCH, K, seed=2), torch.tensor([3, 1, 5, 0])],
    ),
    "shared_prefix": (
        lambda prompt, continuations: loom.masks.shared_prefix(prompt, continuations, length=K),
        [torch.tensor([3, 0, 7]), torch.tensor([[5, 2], [9, 4], [0, 4]])],
        [torch.tensor([1, 2, 3]), torch.tensor([[2, 2], [1, 3], [6, 4]])],
    ),
    "shared_prefix_of_ids": both(lambda table: loom.masks.shared_prefix(ids=table), ids, (BATCH, K)),
    "turns": (
        lambda table, rule: loom.masks.turns(table, visible=rule),
        [ids(BATCH, K, seed=0), VISIBLE], [ids(BATCH, K, seed=2), VISIBLE.T],
    ),
    "turns_narrow": (
        lambda table, rule: loom.masks.turns(table, visible=rule),
        [ids(BATCH, K, seed=0).int(), VISIBLE], [ids(BATCH, K, seed=2).int(), VISIBLE.T],
    ),
    "turns_packed": (
        lambda offsets, rule: loom.masks.turns(offsets=offsets, visible=rule, length=K),
        [*OFFSETS[0], VISIBLE], [*OFFSETS[1], VISIBLE.T],
    ),
    "shifted": (
        lambda lens, offset: loom.masks.shifted(loom.causal & loom.lengths(lens), q_offset=offset, kv_offset=offset),
        [*LENS[0], torch.tensor([0, -4, 2])], [*LENS[1], torch.tensor([-2, 1, -1])],
    ),
    "tree": both(loom.masks.tree, parents, (BATCH, 11)),
    "tree_and_prefix": (
        lambda nodes, prefix: loom.masks.tree(nodes, prefix=prefix),
        [parents(11, seed=0), torch.tensor(3)], [parents(11, seed=1), torch.tensor(5)],
    ),
    "block_diffusion": both(
        lambda table: loom.masks.block_diffusion(block_size=2, documents=loom.documents(table)), pieces, (BATCH, 9)
    ),
    "block_diffusion_paired": both(
        lambda table: loom.masks.block_diffusion(block_size=2, documents=loom.documents(table), paired=True), pieces, (9,)
    ),
    "tree_by_prefixes": (
        lambda nodes, prefix: loom.masks.tree(nodes, prefix=prefix),
        [parents(11, seed=0), torch.tensor([3, 0, 5])], [parents(11, seed=1), torch.tensor([5, 2, 1])],
    ),
    "beams": (
        lambda first, second: loom.masks.beams([[-1, -1], first, second], prefix=2),
        [torch.tensor([0, 1, 0]), torch.tensor([2, 0])], [torch.tensor([1, 1, 0]), torch.tensor([0, 1])],
    ),
    "mixed_modal": both(loom.masks.mixed_modal, ids, (BATCH, K)),
    "mixed_modal_flags": both(loom.masks.mixed_modal, flags, (K,)),
    "flamingo": both(lambda marks: loom.masks.flamingo(marks, tokens_per_media=3), flags, (BATCH, Q)),
    "flamingo_ids": (
        lambda marks, media: loom.masks.flamingo(marks, media_ids=media),
        [flags(Q, seed=0), ids(BATCH, K, seed=0)], [flags(Q, seed=7), ids(BATCH, K, seed=7)],
    ),
    "from_dense": both(loom.masks.from_dense, flags, (BATCH, 1, Q, K)),
    "from_dense_by_head": both(loom.masks.from_dense, flags, (1, HEADS, Q, K)),
    "from_blocks": both(lambda tiles: loom.masks.from_blocks(tiles, (5, 3)), flags, (BATCH, 3, 6)),
    "top_k_blocks": both(
        lambda chosen: loom.masks.top_k_blocks(chosen, (5, 3), key_blocks=6), ids, (BATCH, HEADS, 3, 2), most=5
    ),
    "per_head": (lambda lens: loom.masks.per_head([loom.lengths(lens), loom.causal]), *LENS),
    "per_batch": (lambda lens: loom.masks.per_batch([loom.lengths(lens), loom.causal, loom.prefix(2)]), *LENS),
    "transposed": (lambda lens: loom.masks.transposed(loom.lengths(lens)), *LENS),
    "repeat_heads": (lambda lens: loom.masks.repeat_heads(loom.masks.per_head([loom.prefix(lens), loom.causal]), 2), *LENS),
    "two_tables": (
        lambda offsets, lens: loom.documents(offsets=offsets, length=K) & loom.lengths(lens) | loom.sinks(1),
        [*OFFSETS[0], *LENS[0]], [*OFFSETS[1], *LENS[1]],
    ),
}  # fmt: skip
