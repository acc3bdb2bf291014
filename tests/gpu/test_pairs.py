"""Any two choices together, on the GPU: right results, refusals by name, and what "auto" takes."""

import re

import pytest

import maskloom as loom
from maskloom.attention.backends import choose
from tests.pairs import ON_GPU, check, check_choice, covering, given, refused_kinds

KINDS = covering(ON_GPU, on_gpu=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_kinds_are_right(kind, monkeypatch):
    monkeypatch.setattr(choose, "LITTLE", 0)  # every kind here is little, and all but triton would be passed over
    check_choice(kind, "cuda")
    check(kind, "cuda")


@pytest.mark.parametrize(("kind", "words"), refused_kinds(ON_GPU, on_gpu=True), ids=str)
def test_what_is_refused_is_refused_by_name(kind, words):
    tensors, mask, how = given(kind, *kind.lengths[0], "cuda")
    for call in (loom.attend, loom.explain):
        with pytest.raises(ValueError, match=f"backend '{kind.backend}' cannot do this: .*{re.escape(words)}"):
            call(*tensors, mask, backend=kind.backend, **how)
