"""A model of Hugging Face's transformers, run by maskloom: padded and packed, beside "eager".

    pip install "maskloom[transformers]"
    python examples/hugging_face.py

The model is a small Llama with random weights, so nothing is downloaded. With weights it is
``AutoModelForCausalLM.from_pretrained(name, attn_implementation="maskloom")``.
"""

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, DataCollatorWithFlattening, LlamaConfig, PreTrainedModel

import maskloom.integrations.transformers as hf

LENGTHS = (5, 11, 7)


def made(attention: str) -> PreTrainedModel:
    """The same model, with this attention; a config of its own, since that is where transformers keeps which attention runs."""
    config = LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=attention).eval()


@torch.no_grad()
def compared(model: PreTrainedModel, eager: PreTrainedModel) -> dict[str, float]:
    """The largest difference between logits of real tokens: padded, from "eager"; packed, from each document alone."""
    documents = [list(range(3, 3 + length)) for length in LENGTHS]
    longest = max(LENGTHS)
    tokens = torch.tensor([document + [0] * (longest - len(document)) for document in documents])
    real = (torch.arange(longest) < torch.tensor(LENGTHS)[:, None]).long()
    padded = model(tokens, attention_mask=real).logits - eager(tokens, attention_mask=real).logits

    batch = DataCollatorWithFlattening(return_tensors="pt")([{"input_ids": document} for document in documents])
    batch.pop("labels")
    alone = torch.cat([eager(torch.tensor([document])).logits for document in documents], 1)
    return {"padded": largest(padded[real.bool()]), "packed": largest(model(**batch).logits - alone)}


def largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def main() -> dict[str, float]:
    hf.register()
    model = made("maskloom")
    print(hf.explain(model, {"input_ids": torch.arange(3, 14)[None]}))
    found = compared(model, made("eager"))
    for name, difference in found.items():
        print(f"{name}: logits differ by at most {difference:.1e}")
    return found


if __name__ == "__main__":
    main()
