"""Models of transformers on a GPU: equal to "sdpa", nothing waits for the device, and static caches compile once."""

import copy

import pytest
import torch

from tests.integrations.transformers.models import BATCH, DECODERS, PACKED, hf, pair, position_ids, tokens

LENGTH = 261


def on_gpu(name):
    eager, ours = pair(DECODERS[name])
    return eager.cuda(), ours.cuda()


def right_padded():
    return (torch.arange(LENGTH) < torch.tensor([LENGTH, 131, 200])[:, None]).long().cuda()


def close(ours, eager):
    torch.testing.assert_close(ours, eager, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gpt-oss", "llama4"])
def test_loss_and_gradients(name):
    ids, real = tokens(length=LENGTH).cuda(), right_padded()
    results = []
    for model in on_gpu(name):
        out = model(ids, attention_mask=real, labels=ids.masked_fill(real == 0, -100))
        out.loss.backward()
        results.append([out.loss.detach(), *[each.grad for each in model.parameters() if each.grad is not None]])
    close(results[1], results[0])


@pytest.mark.parametrize("name", ["llama", "gpt-oss", "llama4"])
@torch.no_grad()
def test_packed(name):
    eager, ours = on_gpu(name)
    row = tokens(1, sum(PACKED)).cuda()
    apart = torch.cat([eager(part).logits for part in row.split(PACKED, 1)], 1)
    close(ours(row, position_ids=position_ids().cuda()).logits, apart)


@torch.no_grad()
def test_packed_in_one_graph_beside_a_cache():
    eager, ours = on_gpu("llama4")
    row = tokens(1, sum(PACKED)).cuda()
    apart = torch.cat([eager(part).logits for part in row.split(PACKED, 1)], 1)
    compiled = torch.compile(ours, backend="eager", fullgraph=True)
    close(compiled(row, position_ids=position_ids().cuda()).logits, apart)


def test_rows_that_transformers_found_not_to_be_packed_are_plain_causal_ones():
    _, ours = on_gpu("llama")
    found = hf.explain(ours, {"input_ids": tokens(length=LENGTH).cuda(), "use_cache": False})
    assert [layer.mask for layer in found.layers] == ["causal", "causal"]


@torch.no_grad()
@pytest.mark.parametrize("name", ["llama", "phi"])
def test_a_prompt_padded_at_the_right(name):
    """``generate()`` goes on from the last position, though it is padding: its query sees what "eager" shows it."""
    eager, ours = on_gpu(name)
    ids, real = tokens(length=LENGTH).cuda(), right_padded()
    close(ours(ids, attention_mask=real).logits[:, -1], eager(ids, attention_mask=real).logits[:, -1])


@torch.no_grad()
def test_nothing_waits_for_the_device():
    _, ours = on_gpu("gemma3")
    ids, real = tokens(length=LENGTH).cuda(), right_padded()
    # without attention_mask transformers 5.17 looks whether rows are packed, and a new sliding cache of its own waits too
    given = {"attention_mask": real, "use_cache": False}
    for _ in range(6):  # plans of a kind are made at the second mask, a CUDA graph at the third run after
        ours(ids, **given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        ours(ids, **given)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", ["llama", "gemma3"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation(name, cache):
    eager, ours = on_gpu(name)
    real = right_padded().flip(1)
    given = {"attention_mask": real, "do_sample": False, "eos_token_id": None, "max_new_tokens": 20}
    prompts = tokens(length=LENGTH).cuda().masked_fill(real == 0, 0)
    expected = copy.deepcopy(eager).generate(prompts, **given)
    made = ours.generate(prompts, **given, cache_implementation=cache)
    assert made.shape == (BATCH, LENGTH + 20)
    assert float((made == expected).float().mean()) > 0.95  # logits that are nearly equal may change places
