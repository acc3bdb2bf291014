"""The laws of `check_mask` find classes that break them."""

import pytest
import torch

import maskloom as loom
from maskloom.masks.algebra import Tabled
from maskloom.masks.padded import PaddingMask, outside
from maskloom.masks.signed import without_negative
from maskloom.testing import check_mask, check_writes

LENS = torch.tensor([5, 0, 13])


@loom.masks.mask_dataclass
class Lengths(PaddingMask):
    """Keeps every law: keys behind a length are hidden, and queries too."""

    lens: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return (q_idx < self.lens[b]) & (kv_idx < self.lens[b])

    def signed(self, b, h, q_idx, kv_idx, signed):
        return without_negative(self(b, h, q_idx, kv_idx), q_idx, kv_idx, signed)

    def hidden_keys(self, kv_len, first=0):
        return outside(self.lens, first, kv_len)

    def hidden_queries(self, q_len, first=0):
        return outside(self.lens, first, q_len)


@loom.masks.mask_dataclass
class TooMuch(Lengths):
    def hidden_keys(self, kv_len, first=0):
        return outside(self.lens - 1, first, kv_len)


@loom.masks.mask_dataclass
class TooManyQueries(Lengths):
    def hidden_queries(self, q_len, first=0):
        return outside(self.lens - 1, first, q_len)


@loom.masks.mask_dataclass
class OfNumbers(Lengths):
    def hidden_keys(self, kv_len, first=0):
        return outside(self.lens, first, kv_len).long()


@loom.masks.mask_dataclass
class OfOneLength(Lengths):
    def hidden_queries(self, q_len, first=0):
        return outside(self.lens, first, 5)


@loom.masks.mask_dataclass
class FromZero(Lengths):
    def hidden_keys(self, kv_len, first=0):
        return outside(self.lens, 0, kv_len)


@loom.masks.mask_dataclass
class QueriesFromZero(Lengths):
    def hidden_queries(self, q_len, first=0):
        return outside(self.lens, 0, q_len)


@loom.masks.mask_dataclass
class WithoutFirst(Lengths):
    def hidden_keys(self, kv_len):
        return outside(self.lens, 0, kv_len)


@loom.masks.mask_dataclass
class SeesBeforeZero(Lengths):
    def signed(self, b, h, q_idx, kv_idx, signed):
        return self(b, h, q_idx, kv_idx)


@loom.masks.mask_dataclass
class QueriesSeeBeforeZero(Lengths):
    def signed(self, b, h, q_idx, kv_idx, signed):
        return PaddingMask.signed(self, b, h, q_idx, kv_idx, signed)


@loom.masks.mask_dataclass
class ForgetsBeforeZero(Lengths):
    def hidden_keys(self, kv_len, first=0):
        return outside(self.lens, first, kv_len) & (torch.arange(kv_len) + first >= 0)


@loom.masks.mask_dataclass
class Marked(Tabled):
    """Keeps every law: reads a table of keys."""

    marks: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.marks[kv_idx]


@loom.masks.mask_dataclass
class FromTheEnd(Marked):
    def signed(self, b, h, q_idx, kv_idx, signed):
        return self(b, h, q_idx, kv_idx)


@loom.masks.mask_dataclass
class OneLater(Marked):
    def signed(self, b, h, q_idx, kv_idx, signed):
        return super().signed(b, h, q_idx, kv_idx - 1, signed)


@loom.masks.mask_dataclass
class Wrapped(loom.Mask):
    mask: loom.Mask

    def __call__(self, b, h, q_idx, kv_idx):
        return self.mask(b, h, q_idx, kv_idx)


@loom.masks.mask_dataclass
class FromZeroOn(loom.Mask):
    """Of positions from 0 on alone."""

    marks: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.marks[kv_idx]


MARKS = torch.arange(17) % 5 != 3
BROKEN = {
    "keys that are seen": (TooMuch(LENS), "nothing sees a key that is known to be padding"),
    "queries that see": (TooManyQueries(LENS), "what is known to be padding sees nothing"),
    "numbers": (OfNumbers(LENS), r"hidden_keys is bool, \(B or 1, length\)"),
    "length": (OfOneLength(LENS), r"hidden_queries is bool, \(B or 1, length\)"),
    "keys from 0": (FromZero(LENS), "hidden_keys from position 2 on are those of the whole"),
    "queries from 0": (QueriesFromZero(LENS), "hidden_queries from position 2 on are those of the whole"),
    "no first": (WithoutFirst(LENS), "hidden_keys and hidden_queries take a length and the first position"),
    "sees before 0": (SeesBeforeZero(LENS), "nothing sees a key that is known to be padding"),
    "queries see before 0": (QueriesSeeBeforeZero(LENS), "what is known to be padding sees nothing"),
    "forgets": (ForgetsBeforeZero(LENS), "hidden_keys hides keys before position 0"),
    "a table from its end": (FromTheEnd(MARKS), "under shifted nothing is read before position 0"),
    "one later": (OneLater(MARKS), "under shifted a mask says the same at positions from 0 on"),
    "a mask in a mask": (Wrapped(Lengths(LENS)), "Wrapped calls signed of the masks that it holds"),
    "a mask in a part": (loom.causal & Wrapped(loom.lengths(LENS)), "Wrapped calls signed of the masks that it holds"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_law_that_is_broken_is_named(name):
    mask, words = BROKEN[name]
    with pytest.raises(AssertionError, match=f"^broken law of masks: {words}"):
        check_mask(mask)


KEPT = [Lengths(LENS), loom.causal & Marked(MARKS), Wrapped(loom.causal), loom.causal & FromZeroOn(MARKS)]


@pytest.mark.parametrize("mask", KEPT, ids=str)
def test_classes_that_keep_every_law(mask):
    check_mask(mask)
    check_mask(mask, q_len=1, kv_len=2)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"q_len": 0}, "q_len is a number of positions, at least 1; got 0"),
        ({"kv_len": 0}, "kv_len is a number of positions, at least 1; got 0"),
        ({"batch": 0}, "batch is a number of batch rows, at least 1; got 0"),
        ({"heads": 0}, "heads is a number of heads, at least 1; got 0"),
    ],
)
def test_sizes_of_which_nothing_can_be_checked(sizes, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        check_mask(loom.causal, **sizes)
    with pytest.raises(ValueError, match=f"^{words}$"):
        check_writes(lambda lens: loom.lengths(lens), [LENS], [LENS], **sizes)


def test_a_mask_of_no_batch_rows():
    with pytest.raises(ValueError, match=r"^a mask of no batch rows keeps every law; .*; got lengths\(int64\[0\]\)$"):
        check_mask(loom.lengths([]))
