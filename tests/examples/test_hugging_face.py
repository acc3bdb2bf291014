"""The example of transformers: padded as "eager", and packed as each document alone."""

import pytest

pytest.importorskip("transformers", "5.17")

from examples import hugging_face


def test_padded_and_packed_are_what_they_should_be(capsys):
    found = hugging_face.main()
    assert found.keys() == {"padded", "packed"}
    assert max(found.values()) < 1e-5
    assert "given: causal" in capsys.readouterr().out
