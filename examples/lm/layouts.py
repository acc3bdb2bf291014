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

    packed: one row of ``capacity`` positions. padded and sdpa-dense: rows of similar length, padded to the longest of them;
    as many batches as it takes to keep to ``capacity`` positions in each.
    """

    layout: Layout
    capacity: int

    def __call__(self, sequences: list[Sequence]) -> list[Batch]:
        if self.layout == "packed":
            return [Collator(loom.causal, packed=True, length=self.capacity, blocks=False)(sequences)]
        return [Collator(loom.causal, blocks=False)(rows) for rows in _of_similar_length(sequences, self.capacity)]


def _of_similar_length(sequences: list[Sequence], positions: int) -> list[list[Sequence]]:
    """The sequences, shortest first, in as few batches as keep to so many positions."""
    batches: list[list[Sequence]] = [[]]
    for one in sorted(sequences, key=lambda sequence: len(sequence["input_ids"])):
        if len(one["input_ids"]) * (len(batches[-1]) + 1) > positions and batches[-1]:
            batches.append([])
        batches[-1].append(one)
    return batches
