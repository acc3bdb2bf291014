"""Bad parameters: the words of each error."""

import pytest
import torch

import maskloom as loom

PADS = torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: loom.window(back=-1), ValueError, "back is a number of positions, at least 0; got -1"),
        (lambda: loom.window(back=1, ahead=2.5), TypeError, "ahead is a number of positions, an int; got float: 2.5"),
        (
            lambda: loom.window(back=10**30),
            ValueError,
            r"back is a number of positions, at most 1073741824 in size; got 10+$",
        ),
        (
            lambda: loom.masks.band(-(10**30), 0),
            ValueError,
            "low is a distance in positions, at most 1073741824 in size; got -10",
        ),
        (lambda: loom.lengths([10**30]), TypeError, r"lens are integers, a tensor or a list of them; got \[10+.*\]"),
        (lambda: loom.lengths(["a"]), TypeError, r"lens are integers, a tensor or a list of them; got \['a'\]"),
        (lambda: loom.lengths([loom.causal]), TypeError, r"got \[causal\]"),
        (
            lambda: loom.masks.shifted(loom.causal, q_offset=10**30),
            ValueError,
            "q_offset is a position, at most 1073741824",
        ),
        (lambda: loom.masks.mixed_modal(["a"]), TypeError, r"modality_ids are integers, .* got \['a'\]"),
        (
            lambda: loom.masks.flamingo(["a"], tokens_per_media=1),
            TypeError,
            r"media_locations are bools, .* got \['a'\]",
        ),
        (lambda: loom.masks.turns([0, 1], visible=["a"]), TypeError, r"visible are bools, .* got \['a'\]"),
        (lambda: loom.documents([]), ValueError, r"ids are integers, at least one; got \[\]"),
        (lambda: loom.documents([[0, 1], [1]]), TypeError, r"ids are integers, .* got \[\[0, 1\], \[1\]\]"),
        (lambda: loom.window(3), TypeError, "positional argument"),
        (lambda: loom.sinks(True), TypeError, "n is a number of positions, an int; got bool"),
        (lambda: loom.prefix(-2), ValueError, "got -2"),
        (lambda: loom.prefix([3, -2]), ValueError, "n are numbers of positions, at least 0; got -2"),
        (lambda: loom.lengths(torch.tensor([1.5])), TypeError, "lens are integers; got torch.float32"),
        (lambda: loom.lengths(PADS), TypeError, "lens are integers; got torch.bool"),
        (lambda: loom.lengths(torch.ones(2, 3).long()), ValueError, r"shape \(B,\); got shape \(2, 3\)"),
        (lambda: loom.lengths([3], [3, 4]), ValueError, "lens has 1 batch rows and kv_lens has 2"),
        (lambda: loom.padding(PADS.long()), TypeError, "pads is a bool tensor, True = padding; got torch.int64"),
        (lambda: loom.padding([True]), TypeError, "pads is a bool tensor .* got list"),
        (lambda: loom.padding(PADS[0]), ValueError, r"pads has shape \(B, L\), True = padding; got \(3,\)"),
        (lambda: loom.padding(PADS, PADS[:1]), ValueError, "pads has 2 batch rows and kv_pads has 1"),
        (lambda: loom.key_padding(PADS.float()), TypeError, "got torch.float32"),
        (
            lambda: loom.real(PADS.float()),
            TypeError,
            "is_real is a bool tensor, True = a real token; got torch.float32",
        ),
        (lambda: loom.real(torch.full((2, 3), 2)), ValueError, "is_real holds 0 and 1; got values from 2 to 2"),
        (lambda: loom.documents(), TypeError, "documents takes one of ids, offsets, position_ids; got none"),
        (lambda: loom.documents([1], offsets=[0, 1]), TypeError, "got ids and offsets"),
        (lambda: loom.documents([0, 1], length=5), TypeError, "take no length="),
        (lambda: loom.documents(torch.zeros(2, 3, 5).long()), ValueError, r"ids has shape \(L,\) or \(B, L\)"),
        (lambda: loom.documents(offsets=[1, 3]), ValueError, "offsets start at 0; got 1"),
        (lambda: loom.documents(offsets=[0, 5, 3]), ValueError, "offsets never fall; got 5 and then 3 at entry 2"),
        (lambda: loom.documents(offsets=[0]), ValueError, "at least 2 entries"),
        (lambda: loom.documents(offsets=[0, 5], length=3), ValueError, "length is 3, and 5 positions are filled"),
        (lambda: loom.documents(offsets=[0, 0]), ValueError, "at least 1 position; got 0"),
    ],
)
def test_words(make, error, words):
    with pytest.raises(error, match=words):
        make()
