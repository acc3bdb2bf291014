"""Attention of Hugging Face's transformers, run by maskloom.

::

    import maskloom.integrations.transformers as hf

    hf.register()
    model = AutoModelForCausalLM.from_pretrained(name, attn_implementation="maskloom")
    print(hf.explain(model, batch))
"""

from maskloom.errors import needed_by

with needed_by("maskloom.integrations.transformers"):
    import transformers as _transformers  # noqa: F401

from maskloom.integrations.transformers.explaining import ModelExplanation, explain
from maskloom.integrations.transformers.registration import KNOWN as KNOWN_VERSIONS
from maskloom.integrations.transformers.registration import register

__all__ = ["register", "explain", "ModelExplanation", "KNOWN_VERSIONS"]
