"""Both halves under one name."""

import warnings

import pytest
import transformers
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from maskloom.integrations.transformers.attention import attention
from maskloom.integrations.transformers.masks import layer_mask
from tests.integrations.transformers.models import hf


def test_both_halves_and_a_second_call():
    for _ in range(2):
        hf.register()
        assert AttentionInterface()["maskloom"] is attention
        assert AttentionMaskInterface()["maskloom"] is layer_mask


@pytest.mark.parametrize("ignore", ["tilt", [3]])
def test_what_ignore_is(ignore):
    with pytest.raises(TypeError, match=r"ignore (is a list of|holds names of) keywords"):
        hf.register(ignore=ignore)


@pytest.mark.parametrize(("version", "warned"), [("5.17.2", 0), ("5.24.0.dev0", 0), ("5.16.0", 1), ("6.0.0", 1)])
def test_versions(version, warned, monkeypatch):
    monkeypatch.setattr(transformers, "__version__", version)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        hf.register()
    assert len(caught) == warned
    assert all(f"5.17 to 5.24; this is {version}" in str(each.message) for each in caught)


def test_a_version_with_other_mask_functions(monkeypatch):
    monkeypatch.setattr(masking_utils, "sdpa_mask", lambda batch_size, cache_position, kv_length: None)
    with pytest.raises(ImportError, match=r"makes masks in another way; maskloom needs 5.17 or newer"):
        hf.register()
