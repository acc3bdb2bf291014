"""Masks of one sequence and of packed ones: name → (factory, Q, K). Tables fit B=3, H=2."""

from collections.abc import Callable

import torch

from maskloom.batches.forms import pads_from_tokens
from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.blockwise import chunked, fixed, strided
from maskloom.masks.patterns.conversations import shared_prefix, turns
from maskloom.masks.patterns.packed.segments import document_prefix, documents
from maskloom.masks.patterns.packed.within import within
from maskloom.masks.patterns.padding import key_padding, lengths, padding, real
from maskloom.masks.patterns.position import global_tokens, key_range, prefix, query_range, random_blocks, sinks
from maskloom.masks.patterns.relative import (
    anticausal,
    band,
    causal,
    causal_lower_right,
    dilated,
    window,
    window_both_ways,
    window_counting_itself,
    window_reaching_back,
)
from maskloom.masks.patterns.shift import shifted
from maskloom.masks.patterns.transforms import per_batch, per_head, repeat_heads, transposed

BATCH, HEADS, Q_LEN, KV_LEN = 3, 2, 13, 17

POSITION_IDS = torch.tensor([0, 1, 2, 3, 0, 0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3])
POSITION_IDS_BY_ROW = torch.stack([POSITION_IDS, torch.arange(17), torch.arange(17) % 5])
IDS_BY_ROW = torch.tensor([[0] * 5 + [1] * 12, [2] * 3 + [0] * 7 + [1] * 7, [-1] * 4 + [0] * 2 + [1] * 9 + [-1] * 2])
CONTINUATIONS = torch.tensor([0] * 3 + [1] * 4 + [2] * 5 + [3] * 3 + [-1] * 2)
VISIBLE = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()
TOKENS = torch.randint(3, (BATCH, KV_LEN), generator=torch.Generator().manual_seed(2))
KV_TOKENS = torch.randint(4, (BATCH, KV_LEN), generator=torch.Generator().manual_seed(3))
GLOBAL = torch.rand(BATCH, KV_LEN, generator=torch.Generator().manual_seed(4)) < 0.15


def every_third_key(b, h, q_idx, kv_idx):
    return kv_idx % 3 == 0


