"""What trains models: Trainer, accelerate, PEFT and TRL. Each test is skipped where what it needs is not installed."""

import copy

import pytest
import torch
from torch.testing import assert_close

from tests.integrations.transformers.models import (
    BATCH,
    DECODERS,
    PACKED,
    SIDES,
    VOCABULARY,
    attention_mask,
    compare,
    pair,
    tf,
    tokens,
)

DOCUMENTS = [{"input_ids": part[0].tolist()} for part in tokens(1, sum(PACKED)).split(PACKED, 1)] * 2


def padded(features):
    """A batch padded at the right, whose labels say nothing at padding."""
    longest = max(len(each["input_ids"]) for each in features)
    ids = torch.tensor([each["input_ids"] + [0] * (longest - len(each["input_ids"])) for each in features])
    real = (ids != 0).long()
    return {"input_ids": ids, "attention_mask": real, "labels": ids.masked_fill(real == 0, -100)}


def losses(model, collator, folder, **options):
    """Of each step of a Trainer, and the norms of the gradients."""
    pytest.importorskip("accelerate", reason="Trainer needs accelerate")
    given = {"max_steps": 3, "per_device_train_batch_size": len(PACKED), "logging_steps": 1, "learning_rate": 0.05}
    given |= {"use_cpu": True, "report_to": [], "save_strategy": "no", "disable_tqdm": True, "seed": 1, **options}
    arguments = tf.TrainingArguments(output_dir=str(folder), **given)
    trainer = tf.Trainer(copy.deepcopy(model), arguments, data_collator=collator, train_dataset=DOCUMENTS)
    trainer.train()
    return torch.tensor([[each["loss"], each["grad_norm"]] for each in trainer.state.log_history[:3]])


@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True}, {"bf16": True, "learning_rate": 0.002}], ids=str
)
def test_trainer(options, tmp_path):
    eager, ours = pair(DECODERS["gemma2"])
    found, expected = (losses(model, padded, tmp_path, **options) for model in (ours, eager))
    if "bf16" in options:
        assert_close(found[:, 0], expected[:, 0], rtol=0.02, atol=0.0)
    else:
        assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert found[0, 0] != found[2, 0]


@pytest.mark.parametrize("name", ["llama", "llama4"])
@pytest.mark.parametrize("flags", [{}, {"return_flash_attn_kwargs": True}], ids=str)
def test_trainer_of_packed_documents(name, flags, tmp_path):
    """The same losses as of padded documents; what a document foretells of the next one is no part of either."""
    eager, ours = pair(DECODERS[name])
    collator = tf.DataCollatorWithFlattening(return_tensors="pt", **flags)
    assert_close(losses(ours, collator, tmp_path), losses(eager, padded, tmp_path), rtol=1e-3, atol=1e-3)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate")
    eager, ours = pair(DECODERS["mistral"])
    expected = eager(**padded(DOCUMENTS[:3])).loss
    loader = torch.utils.data.DataLoader(DOCUMENTS, batch_size=3, collate_fn=padded)
    accelerator = accelerate.Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(ours, torch.optim.SGD(ours.parameters(), 0.1), loader)
    found = []
    for batch in loader:
        loss = model(**batch).loss
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.detach())
    assert_close(found[0], expected.detach(), rtol=1e-5, atol=1e-5)
    assert found[1] < found[0]


@torch.no_grad()
def test_layers_whose_arguments_accelerate_moves():
    hooks = pytest.importorskip("accelerate.hooks")
    eager, ours = pair(DECODERS["gemma3"])
    for layer in ours.model.layers:
        hooks.add_hook_to_module(layer, hooks.AlignDevicesHook(execution_device="cpu", io_same_device=True))
    for side in SIDES:
        real = attention_mask(side)
        compare(ours(tokens(), real).logits, eager(tokens(), real).logits, real.bool())


def with_adapter(model, config):
    peft = pytest.importorskip("peft")
    torch.manual_seed(3)
    return peft.get_peft_model(model, config(peft))


CONFIGS = {
    "lora": lambda peft: peft.LoraConfig(
        r=3, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    ),
    "prefix": lambda peft: peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
    "prompt": lambda peft: peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_peft(kind):
    models = [with_adapter(model, CONFIGS[kind]) for model in pair(DECODERS["llama"])]
    for side in SIDES:
        real = attention_mask(side)
        labels = tokens().masked_fill((real == 0) | (real.roll(1, 1) == 0), -100)
        found = []
        for model in models:
            model.zero_grad()
            model(tokens(), attention_mask=real, labels=labels).loss.backward()
            found.append([each.grad for each in model.parameters() if each.grad is not None])
        assert found[0]
        assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
    real = attention_mask("left")
    given = {"input_ids": tokens().masked_fill(real == 0, 0), "attention_mask": real, "max_new_tokens": 5}
    given |= {"do_sample": False, "eos_token_id": None}
    assert models[1].generate(**given).equal(models[0].generate(**given))
    assert models[1].generate(**given).shape[0] == BATCH


@torch.no_grad()
def test_the_padding_free_collator_of_trl():
    trl = pytest.importorskip("trl.trainer.sft_trainer", reason="needs trl")
    eager, ours = pair(DECODERS["gpt-oss"])
    collator = trl.DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    batch = collator(DOCUMENTS[:3])
    labels = batch.pop("labels")
    assert "attention_mask" not in batch and labels.shape == batch["input_ids"].shape
    apart = torch.cat([eager(torch.tensor([each["input_ids"]])).logits for each in DOCUMENTS[:3]], 1)
    compare(ours(**batch).logits, apart)


@pytest.mark.parametrize("options", [{"padding_free": True}, {"packing": True}], ids=str)
def test_the_trainer_of_trl(options, tmp_path):
    trl = pytest.importorskip("trl")
    found = []
    for model in pair(DECODERS["llama"]):
        given = {"max_steps": 3, "per_device_train_batch_size": 3, "logging_steps": 1, "learning_rate": 0.05, "seed": 1}
        given |= {
            "use_cpu": True,
            "bf16": False,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            **options,
        }
        given["max_length"] = 31 if "packing" in options else None
        arguments = trl.SFTConfig(output_dir=str(tmp_path), **given)
        rows = pytest.importorskip("datasets").Dataset.from_list(DOCUMENTS)
        trainer = trl.SFTTrainer(model, arguments, train_dataset=rows, processing_class=numbers_as_words())
        trainer.train()
        found.append([each["loss"] for each in trainer.state.log_history[:3]])
    assert found[1] == pytest.approx(found[0], rel=1e-4)


def numbers_as_words():
    """A tokenizer whose words are the numbers of tokens."""
    tokenizers = pytest.importorskip("tokenizers")
    words = {str(number): number for number in range(VOCABULARY)}
    model = tokenizers.models.WordLevel(words, unk_token="0")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(model), pad_token="0", unk_token="0", bos_token="1", eos_token="2"
    )
