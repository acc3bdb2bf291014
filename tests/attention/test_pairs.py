"""Any two choices together, on the CPU: right results, refusals by name, and what "auto" takes."""

import itertools
import re

import pytest

import maskloom as loom
from maskloom.attention.backends import choose
from tests.pairs import (
    BACKENDS,
    ON_CPU,
    ON_GPU,
    check,
    check_choice,
    covering,
    given,
    pairs_of,
    refusals,
    refused_kinds,
)

KINDS = covering(ON_CPU, on_gpu=False)


@pytest.mark.parametrize(("axes", "on_gpu"), [(ON_CPU, False), (ON_CPU, True), (ON_GPU, True)])
def test_every_pair_that_is_possible_is_in_a_kind(axes, on_gpu, monkeypatch):
    monkeypatch.setattr("tests.pairs.has_flash", lambda: True)
    kinds = covering(axes, on_gpu=on_gpu)
    assert not any(refusals(kind._asdict(), on_gpu=on_gpu) for kind in kinds)
    met = {pair for kind in kinds for pair in itertools.combinations(kind._asdict().items(), 2)}
    lacking = [pair for pair in pairs_of(axes) if pair not in met]
    assert all(refusals(dict(pair), on_gpu=on_gpu) for pair in lacking)
    assert {(backend, value) for (_, backend), value in lacking} == {
        (kind.backend, (axis, value))
        for kind, words in refused_kinds(axes, on_gpu=on_gpu)
        for axis, value in kind._asdict().items()
        if refusals({"backend": kind.backend, axis: value}, on_gpu=on_gpu) == [words]
        and axis != "backend"
    }  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kinds_are_right(kind):
    check_choice(kind, "cpu")
    check(kind, "cpu")


@pytest.mark.parametrize(("kind", "words"), refused_kinds(ON_CPU, on_gpu=False), ids=str)
def test_what_is_refused_is_refused_by_name(kind, words):
    tensors, mask, how = given(kind, *kind.lengths[0], "cpu")
    for call in (loom.attend, loom.explain):
        with pytest.raises(ValueError, match=f"backend '{kind.backend}' cannot do this: .*{re.escape(words)}"):
            call(*tensors, mask, backend=kind.backend, **how)


def test_every_backend_meets_every_other_choice():
    assert set(BACKENDS) == set(choose.BACKENDS) - {
        "decode"
    }  # which has no backward: tests/gpu/test_decode.py has its own
