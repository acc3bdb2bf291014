"""Models run by maskloom are equal to "eager": each family, each kind of padding, each cache, with values and without."""

import itertools

import pytest
import torch
from torch.testing import assert_close
from transformers import DynamicCache, StaticCache

from tests.integrations.transformers.models import (
    BATCH,
    DECODERS,
    ENCODERS,
    LENGTH,
    PACKED,
    PICTURES,
    SEQUENCES,
    SIDES,
    VISION,
    VOCABULARY,
    attention_mask,
    compare,
    pair,
    position_ids,
    tokens,
    with_pictures,
)

ROW = tokens(1, sum(PACKED))
SLOTS = 31  # of a static cache: more than positions
CACHES = {
    "no cache": lambda config: {"use_cache": False},
    "default": lambda config: {},
    "dynamic": lambda config: {"past_key_values": DynamicCache()},
    "sliding": lambda config: {"past_key_values": DynamicCache(config=config)},
    "static": lambda config: {"past_key_values": StaticCache(config=config, max_cache_len=SLOTS)},
}
pytestmark = pytest.mark.usefixtures("where")


def user_table(keys=LENGTH):
    """A causal table of one's own, floats (BATCH, 1, LENGTH, keys), with holes, and something added."""
    seen = torch.ones(BATCH, 1, LENGTH, keys).tril().bool()
    seen[1, :, 7:, 2] = False
    added = torch.randn(BATCH, 1, LENGTH, keys, generator=torch.Generator().manual_seed(3))
    return added.masked_fill(~seen, torch.finfo(torch.float32).min)


# -- forward -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_decoder(name):
    eager, ours = pair(DECODERS[name])
    for cache, side in itertools.product(CACHES.values(), [None, *SIDES]):
        real = None if side is None else attention_mask(side)
        theirs, own = (
            model(tokens(), attention_mask=real, **cache(model.config)).logits for model in (eager, ours)
        )  # fmt: skip
        compare(own, theirs, None if real is None else real.bool())


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", CACHES)
@torch.no_grad()
def test_a_packed_row(name, cache):
    """Equal to each document alone; "eager" lets documents see each other, in most of these."""
    eager, ours = pair(DECODERS[name])
    apart = torch.cat([eager(part).logits for part in ROW.split(PACKED, 1)], 1)
    compare(ours(ROW, position_ids=position_ids(), **CACHES[cache](ours.config)).logits, apart)


@pytest.mark.parametrize("name", DECODERS)
@torch.no_grad()
def test_a_table_of_the_user(name):
    eager, ours = pair(DECODERS[name])
    for cache, keys in (("no cache", LENGTH), ("dynamic", LENGTH), ("static", SLOTS)):
        if cache == "static" and name not in ("llama", "qwen3", "phi"):
            continue  # those with windows and chunks have shorter caches for these layers
        theirs, own = (
            model(tokens(), attention_mask=user_table(keys), **CACHES[cache](model.config)).logits
            for model in (eager, ours)
        )
        compare(own, theirs)


@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_an_encoder(name):
    eager, ours = pair(ENCODERS[name])
    compare(ours(tokens())[0], eager(tokens())[0])
    for side in SIDES:
        real = attention_mask(side)
        compare(ours(tokens(), attention_mask=real)[0], eager(tokens(), attention_mask=real)[0], real.bool())


@pytest.mark.parametrize("name", SEQUENCES)
@pytest.mark.parametrize("length", [7, LENGTH])  # as many decoder positions as encoder positions, too
@torch.no_grad()
def test_an_encoder_and_decoder(name, length):
    eager, ours = pair(SEQUENCES[name])
    for side, target_side in itertools.product(SIDES, SIDES):
        given, real = sources(name, side), attention_mask(target_side)[:, :length]
        given |= {"decoder_input_ids": tokens(length=length), "decoder_attention_mask": real}
        compare(ours(**given).logits, eager(**given).logits, real.bool())


def sources(name, side):
    if name == "whisper":
        return {"input_features": torch.randn(BATCH, 7, 22, generator=torch.Generator().manual_seed(4))}
    return {"input_ids": tokens(), "attention_mask": attention_mask(side)}


@pytest.mark.parametrize("name", VISION)
@torch.no_grad()
def test_a_vision_tower(name):
    eager, ours = pair(VISION[name])
    for side in SIDES[:2]:
        given = {
            "input_ids": tokens(),
            "attention_mask": attention_mask(side),
            "pixel_values": torch.randn(3, 3, 20, 20),
        }
        theirs, own = eager(**given), ours(**given)
        compare(own.image_embeds, theirs.image_embeds)
        compare(own.text_embeds, theirs.text_embeds)


