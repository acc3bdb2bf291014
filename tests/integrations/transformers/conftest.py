"""Where tensors are: on the CPU, or as on a device, where their values are not read."""

import inspect
import sys

import pytest

from maskloom.core.checks import readable


@pytest.fixture(params=["on the CPU", "as on a device"])
def where(request, monkeypatch):
    """Without values each row may be packed, padded or chunked, and tables of tiles are built."""
    if request.param == "on the CPU":
        return
    from maskloom.integrations.transformers import layer_mask

    ours = [module for name, module in sys.modules.items() if name.startswith("maskloom")]
    for module in ours:
        if getattr(module, "readable", None) is readable:
            monkeypatch.setattr(module, "readable", lambda table: False)
    monkeypatch.setattr(layer_mask, "takes_table", lambda place: place.q_len <= layer_mask.FEW)


@pytest.fixture
def can_generate_chunks():
    """Whether ``generate()`` of this transformers fills a static cache of a model with chunks."""
    from transformers.masking_utils import create_chunked_causal_mask

    return "block_sequence_ids" in inspect.signature(create_chunked_causal_mask).parameters