_FACTORIES: dict[str, Callable[[], Mask]] = {
    "anticausal": lambda: anticausal,
    "window_counting_itself": lambda: window_counting_itself(4),
    "window_reaching_back": lambda: window_reaching_back(4),
    "window_both_ways": lambda: window_both_ways(3),
    "band": lambda: band(-5, -2),
    "band_ahead": lambda: band(-1, 7),
    "dilated": lambda: dilated(back=7, step=3),
    "dilated_ahead": lambda: dilated(back=2, ahead=9, step=2),
    "strided": lambda: strided(4),
    "strided_near": lambda: strided(4, factor=1),
    "strided_far": lambda: strided(4, factor=2),
    "fixed": lambda: fixed(5, summary=2),
    "fixed_near": lambda: fixed(5, factor=1),
    "fixed_far": lambda: fixed(5, summary=2, factor=2),
    "fixed_second_part": lambda: fixed(5, summary=2, factor=2, part=1),
    "fixed_parts": lambda: fixed(6, summary=2, part=[0, 2]),
    "chunked": lambda: chunked(5),
    "llama4": lambda: causal & chunked(5),
    "causal_lower_right": lambda: causal_lower_right(13, 17),
    "causal_lower_right_fewer_keys": lambda: causal_lower_right(13, 7),
    "key_range": lambda: key_range(3, 11),
    "key_range_by_row": lambda: key_range([0, 3, 5], [17, 3, 11]),
    "key_range_from_row": lambda: key_range([0, 3, 5], 11),
    "query_range": lambda: query_range(3, 11),
    "query_range_by_row": lambda: query_range(2, [2, 13, 7]),
    "global_first": lambda: global_tokens(2),
    "global_listed": lambda: global_tokens([7, 0, 11]),
    "global_marked": lambda: global_tokens(GLOBAL[0]),
    "global_by_row": lambda: global_tokens(GLOBAL),
    "longformer": lambda: window_both_ways(2) | global_tokens(1),
    "random_blocks": lambda: random_blocks(block_size=3, blocks=2, length=17, seed=7),
    "bigbird": lambda: (
        window_both_ways(2) | global_tokens(2) | random_blocks(block_size=5, blocks=1, length=17, seed=0)
    ),
    "real_cross": lambda: real(TOKENS[:, :13] > 0, KV_TOKENS > 0),
    "real_cross_from_ones": lambda: real((TOKENS[:, :13] > 0).long(), (KV_TOKENS > 0).int()),
    "padding_of_tokens": lambda: padding(pads_from_tokens(TOKENS, 0)),
    "padding_of_tokens_cross": lambda: padding(pads_from_tokens(TOKENS[:, :13], 0), pads_from_tokens(KV_TOKENS, 3)),
    "key_padding_of_tokens": lambda: key_padding(pads_from_tokens(KV_TOKENS, 3)),
    "documents_counted": lambda: documents(position_ids=POSITION_IDS),
    "documents_counted_by_row": lambda: documents(position_ids=POSITION_IDS_BY_ROW),
    "within_offsets": lambda: within(documents(offsets=[0, 4, 4, 11], length=17), chunked(3) & causal),
    "within_ids": lambda: within(documents(IDS_BY_ROW), causal & window(back=2) | sinks(1)),
    "within_counted": lambda: within(documents(position_ids=POSITION_IDS_BY_ROW), causal | prefix([1, 0, 3])),
    "within_function": lambda: within(documents(position_ids=POSITION_IDS), every_third_key),
    "document_prefix": lambda: document_prefix(documents(position_ids=POSITION_IDS), [2, 1, 0, 3]),
    "document_prefix_by_row": lambda: document_prefix(documents(IDS_BY_ROW), [[2, 7, 0], [1, 0, 3], [0, 5, 0]]),
    "prefix_lm_of_documents": lambda: (
        documents(offsets=[0, 5, 17]) & causal | document_prefix(documents(offsets=[0, 5, 17]), [3, 7])
    ),
    "shared_prefix": lambda: shared_prefix(3, [5, 2, 4], length=17),
    "shared_prefix_by_row": lambda: shared_prefix([3, 0, 7], [[5, 2, 4], [11, 6, 0], [0, 0, 10]]),
    "shared_prefix_of_ids": lambda: shared_prefix(ids=CONTINUATIONS),
    "shared_prefixes": lambda: (
        documents(torch.arange(17) // 9) & shared_prefix(ids=[0, 0, 0, 1, 1, 1, 2, 2, 2, 0, 0, 1, 1, 1, 2, 3, 3])
    ),
    "turns": lambda: turns(offsets=[0, 4, 9, 13], visible=VISIBLE, length=17),
    "turns_by_row": lambda: causal & turns(IDS_BY_ROW, visible=VISIBLE),
    "turns_of_kinds": lambda: turns(CONTINUATIONS.clamp(max=2), visible=VISIBLE.tolist()),
    "per_head": lambda: per_head([causal & window(back=3), lengths([5, 0, 17])]),
    "per_head_equal": lambda: per_head([window(back=3), window(back=3)]),
    "per_head_functions": lambda: per_head([every_third_key, causal]),
    "per_batch": lambda: per_batch([causal, chunked(5), causal | documents(IDS_BY_ROW)]),
    "per_head_per_batch": lambda: per_head([per_batch([causal, chunked(5), causal]), anticausal]),
    "transposed": lambda: transposed(prefix(3) & window(back=4)),
    "transposed_by_row": lambda: transposed(lengths([5, 0, 17], [7, 3, 11])),
    "repeat_heads": lambda: repeat_heads(per_head([causal, chunked(4)]), 2),
    "repeat_heads_given": lambda: repeat_heads(lambda b, h, q_idx, kv_idx: q_idx - kv_idx <= h, 2, heads=3),
    "shifted_by_row": lambda: shifted(causal & prefix([2, 11, 5]), q_offset=torch.tensor([0, 4, 2])),
    "shifted_keys_by_row": lambda: shifted(causal & chunked(5), q_offset=[0, -4, -1], kv_offset=[0, -4, -1]),
}

MASKS = {name: (factory, Q_LEN, KV_LEN) for name, factory in _FACTORIES.items()}
