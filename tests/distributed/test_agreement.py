"""Processes that ask for different plans, that refuse, that die or never come: each other process is told."""

import pytest

from tests.distributed import cases
from tests.distributed.processes import everywhere, outcomes

ALIKE = "ValueError: the ranks of a mesh plan the same; "


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    return everywhere(3, tmp_path_factory.mktemp("three") / "store", cases.disagreements)


def test_what_differs_is_named_on_every_rank(told):
    first, second, third = told
    assert first == second
    assert {name: words for name, words in first.items() if name != "refused"} == {
        name: words for name, words in third.items() if name != "refused"
    }
    assert first["length"] == f"{ALIKE}length differs: rank 0 has 37, rank 1 has 38"
    assert first["heads"] == f"{ALIKE}heads differs: rank 0 has (6, 3), rank 1 has (6, 2)"
    assert first["strategy"] == f"{ALIKE}strategy differs: rank 0 has 'gather', rank 2 has 'needed'"
    program, tensors = (first[name].removeprefix(ALIKE).split() for name in ("program", "tensors"))
    assert " ".join(program[:5]) == "the mask's program differs: rank"
    assert program[-3:] == ["of", "window(back=3,", "ahead=0)"]
    assert " ".join(tensors[:7]) == "a tensor of the mask differs: rank"


def test_masks_that_do_the_same_are_one_whatever_they_are_called(tmp_path):
    everywhere(3, tmp_path / "store", cases.alike)


def test_an_error_of_one_rank_is_told_to_the_others(told):
    first, _, third = told
    words = "the query heads are a multiple of the key heads; got 7 and 2"
    assert first["refused"] == f"ValueError: rank 2 of the mesh cannot plan: ValueError: {words}"
    assert third["refused"] == f"ValueError: {words}"
    assert first["everyone"] == (
        'ValueError: strategy "heads" gives each rank as many query heads; there are 5 heads and 3 ranks'
    )
    assert first["long rows"] == (
        "ValueError: a row has 41 positions by the mask's lengths(int64[1]); length is 37. "
        "For the first positions of longer rows give q_offset=0"
    )


def test_a_rank_that_dies_in_a_step_is_an_error_on_the_others(tmp_path):
    (_, first), (done, words) = outcomes(2, tmp_path / "store", cases.dying, 1)
    assert (done, words) == (False, "it died")
    assert "Connection closed by peer" in first or "Connection reset" in first


def test_a_rank_that_never_comes_is_an_error_within_the_timeout(tmp_path):
    found = outcomes(2, tmp_path / "store", cases.absent, collective=3)
    assert all(done for done, _ in found), found
    assert "imed out" in found[0][1]
