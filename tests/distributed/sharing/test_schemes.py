"""What strategies cost, and which one "auto" takes."""

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import maskloom as loom
from maskloom.distributed.asking import checked, weighed
from maskloom.distributed.sharing.assignment import in_order
from maskloom.distributed.sharing.both_ends import BothEnds
from maskloom.distributed.sharing.scheme import Scheme, Sizes
from maskloom.distributed.sharing.schemes import _Way, kv_shares, scheme
from maskloom.distributed.sharing.tiles import Tiles
from tests.distributed.sharing.random_tiles import needs

LENGTH = 8192


def schemes(mask, ranks, **options):
    found = weighed(checked(mask, LENGTH, ranks, **({"heads": (32, 8)} | options)), ranks)
    return {one.said: one for one in found.schemes}, found


def auto(mask, ranks, length=65536, **options):
    return weighed(checked(mask, length, ranks, **({"heads": (32, 8)} | options)), ranks).best.said


def test_the_window_moves_between_neighbours_alone():
    found, _ = schemes(loom.window(back=1023), [4])
    row = 2 * 8 * 128 * 2  # keys and values, heads, features, bytes
    assert found["needed"].received == (0, 1024 * row, 1024 * row, 1024 * row)
    assert found["gather"].bytes == 3 * (LENGTH // 4) * row


def test_documents_that_end_where_ranks_do_move_nothing():
    found, _ = schemes(loom.causal & loom.documents(offsets=[0, 1024, 4096, 5120, 8192]), [2])
    assert found["needed"].bytes == 0


def test_heads_move_what_they_are():
    found, _ = schemes(loom.causal, [4])
    assert found["heads"].bytes == 3 * (LENGTH // 4) * 2 * (8 + 2) * 128 * 2
    assert found["heads"].balance == 1.0


def test_work_of_ranks_adds_up_whatever_the_strategy():
    mask = loom.masks.per_head([loom.causal, loom.window(back=99)] * 16)
    found, asked = schemes(mask, [4])
    total = int(asked.tiles.counts.sum())
    assert {sum(one.loads) for one in found.values()} == {total}
    halves, _ = schemes(loom.masks.per_head([loom.causal] * 16 + [loom.window(back=99)] * 16), [2])
    assert halves["heads"].balance > 1.8  # heads that have more to do are on one rank


@pytest.mark.parametrize(
    ("mask", "name"),
    [
        (loom.causal, "gather"),
        (loom.window(back=1023), "needed"),
        (loom.causal & loom.documents(torch.arange(65536) // 4000), "needed"),
    ],
)
def test_auto_takes_what_moves_least_where_work_is_even(mask, name):
    assert auto(mask, [2]) == name


@pytest.mark.parametrize(("ranks", "length"), [(2, 10007), (3, 65536), (4, 10007), (6, 65536)])
def test_auto_gathers_where_everything_is_needed(ranks, length):
    """Also where runs from both ends are even by a little more."""
    assert auto(loom.causal, [ranks], length=length) == "gather"


def test_auto_takes_heads_where_these_are_all_that_move_little():
    assert auto(loom.causal, [8], heads=(8, 8), length=8192) == "heads"


def test_auto_passes_over_heads_that_ranks_do_not_divide():
    found = checked(loom.causal, LENGTH, [3], heads=(32, 8))
    assert found.ways == (("gather",), ("needed",))
    words = 'strategy "heads" gives each rank as many query heads; there are 32 heads and 3 ranks'
    assert found.refused == {"heads": words}
    with pytest.raises(ValueError, match=r"there are 32 heads and 3 ranks"):
        checked(loom.causal, LENGTH, [3], heads=(32, 8), strategy="heads")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "parts", "shares"), [(32, 8, 4, 2), (6, 2, 3, 2), (32, 1, 4, 1), (32, 8, 16, 1)]
)
def test_key_heads_of_a_part(heads, kv_heads, parts, shares):
    assert kv_shares(Sizes(1, heads, kv_heads, 1, 1, 1), parts) == shares


# -- runs of "needed" --------------------------------------------------------------------------------------------------


def needed(mask: loom.Mask, length: int, ranks: int) -> Scheme:
    (found,) = weighed(checked(mask, length, [ranks], heads=(32, 8), strategy="needed"), [ranks]).schemes
    return found


def documents(length: int) -> loom.Mask:
    """Those of `benchmarks/context_parallel.py`: of 1,024 to 8,192 positions."""
    lens = torch.randint(1025, 8193, (length // 1025 + 1,), generator=torch.Generator().manual_seed(0))
    ends = lens.cumsum(0)
    return loom.documents(offsets=[0, *ends[ends < length].tolist(), length])


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("length", [32768, 65536, 131072])
def test_documents_are_even_and_move_little(length, ranks):
    found = needed(loom.causal & documents(length), length, ranks)
    assert found.balance <= 1.06
    assert found.bytes <= 24 << 20
    assert found.rows == -(-length // (128 * ranks)) * 128
    if ranks == 2:
        assert found.balance <= 1.01


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_causal_is_even(ranks):
    assert needed(loom.causal, 32768, ranks).balance <= 1.01


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("length", [8192, 32768, 65536, 131072])
def test_windows_stay_in_order(length, ranks):
    found = needed(loom.window(back=1023), length, ranks)
    assert found.assignment == in_order(length // 128, ranks)
    assert found.bytes == 1024 * 2 * 8 * 128 * 2


def test_a_window_that_is_uneven_in_order_does_not_stay():
    assert needed(loom.window(back=32767), 32768, 2).balance <= 1.01


@pytest.mark.parametrize(("length", "most"), [(32768, 8), (131072, 8), (1 << 20, 2)])
def test_few_are_weighed(length, most):
    mask = loom.causal & documents(length)
    with patch.object(BothEnds, "best", autospec=True, side_effect=BothEnds.best) as best:
        needed(mask, length, 4)
        assert 1 <= best.call_count <= most
        best.reset_mock()
        needed(loom.window(back=1023), length, 2)
        assert best.call_count == 0  # even enough


@given(st.integers(2, 80), st.integers(2, 5), st.integers(1, 2), st.integers(0, 99))
def test_it_is_never_slower_than_in_order(number, groups, parts, seed):
    generator = torch.Generator().manual_seed(seed)
    table = torch.stack([needs(number, generator) for _ in range(2 if seed % 2 else 1)])
    marks = frozenset({"q_idx", "kv_idx"} | ({"h"} if seed % 2 else set()))
    tiles = Tiles(number * 64 - seed % 64, 64, None, table.sum(2), table.any(0), marks)
    sizes = Sizes(tiles.length, 2, 2, 128, 2, 1)
    names, ranks = (("needed",), [groups]) if parts == 1 else (("heads", "needed"), [parts, groups])
    found, way = scheme(names, ranks, tiles, sizes), _Way(names, parts, groups, tiles, sizes)
    simple = way.scheme(in_order(number, groups))
    assert way.seconds(found) <= way.seconds(simple)
    assert found.rows <= simple.rows
    assert sum(found.loads) == sum(simple.loads)
    if found.assignment != simple.assignment:
        assert way.seconds(found) * 1.02 < way.seconds(simple)
        assert found.assignment.how == "runs from both ends"