@pytest.mark.parametrize("name", PICTURES)
@torch.no_grad()
def test_pictures_in_the_text(name):
    eager, ours = pair(PICTURES[name])
    for side, cache in itertools.product(SIDES, CACHES.values()):
        real = attention_mask(side, most=5)
        given = with_pictures(name) | {"attention_mask": real}
        theirs, own = (model(**given, **cache(model.config.get_text_config())).logits for model in (eager, ours))
        compare(own, theirs, real.bool())


# -- gradients ---------------------------------------------------------------------------------------------------------


def assert_equal_gradients(ours, eager, loss, atol=2e-6):
    found = []
    for model in (ours, eager):
        model.zero_grad()
        value = loss(model)
        value.backward()
        gradients = {name: each.grad for name, each in model.named_parameters() if each.grad is not None}
        found.append((value.detach(), gradients))
    assert_close(*found, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", [*DECODERS, *SEQUENCES, *PICTURES])
def test_loss_and_gradients(name):
    eager, ours = pair((DECODERS | SEQUENCES | PICTURES)[name])
    for side in SIDES:
        real = attention_mask(side, most=5)
        # nothing is learned at the first real token, which a padded position would foretell
        labels = tokens().masked_fill((real == 0) | (real.roll(1, 1) == 0), -100)
        given = with_pictures(name) if name in PICTURES else {"input_ids": tokens()}
        given = sources(name, side) if name == "whisper" else given | {"attention_mask": real}
        given |= {"labels": labels}
        atol = 2e-5 if name in PICTURES else 2e-6  # through two towers
        assert_equal_gradients(ours, eager, lambda model, given=given: model(**given).loss, atol)


@pytest.mark.parametrize("name", DECODERS)
def test_loss_and_gradients_of_a_packed_row(name):
    eager, ours = pair(DECODERS[name])
    weights = torch.randn(sum(PACKED), 1, generator=torch.Generator().manual_seed(5))

    def loss(model):
        parts = ROW.split(PACKED, 1) if model is eager else [ROW]
        given = {} if model is eager else {"position_ids": position_ids()}
        return (torch.cat([model(part, **given).logits for part in parts], 1) * weights).sum() / 11

    # of gemma4 "eager" itself is 3.4e-6 from its float64 gradients
    assert_equal_gradients(ours, eager, loss, atol=1e-5 if name == "gemma4" else 2e-6)


@pytest.mark.parametrize("name", [*ENCODERS, *VISION])
def test_gradients_of_encoders(name):
    eager, ours = pair((ENCODERS | VISION)[name])
    real = attention_mask("right")
    ids = tokens()
    ids[:, 3] = VOCABULARY - 1  # the greatest: CLIP takes the state there, which is not to be padding
    given = {"input_ids": ids, "attention_mask": real}
    if name in VISION:
        given["pixel_values"] = torch.randn(BATCH, 3, 20, 20, generator=torch.Generator().manual_seed(6))

    def loss(model):
        out = model(**given)
        return out.logits_per_text.square().sum() if name in VISION else out[0][real.bool()].pow(3).mean()

    assert_equal_gradients(ours, eager, loss, atol=1e-5)


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("cache", ["dynamic", "static", None])
def test_generation(name, cache, can_generate_chunks):
    if (name, cache) == ("llama4", "static") and not can_generate_chunks:
        pytest.skip("generate() of this transformers cannot do it with any attention")
    eager, ours = pair(DECODERS[name])
    options = {"max_new_tokens": 9, "do_sample": False, "eos_token_id": None}
    options |= {"cache_implementation": cache} if cache else {"use_cache": False}
    for side in SIDES:
        real = attention_mask(side, most=3)  # fewer than the window: a query that sees nothing is another in "eager"
        given = {"inputs": tokens().masked_fill(real == 0, 0), "attention_mask": real, **options}
        assert ours.generate(**given).equal(eager.generate(**given))


@pytest.mark.parametrize("name", SEQUENCES)
def test_generation_of_an_encoder_and_decoder(name):
    eager, ours = pair(SEQUENCES[name])
    for side, cache in itertools.product(SIDES, ["dynamic", "static"]):
        given = sources(name, side) | {"max_new_tokens": 7, "do_sample": False, "cache_implementation": cache}
        assert ours.generate(**given).equal(eager.generate(**given))


@pytest.mark.parametrize("name", PICTURES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_after_a_picture(name, cache):
    eager, ours = pair(PICTURES[name])
    given = with_pictures(name) | {"attention_mask": attention_mask("left", most=5)}
    given |= {"max_new_tokens": 7, "do_sample": False, "eos_token_id": None, "cache_implementation": cache}
    assert ours.generate(**given).equal(eager.generate(**given))
