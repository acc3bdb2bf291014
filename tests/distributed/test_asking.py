"""The mask that `plan` is given."""

import pytest

import maskloom as loom
from maskloom.distributed.asking import checked

ALIKE = {"length": 37, "ranks": [3], "heads": (6, 2)}


def test_no_mask_is_everything():
    """As in `attend`: encoders have none."""
    asked = checked(None, **ALIKE)
    assert asked.mask == loom.masks.everything
    assert asked.digest == checked(loom.masks.everything, **ALIKE).digest


def test_a_block_mask_is_refused_by_name():
    with pytest.raises(TypeError, match="give the mask that this BlockMask was built of"):
        checked(loom.block_mask(loom.causal, 37, 37), **ALIKE)
