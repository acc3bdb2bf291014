"""What strategies cost, and which one "auto" takes."""

import pytest
import torch

import maskloom as loom
from maskloom.distributed.asking import checked, weighed
from maskloom.distributed.sharing.scheme import Sizes
from maskloom.distributed.sharing.schemes import kv_shares

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
    found, _ = schemes(loom.causal & loom.documents(offsets=[0, 1024, 4096, 8192]), [2])
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
