"""Masks of one sequence and of packed ones: every law, every picture, every error, and plain loops as oracles."""

import pytest
import torch
from torch.nn.attention import flex_attention as flex

import maskloom as loom
from maskloom.masks import arranged, position, relative, segments
from maskloom.testing import check_mask
from tests.blocks.random_masks import differing
from tests.catalog import sequences
from tests.catalog.sequences import IDS_BY_ROW, MASKS, POSITION_IDS, POSITION_IDS_BY_ROW


@pytest.fixture(autouse=True)
def names_that_reprs_read(monkeypatch):
    for module in (relative, position, segments, arranged):
        for name, value in vars(module).items():
            if not name.startswith("_"):
                monkeypatch.setattr(loom, name, value, raising=False)


@pytest.mark.parametrize("name", MASKS)
def test_every_law(name):
    factory, q_len, kv_len = MASKS[name]
    check_mask(factory(), q_len=q_len, kv_len=kv_len)
