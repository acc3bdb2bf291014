"""Attention by a plan on 2, 3 and 4 processes equals that of one: outputs, log-sum-exp, all gradients."""

from tests.distributed import cases
from tests.distributed.processes import everywhere


def test_two_processes_equal_one(tmp_path):
    everywhere(
        2, tmp_path / "store", cases.all_of,
        ("options", "documents", "by row"), ("functions",), ("padding",), ("documents_apart",), ("counts",), ("compositions", 8), ("some_heads",), ("offset",), ("overlap",), ("runs",),
    )  # fmt: skip


def test_every_mask_of_the_catalogue_on_two_processes(tmp_path):
    assert everywhere(2, tmp_path / "store", cases.catalogue)[0] > 100


def test_three_processes_equal_one(tmp_path):
    everywhere(
        3, tmp_path / "store", cases.all_of,
        ("rows",), ("options", "by head"), ("padding",), ("documents_apart",), ("counts",), ("compositions", 3), ("overlap",), ("runs",),
    )  # fmt: skip


def test_four_processes_equal_one(tmp_path):
    everywhere(4, tmp_path / "store", cases.all_of, ("hybrid",), ("documents_apart",), ("runs",))


def test_a_mesh_of_one_moves_nothing(tmp_path):
    everywhere(1, tmp_path / "store", cases.alone)
