"""The same sequences in each layout."""

import pytest
import torch
from lm.layouts import IGNORED, MicroBatches

LENGTHS = [3, 17, 2, 5, 29, 7]


def sequences():
    return [{"input_ids": torch.arange(length) + 100 * at, "place": str(at)} for at, length in enumerate(LENGTHS)]


def targets_of(batches):
    """Each target with the token before it."""
    found = []
    for batch in batches:
        there = batch.targets != IGNORED
        found += zip(batch.inputs[there].tolist(), batch.targets[there].tolist(), strict=True)
    return sorted(found)


def test_packed_is_one_row():
    (batch,) = MicroBatches("packed", 64)(sequences())
    assert batch.inputs.shape == (1, 64) and batch.fields["place"] == list("012345")


@pytest.mark.parametrize("layout", ["padded", "sdpa-dense"])
def test_padded_batches_keep_to_the_capacity(layout):
    batches = MicroBatches(layout, 31)(sequences())
    assert [batch.lengths.tolist() for batch in batches] == [[2, 3, 5, 7], [17], [29]]
    assert all(batch.inputs.numel() <= 31 for batch in batches)
    assert [place for batch in batches for place in batch.fields["place"]] == list("203514")


def test_padded_batches_may_keep_the_order():
    batches = MicroBatches("padded", 31, by_length=False)(sequences())
    assert [batch.lengths.tolist() for batch in batches] == [[3], [17], [2, 5], [29], [7]]


def test_every_layout_has_the_same_targets():
    found = [targets_of(MicroBatches(layout, 64)(sequences())) for layout in ("packed", "padded", "sdpa-dense")]
    assert found[0] == found[1] == found[2] and len(found[0]) == sum(LENGTHS) - len(LENGTHS)
