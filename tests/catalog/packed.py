"""Masks of packed cross-attention, of each document's own number, and of graphs: name → (factory, Q, K). Tables fit B=3."""

from collections.abc import Callable

import torch

from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.blockwise import chunked
from maskloom.masks.patterns.graphs import from_edges
from maskloom.masks.patterns.packed.cross_documents import documents_lower_right
from maskloom.masks.patterns.packed.segments import documents
from maskloom.masks.patterns.packed.within import per_document, within
from maskloom.masks.patterns.position import prefix, sinks
from maskloom.masks.patterns.relative import causal, window
from tests.catalog.sequences import IDS_BY_ROW, KV_LEN, POSITION_IDS, Q_LEN

BATCH = 3
OFFSETS, KV_OFFSETS = [0, 4, 4, 6, 11], [0, 2, 7, 7, 15]  # one without queries, one without keys
EDGES = torch.rand(BATCH, Q_LEN, KV_LEN, generator=torch.Generator().manual_seed(5)) < 0.3


def of_pairs(table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The edges of a table (Q, K), in another order."""
    q_idx, kv_idx = table.nonzero().flip(0).T
    return q_idx, kv_idx


def of_rows(tables: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The edges of tables (B, Q, K), filled up with -1."""
    pairs = [of_pairs(table) for table in tables]
    sides = [
        torch.nn.utils.rnn.pad_sequence(side, batch_first=True, padding_value=-1) for side in zip(*pairs, strict=True)
    ]
    return sides[0], sides[1]


WIDTHS = torch.tensor([2, 0, 5, 1])


def own_width(b, h, q_idx, kv_idx, document):
    return (q_idx - kv_idx).abs() <= WIDTHS[document]


def crossed():
    return documents(offsets=OFFSETS, kv_offsets=KV_OFFSETS, length=Q_LEN, kv_length=KV_LEN)


_FACTORIES: dict[str, Callable[[], Mask]] = {
    "documents_cross": crossed,
    "documents_cross_ids": lambda: documents(IDS_BY_ROW[:, :Q_LEN], kv_ids=IDS_BY_ROW.flip(0)),
    "documents_cross_ids_for_all": lambda: documents(IDS_BY_ROW[2, :Q_LEN], kv_ids=IDS_BY_ROW[0]),
    "documents_lower_right": lambda: documents_lower_right(OFFSETS, KV_OFFSETS, length=Q_LEN),
    "documents_lower_right_of_equal": lambda: documents_lower_right(OFFSETS, OFFSETS, length=Q_LEN),
    "within_cross": lambda: within(crossed(), causal & chunked(3) | sinks(1)),
    "within_cross_ids": lambda: within(documents(IDS_BY_ROW[:, :Q_LEN], kv_ids=IDS_BY_ROW.flip(0)), window(back=1)),
    "within_lower_right": lambda: within(crossed(), window(back=2) | prefix(1), lower_right=True),
    "within_per_document": lambda: within(
        documents(offsets=[0, 4, 4, 11], length=KV_LEN), per_document([causal, window(back=1), prefix(2)])
    ),
    "within_per_document_lower_right": lambda: within(
        crossed(), per_document([causal, prefix(1), causal, window(back=3)]), lower_right=True
    ),
    "within_document_function": lambda: within(documents(IDS_BY_ROW), own_width),
    "within_document_function_counted": lambda: within(documents(position_ids=POSITION_IDS), own_width),
    "from_edges": lambda: from_edges(*of_pairs(EDGES[0])),
    "from_edges_by_row": lambda: from_edges(*of_rows(EDGES)),
    "from_edges_sparse": lambda: from_edges(EDGES[1].to_sparse()),
    "from_edges_of_few": lambda: from_edges([0, 2], [3, 1]),
    "from_no_edges": lambda: from_edges(torch.zeros(0).long(), torch.zeros(0).long()),
}

MASKS = {name: (factory, Q_LEN, KV_LEN) for name, factory in _FACTORIES.items()}
