"""The model: what a logit depends on, and that a batch of prompts is continued as each is alone."""

import pytest
import torch
from lm.layouts import MicroBatches, mask_of
from lm.model import Decoder, ModelConfig, generate, parameter_groups

CONFIG = ModelConfig(vocab_size=53, d_model=24, n_layers=2, n_heads=6, n_kv_heads=3)
LENGTHS = [13, 5, 2, 11]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Decoder(CONFIG).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)  # so that attention is far from even
    return made


def sequences(seed, lengths=LENGTHS):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(53, (length,), generator=generator), "place": ""} for length in lengths]


def logits_of(model, layout, given):
    """The logits (length, vocabulary) of each sequence, in the given order."""
    numbered = [{**one, "place": str(number)} for number, one in enumerate(given)]
    found = {}
    for batch in MicroBatches(layout, 37)(numbered):
        options = {"backend": "sdpa"} if layout == "sdpa-dense" else {}
        with torch.no_grad():
            logits = model(batch.inputs, mask_of(layout, batch), positions=batch.positions, **options)
        for document, number in enumerate(batch.fields["place"]):
            found[number] = logits[batch.ids == document]
    return [found[str(number)] for number in range(len(given))]


@pytest.mark.parametrize("layout", ["packed", "padded", "sdpa-dense"])
def test_logits_depend_on_no_later_token_and_no_other_document(model, layout):
    given, others = sequences(0), sequences(1)
    before = logits_of(model, layout, given)
    for changed in range(len(given)):
        for first in {0, LENGTHS[changed] // 2}:
            now = [dict(one) for one in given]
            now[changed]["input_ids"] = torch.cat(
                [given[changed]["input_ids"][:first], others[changed]["input_ids"][first:]]
            )
            after = logits_of(model, layout, now)
            for number in range(len(given)):
                until = first if number == changed else LENGTHS[number]
                assert torch.equal(after[number][:until], before[number][:until])
            assert not torch.equal(after[changed][first:], before[changed][first:])


@pytest.mark.parametrize("layout", ["packed", "padded", "sdpa-dense"])
def test_each_sequence_has_the_logits_that_it_has_alone(model, layout):
    given = sequences(2)
    for together, one in zip(logits_of(model, layout, given), given, strict=True):
        torch.testing.assert_close(together, logits_of(model, "padded", [one])[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_a_batch_of_prompts_is_continued_as_each_is_alone(model, temperature):
    prompts = [one["input_ids"] for one in sequences(3, [7, 1, 3, 11, 2])]
    options = {"end": 52, "temperature": temperature, "seed": 5}
    together = generate(model, prompts, 17, **options)
    alone = [generate(model, [prompt], 17, **options)[0] for prompt in prompts]
    assert [tokens.tolist() for tokens in together] == [tokens.tolist() for tokens in alone]
    assert len({len(tokens) for tokens in together}) > 1 or temperature == 0  # some end early


def test_the_cache_gives_what_the_whole_row_gives(model):
    prompt = sequences(4, [5])[0]["input_ids"]
    written = prompt
    for _ in range(13):
        (logits,) = logits_of(model, "padded", [{"input_ids": written, "place": ""}])
        written = torch.cat([written, logits[-1].argmax()[None]])
    (found,) = generate(model, [prompt], 13, end=-1)
    assert found.tolist() == written[5:].tolist()


def test_a_text_ends_where_the_end_is_written(model):
    prompts = [one["input_ids"] for one in sequences(6, [3, 2])]
    whole = generate(model, prompts, 9, end=-1)
    end = int(whole[0][4])
    (first, _) = generate(model, prompts, 9, end=end)
    tokens = whole[0].tolist()
    assert first.tolist() == tokens[: tokens.index(end)]


def test_activations_that_are_made_again_give_the_same_gradients():
    def gradients(recompute):
        torch.manual_seed(0)
        made = Decoder(ModelConfig(**vars(CONFIG) | {"dropout": 0.25}), recompute=recompute)
        (batch,) = MicroBatches("packed", 37)(sequences(7))
        made(batch.inputs, batch.mask, positions=batch.positions).square().sum().backward()
        return [parameter.grad for parameter in made.parameters()]

    for ours, theirs in zip(gradients(True), gradients(False), strict=True):
        assert torch.equal(ours, theirs)


def test_matrices_decay_and_scales_do_not(model):
    decaying, others = parameter_groups(model)
    assert {parameter.ndim for parameter in decaying["params"]} == {2} and decaying["weight_decay"] > 0
    assert {parameter.ndim for parameter in others["params"]} == {1} and others["weight_decay"] == 0
    assert len(decaying["params"]) + len(others["params"]) == len(list(model.parameters()))
