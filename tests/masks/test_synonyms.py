"""Words of other libraries: each is told what it is here, and that can be written."""

import inspect
import re

import pytest

import maskloom as loom
from maskloom.masks import synonyms
from maskloom.masks.parse import VOCABULARY


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("sliding_window", "window(back=...)"),
        ("SlidingWindowMask", "window(back=...)"),
        ("generate_sliding_window", "window(back=...)"),
        ("sliding_window_causal_mask_function", "window(back=...)"),
        ("local", "window(back=...)"),
        ("local_attention", "window(back=...)"),
        ("causal_mask", "causal"),
        ("create_causal_mask", "causal"),
        ("LowerTriangularMask", "causal"),
        ("is_causal", "causal"),
        ("generate_square_subsequent_mask", "causal"),
        ("LowerTriangularFromBottomRightMask", "causal_lower_right(..., ...)"),
        ("document_mask", "documents(offsets=[...])"),
        ("generate_doc_mask_mod", "documents(offsets=[...])"),
        ("cu_seqlens", "documents(offsets=[...])"),
        ("BlockDiagonalMask", "documents(offsets=[...])"),
        ("BlockDiagonalCausalMask", "causal & documents(offsets=[...])"),
        ("block_causal", "causal & documents(offsets=[...])"),
        ("prefix_lm", "causal | prefix(...)"),
        ("PrefixLM", "causal | prefix(...)"),
        ("attention_mask", "lengths([...])"),
        ("bidirectional_mask_function", "everything"),
        ("attention_sink", "sinks(...)"),
        ("streaming_llm", "window(back=...) | sinks(...)"),
        ("longformer", "window_both_ways(...) | global_tokens(...)"),
        ("natten", "neighbourhood(..., ...)"),
        ("neighborhood_attention", "neighbourhood(..., ...)"),
        ("moba", "top_k_blocks([...], ..., key_blocks=...)"),
        ("and_masks", "a & b"),
        ("slidng_windw", "window(back=...)"),  # misspelt
        ("documets", "documents"),
        ("window_both_way", "window_both_ways"),
    ],
)
def test_words_of_others(word, meant):
    with pytest.raises(loom.ParseError) as caught:
        loom.parse(f"causal & {word}")
    first, _, under = str(caught.value).split("\n")
    assert first == f"no mask is called {word!r}; is {meant} meant?"
    assert under == "  " + " " * len("causal & ") + "^" * len(word)


@pytest.mark.parametrize("word", ["alibi", "ALiBi_bias", "softcap", "t5_bias", "relative_bias", "alibii"])
def test_what_changes_scores_is_no_mask(word):
    with pytest.raises(loom.ParseError, match="changes scores and hides nothing: it goes to score_mod="):
        loom.parse(f"causal & {word}")


@pytest.mark.parametrize(
    "word", ["padding", "padding_mask", "key_padding_mask", "real", "from_dense", "create_padding_mask"]
)
def test_what_is_made_of_a_tensor_has_a_name_of_ones_own(word):
    with pytest.raises(
        loom.ParseError, match=r"a text holds no tensor: write lengths\(\[...\]\), or give the mask a name"
    ):
        loom.parse(f"causal & {word}")
    assert loom.parse(f"causal & {word}", {word: loom.sinks(2)}) == loom.causal & loom.sinks(2)


def test_a_name_of_ones_own_is_near_too():
    with pytest.raises(loom.ParseError, match="'my_batc'; is my_batch meant"):
        loom.parse("my_batc", {"my_batch": loom.lengths([3])})


def test_what_is_like_nothing_gets_the_list():
    with pytest.raises(loom.ParseError, match="no mask is called 'qqqq'; there are causal, anticausal"):
        loom.parse("qqqq")


def test_every_suggestion_can_be_written():
    for meaning in set(synonyms.SYNONYMS.values()) - {"a & b", "a | b", "a ^ b", "~a"}:
        for call in re.split(r" [&|] ", meaning):
            name, brackets, options = re.fullmatch(r"(\w+)(\((.*)\))?", call).groups()
            made = VOCABULARY[name]
            assert isinstance(made, loom.Mask) is (brackets is None), meaning
            if options is not None:
                assert set(re.findall(r"(\w+)=", options)) <= inspect.signature(made).parameters.keys(), meaning


def test_each_word_has_one_meaning_and_is_no_name():
    words = [word for words in synonyms._WORDS.values() for word in words.split()]
    assert {word for word in words if words.count(word) > 1} == set()
    taken = synonyms.SCORE_MODS | synonyms.OF_TENSORS | VOCABULARY.keys()
    assert taken & set(words) == set()
    assert [word for word in words if synonyms._plain(word) not in synonyms.SYNONYMS] == []


def test_every_public_mask_is_a_name_or_said_to_be_made_of_tensors():
    masks = loom.masks.patterns.__all__
    assert [name for name in masks if name not in VOCABULARY.keys() | synonyms.OF_TENSORS] == []
