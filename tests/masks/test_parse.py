"""Masks from text: what they mean, and the mark under what is wrong."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

import maskloom as loom
from maskloom.core import captures
from tests.all_masks import ALL_MASKS
from tests.catalog import EVERY

leaves = st.sampled_from([make() for make in ALL_MASKS.values() if not captures.tensors(make())])
expressions = st.recursive(
    leaves,
    lambda parts: st.one_of(
        parts.map(lambda part: ~part),
        st.tuples(parts, parts).map(lambda two: two[0] & two[1]),
        st.tuples(parts, parts).map(lambda two: two[0] | two[1]),
        st.tuples(parts, parts).map(lambda two: two[0] ^ two[1]),
    ),
    max_leaves=8,
)


@given(expressions)
def test_the_repr_of_a_mask_without_tensors_parses_back(mask):
    assert loom.parse(str(mask)) == mask


@pytest.mark.parametrize("name", EVERY)
def test_every_mask_without_tensors_parses_back(name):
    mask = EVERY[name][0]()
    if not captures.tensors(mask):
        assert loom.parse(str(mask)) == mask


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("causal", loom.causal),
        ("causal & window(back=127) | sinks(4)", loom.causal & loom.window(back=127) | loom.sinks(4)),
        (" ~( causal\n ^ prefix(3) ) ", ~(loom.causal ^ loom.prefix(3))),
        ("lengths([5, 3]) & causal", loom.lengths([5, 3]) & loom.causal),
        ("documents(offsets=[0, 2, 5], length=7)", loom.documents(offsets=[0, 2, 5], length=7)),
        ("shifted(causal | prefix(2), q_offset=3)", loom.masks.shifted(loom.causal | loom.prefix(2), q_offset=3)),
        ("everything", loom.everything),
    ],
)
def test_meanings(text, mask):
    assert loom.parse(text) == mask


def test_names_of_ones_own():
    lens = loom.lengths([3, 5])
    assert loom.parse("causal & batch", {"batch": lens}) == loom.causal & lens
    assert loom.parse("twice(causal)", {"twice": lambda mask: mask & mask}) == loom.causal & loom.causal


@pytest.mark.parametrize(
    ("text", "words", "mark"),
    [
        ("causl & sinks(2)", "no mask is called 'causl'; is causal meant?", "^^^^^"),
        ("causal & window", "window takes arguments: write window(...)", "         ^^^^^^"),
        ("causal()", "causal is itself a mask: write it without brackets", "^^^^^^^^"),
        ("causal and sinks(2)", "masks are combined with & | ^ ~, not with and, or, not", "^^^^^^^^^^^^^^^^^^^"),
        ("not causal", "not with and, or, not", "^^^^^^^^^^"),
        ("causal & window(back=-1)", "back is a number of positions, at least 0; got -1", "         ^^^^^^^^^^^^^^^"),
        ("causal & window(front=1)", "unexpected keyword argument 'front'", "         ^^^^^^^^^^^^^^^"),
        ("causal & 3", "here stands a mask", "         ^"),
        ("causal + sinks(2)", "here stands a mask", "^^^^^^^^^^^^^^^^^"),
        ("causal &", "this cannot be read: invalid syntax", "        ^"),
        ("(causal", "'(' was never closed", "^"),
        ("__import__('os').system('x')", "here stands the name of a mask", "^^^^^^^^^^^^^^^^^^^^^^^"),
        ("causal.__class__", "here stands a mask", "^^^^^^^^^^^^^^^^"),
        ("sinks(open('x'))", "no mask is called 'open'", "      ^^^^"),
        ("sinks(**{})", "** has no meaning here", "        ^^"),
        ("ähnlich & causl", "no mask is called 'ähnlich'", "^^^^^^^"),
        ("window(back=3, back=4)", "back is given twice; which is meant?", " " * 15 + "^^^^^^"),
        ("causal | window(ahead=1, back=3, ahead=2)", "ahead is given twice", " " * 33 + "^^^^^^^"),
        ("sinks(3, n=4)", "n is given by position and by name", "         ^^^"),
        (
            "shifted(causal, mask=sinks(1), q_offset=2)",
            "mask is given by position and by name",
            " " * 16 + "^^^^^^^^^^^^^",
        ),
        ("ähnlich(1, x=2, x=3)", "no mask is called 'ähnlich'", "^^^^^^^"),
        ("window(3, ahead=1)", "; window takes back, ahead", "^^^^^^^^^^^^^^^^^^"),
        ("causal & window(size=1)", "'size'; window takes back, ahead", "         ^^^^^^^^^^^^^^"),
        ("causal & sliding_window(4096)", "'sliding_window'; is window(back=...) meant?", "         ^^^^^^^^^^^^^^"),
        ("[causal for x in y]", "here stands a mask", "^^^^^^^^^^^^^^^^^^^"),
    ],
)
def test_words_and_the_mark_under_the_place(text, words, mark):
    with pytest.raises(loom.ParseError) as caught:
        loom.parse(text)
    first, shown, under = str(caught.value).split("\n")
    assert words in first
    assert shown == f"  {text}"
    assert under == f"  {mark}"


def test_an_argument_of_ones_own_function_is_given_once():
    names = {"within_reach": lambda first, *rest, reach=1, **options: loom.window(back=reach)}
    assert loom.parse("within_reach(1, 2, reach=3)", names) == loom.window(back=3)
    with pytest.raises(loom.ParseError, match="first is given by position and by name"):
        loom.parse("within_reach(1, first=3)", names)
    with pytest.raises(loom.ParseError, match="other is given twice"):
        loom.parse("within_reach(1, other=3, other=3)", names)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the expression is empty"),
        ("~" * 9000 + "causal", "nested too deeply"),
        ("x" * 10001, "at most 10000 characters"),
    ],
)
def test_texts_without_a_place(text, words):
    with pytest.raises(loom.ParseError, match=words):
        loom.parse(text)


def test_only_strings():
    with pytest.raises(TypeError, match="parsed from a string; got int: 3"):
        loom.parse(3)
