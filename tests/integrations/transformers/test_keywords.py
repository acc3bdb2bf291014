"""Keywords of attention functions: those that count, those that do not, and those that are refused."""

import pathlib
import re

import pytest
import torch

from maskloom.integrations.transformers.keywords import _REASONS, HARMLESS, Said, said
from tests.integrations.transformers.models import DECODERS, hf, pair, tf, tokens


def test_a_keyword_that_is_not_known_is_an_error():
    _, ours = pair(DECODERS["llama"])
    with pytest.raises(TypeError, match=r'gives tilt=3 to its attention.*register\(ignore=\["tilt"\]\)'):
        ours(tokens(), tilt=3)
    hf.register(ignore=["tilt"])
    ours(tokens(), tilt=3)


@pytest.mark.parametrize("value", [None, False])
def test_a_keyword_that_says_nothing_is_none(value):
    assert said({"slant": value}) == Said()


def test_names_are_known_twice():
    sinks = torch.zeros(3)
    assert said({"s_aux": sinks}).sinks is sinks is said({"sinks": sinks}).sinks


def test_sinks_of_queries_are_refused():
    """Inkling has one for each query; ours are of heads."""
    with pytest.raises(
        TypeError, match=r"cannot run with s_aux=float32\[1, 6, 17, 1\]: it has one sink for each head, \(H,\)"
    ):
        said({"s_aux": torch.zeros(1, 6, 17, 1)})


@pytest.mark.parametrize("name", _REASONS)
def test_what_only_transformers_itself_can_do(name):
    with pytest.raises(TypeError, match=f'attn_implementation="maskloom" cannot run with {name}=7: '):
        said({name: 7})


def test_every_keyword_of_every_model_is_known():
    known = {
        *Said._fields,
        *HARMLESS,
        *_REASONS,
        "s_aux",
        "attention_mask",
        "scaling",
        "dropout",
        "query",
        "key",
        "value",
    }
    texts = [path.read_text() for path in pathlib.Path(tf.__file__).parent.glob("models/*/modeling_*.py")]
    calls = [call for text in texts for call in re.findall(r"= attention_interface\((.*?)\n +\)", text, re.DOTALL)]
    found = {name for call in calls for name in re.findall(r"^ +(\w+)=", call, re.MULTILINE)}
    assert found - known == set()
    assert {"s_aux", "softcap", "position_bias", "cu_seq_lens_q"} <= found
