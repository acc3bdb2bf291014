"""Masks, score mods and block masks in files that torch.load reads without running code."""

import inspect
import io
import pickle

import pytest
import torch
from torch.nn.attention import flex_attention as flex
from torch.serialization import safe_globals

import maskloom as loom
from maskloom.core import captures
from maskloom.core.values import FrozenValue
from tests.blocks.random_masks import differing
from tests.catalog import EVERY
from tests.scores.all_scores import ALL as SCORES


def loaded(saved):
    file = io.BytesIO()
    torch.save(saved, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("name", EVERY)
def test_every_mask_loads_alone_and_in_a_block_mask(name):
    make, q_len, kv_len = EVERY[name]
    mask = make()
    if captures.holds_code(mask):
        pytest.skip("a function is not loaded")
    saved = {
        "mask": mask, "negated": ~mask, "joined": [loom.causal & mask, mask | loom.sinks(1), mask ^ loom.causal],
        "moved": (loom.masks.shifted(mask, q_offset=torch.tensor(1)), loom.masks.transposed(mask)),
    }  # fmt: skip
    blocks = loom.block_mask(mask, q_len, kv_len, device="cpu", block_size=4)
    with safe_globals(loom.blocks.safe_globals()):
        assert loaded(saved) == saved
        again = loaded(blocks)
    assert differing(again, blocks) == [] and again.mask_mod == blocks.mask_mod
    assert torch.equal(loom.as_mask(again.mask_mod).dense(q_len, kv_len), mask.dense(q_len, kv_len))


@pytest.mark.parametrize("name", SCORES)
def test_every_score_mod_loads(name):
    score_mod = SCORES[name]()
    if captures.holds_code(score_mod):
        pytest.skip("a function is not loaded")
    with safe_globals(loom.blocks.safe_globals()):
        assert loaded({"score_mod": score_mod})["score_mod"] == score_mod


def test_every_class_is_among_them():
    def below(kind: type) -> set[type]:
        return {kind}.union(*map(below, kind.__subclasses__()))

    ours = {kind for kind in below(FrozenValue) - {FrozenValue} if kind.__module__.startswith("maskloom.")}
    assert ours <= set(loom.blocks.safe_globals())
    assert len([kind for kind in ours if not inspect.isabstract(kind)]) > 50


def test_torchs_own_block_masks_load_too():
    tables = flex.create_block_mask(loom.causal, 1, 1, 300, 200, device="cpu")
    without_mask = flex.BlockMask.from_kv_blocks(tables.kv_num_blocks, tables.kv_indices)
    with safe_globals(loom.blocks.safe_globals()):
        assert differing(loaded(tables), tables) == []
        assert loaded(without_mask).mask_mod is without_mask.mask_mod


@loom.masks.mask_dataclass
class Mine(loom.Mask):
    def __call__(self, b, h, q_idx, kv_idx):
        return q_idx != kv_idx


def test_what_is_not_ours_is_refused_until_it_is_added():
    with pytest.raises(pickle.UnpicklingError, match="GLOBAL maskloom"):
        loaded(loom.window(back=3))
    with safe_globals(loom.blocks.safe_globals()), pytest.raises(pickle.UnpicklingError, match="Mine"):
        loaded(loom.causal & Mine())
    with safe_globals([*loom.blocks.safe_globals(), Mine]):
        assert loaded(loom.causal & Mine()) == loom.causal & Mine()
