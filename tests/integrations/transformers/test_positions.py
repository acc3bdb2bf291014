"""What the makers of masks know of positions, where their frame can be read and where it cannot."""

import pytest
import torch
from transformers import DynamicCache, masking_utils

from maskloom.integrations.transformers import positions
from maskloom.integrations.transformers.layer_mask import LayerMask
from maskloom.integrations.transformers.masks import layer_mask
from maskloom.integrations.transformers.positions import NO_POSITIONS
from tests.integrations.transformers.models import DECODERS, PACKED, hf, pair, position_ids, tokens

ROW = tokens(1, sum(PACKED))


def config():
    _, ours = pair(DECODERS["llama4"])
    return ours.config


def made(cache=None, real=None):
    embeddings = torch.empty(1, sum(PACKED), 1)
    return masking_utils.create_chunked_causal_mask(config(), embeddings, real, cache, position_ids())


def test_positions_count_once():
    """Without a cache transformers has put the documents into the mask itself."""
    assert made().positions.are_read
    beside_cache = made(DynamicCache()).positions
    assert not beside_cache.are_read and beside_cache.ids.equal(position_ids())
    assert made(real=torch.ones_like(ROW)).positions is NO_POSITIONS


@pytest.mark.parametrize("name", ["past_key_values", "cache", "of_another_name"])
@pytest.mark.parametrize("cache", [None, DynamicCache()])
def test_the_cache_is_seen_by_each_name_that_makers_gave_it(name, cache):
    """transformers 5.24 calls it ``cache``; by a name that nobody knows there may be one, and positions are read here."""
    source = f"def maker(position_ids, attention_mask, {name}):\n    return asks()"
    names = {"asks": lambda: positions.positions_of_maker()}
    exec(compile(source, masking_utils.__file__, "exec"), names)
    known = names["maker"](position_ids(), None, cache)
    assert known.ids.equal(position_ids())
    assert known.are_read == (cache is None and name != "of_another_name")


def test_a_row_that_transformers_found_to_be_one_document_is_not_looked_at_again(monkeypatch):
    from maskloom.integrations.transformers import packing

    _, ours = pair(DECODERS["llama"])
    monkeypatch.setattr(packing, "ids_from_positions", None)
    ours(ROW, use_cache=False)


def test_another_caller_knows_nothing():
    assert layer_mask(batch_size=1, q_length=3, kv_length=3).positions is NO_POSITIONS


def test_it_listens_once():
    hf.register()
    telling = masking_utils._preprocess_mask_arguments
    hf.register()
    assert masking_utils._preprocess_mask_arguments is telling


@pytest.mark.parametrize("real", [None, torch.ones_like(ROW), torch.ones(1, 1, *2 * [sum(PACKED)]).tril().bool()])
def test_nothing_is_kept_of_a_graph(real):
    torch._dynamo.reset()
    found = torch.compile(known, backend="eager", fullgraph=True)(config(), position_ids(), real)
    assert found == (real is None)
    assert positions._told == []


def known(config, ids, real):
    """Whether a mask that is made in a graph knows the position ids."""
    mask = masking_utils.create_chunked_causal_mask(config, torch.empty(1, sum(PACKED), 1), real, DynamicCache(), ids)
    return isinstance(mask, LayerMask) and mask.positions.ids is ids


def test_a_transformers_that_cannot_be_asked(monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr(positions, "_NEEDED", "another")
    with pytest.raises(Exception, match=r"does not tell whether a row holds several documents: give attention_mask"):
        torch.compile(known, backend="eager", fullgraph=True)(config(), position_ids(), None)
