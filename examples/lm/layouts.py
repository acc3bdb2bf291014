"""The sequences of one packed row as the batches of a layout, each of at most as many positions as the row has."""

from dataclasses import dataclass
from typing import Any, Literal

import maskloom as loom
from maskloom.batches import Batch, Collator

Layout = Literal["packed", "padded", "sdpa-dense"]
IGNORED = -100
"""The target of a position that predicts nothing."""
Sequence = dict[str, Any]
"""Token ids under ``input_ids``, and other fields."""


@dataclass(frozen=True)
class MicroBatches:
    """The ``collate_fn`` of the loader: the same sequences in every layout.

    packed: one row of ``capacity`` positions. padded and sdpa-dense: rows of similar length (``by_length=False``: in the order
    in which they were drawn), padded to the longest of them; as many batches as it takes to keep to ``capacity`` positions
    in each.
    """

    layout: Layout
    capacity: int
    by_length: bool = True

    def __call__(self, sequences: list[Sequence]) -> list[Batch]:
        if self.layout == "packed":
            return [Collator(loom.causal, packed=True, length=self.capacity, blocks=False)(sequences)]
        ordered = sorted(sequences, key=_length) if self.by_length else sequences
        return [Collator(loom.causal, blocks=False)(rows) for rows in _within(ordered, self.capacity)]


def mask_of(layout: Layout, batch: Batch) -> Any:
    """What attention takes for the mask of a batch, made once for all blocks of the model.

    packed, padded: its block mask. sdpa-dense: its table.
    """
    assert batch.mask is not None
    rows, length = batch.ids.shape
    if layout != "sdpa-dense":
        return loom.block_mask(batch.mask, length, length)
    return batch.mask.dense(length, length, batch=rows)


def _within(sequences: list[Sequence], positions: int) -> list[list[Sequence]]:
    """The sequences in order, in batches that need at most so many positions when they are padded to their longest."""
    batches: list[list[Sequence]] = [[]]
    longest = 0
    for one in sequences:
        longest = max(longest, _length(one))
        if longest * (len(batches[-1]) + 1) > positions and batches[-1]:
            batches.append([])
            longest = _length(one)
        batches[-1].append(one)
    return batches


def _length(sequence: Sequence) -> int:
    return len(sequence["input_ids"])
