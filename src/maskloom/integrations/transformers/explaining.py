"""What runs in each layer of a model, and why."""

import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers import AttentionInterface, PreTrainedModel

from maskloom.core.words import brief
from maskloom.integrations.transformers.registration import NAME, register

if TYPE_CHECKING:
    from maskloom.attention.attend import Explanation


class LayerExplanation(NamedTuple):
    """What one attention of a model did.

    Attributes:
        name: the module's name in the model.
        mask: the mask that it got.
        call: what `maskloom.explain` says: which kernel, why, and what it skips.
    """

    name: str
    mask: str
    call: "Explanation"

    @property
    def text(self) -> str:
        return f"given: {self.mask}\n{self.call}"


@dataclass(frozen=True)
class ModelExplanation:
    """What `explain` found; ``print`` it.

    Attributes:
        layers: each attention that ran by maskloom, in the order of the run.
        others: the parts of the model with another ``attn_implementation``, by name, "" for the whole model.
    """

    layers: list[LayerExplanation] = field(default_factory=list)
    others: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines: list[str] = []
        for text, alike in itertools.groupby(self.layers, lambda layer: layer.text):
            names = [layer.name for layer in alike]
            lines.append(names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, {len(names)} layers")
            lines += [f"  {line}" for line in text.splitlines()]
        lines += [
            f"{name or 'the model'}: attn_implementation={other!r}, not {NAME!r}" for name, other in self.others.items()
        ]
        return "\n".join(lines) or f"no layer ran by {NAME!r}"


def explain(model: PreTrainedModel, batch: Mapping[str, object]) -> ModelExplanation:
    """Run the model on a batch once, and say for each layer what ran and why.

    What runs differs with gradients: padded queries are then hidden, and a backend without a backward is ruled out. So
    call this under ``torch.no_grad()`` for what runs there.

    Args:
        model: loaded with ``attn_implementation="maskloom"``, at least in a part.
        batch: the arguments of its forward, by name.

    Raises:
        TypeError: no model of transformers, or a batch that is no mapping.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"explain takes a model of transformers; got {type(model).__name__}")
    if not isinstance(batch, Mapping):
        raise TypeError(f"explain takes a batch as a dict of arguments, model(**batch); got {type(batch).__name__}")
    register()
    found = ModelExplanation(others=_others(model))
    with _recording(model, found):
        model(**batch)
    return found


def _others(model: PreTrainedModel) -> dict[str, str]:
    parts = {name: part for name, part in model.named_modules() if isinstance(part, PreTrainedModel)}
    named = {name: str(part.config._attn_implementation) for name, part in parts.items()}
    return {name: other for name, other in named.items() if other != NAME}


@contextmanager
def _recording(model: PreTrainedModel, found: ModelExplanation) -> Iterator[None]:
    """Let each attention be explained before it runs."""
    from maskloom.attention.attend import explain as explain_call
    from maskloom.integrations.transformers.attention import attention, call_of

    names = {module: name for name, module in model.named_modules()}

    def recorded(
        module: torch.nn.Module, query: Any, key: Any, value: Any, attention_mask: Any,
        scaling: float | None = None, dropout: float = 0.0, **keywords: Any,
    ) -> Any:  # fmt: skip
        call, _ = call_of(module, query, key, value, attention_mask, scaling, dropout, keywords)
        name = names.get(module, type(module).__name__)
        said = explain_call(call.query, call.key, call.value, call.mask, **call.options)
        found.layers.append(LayerExplanation(name, brief(call.mask), said))
        return attention(module, query, key, value, attention_mask, scaling, dropout, **keywords)

    AttentionInterface.register(NAME, recorded)
    try:
        yield
    finally:
        register()
