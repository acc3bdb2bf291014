"""The example of a mask of one's own keeps every law, and refuses what is no table of speakers."""

import pytest
import torch

from examples import your_own_mask


def test_it_runs_and_prints_the_mask(capsys):
    out = your_own_mask.main()
    assert out.shape == (2, 4, 9, 16) and out.isfinite().all()
    printed = capsys.readouterr().out
    assert "causal & (same_speaker(int64[2, 9]) | window(back=1, ahead=0))" in printed
    assert "x x x · · · · · ·" in printed  # the second row's third query


def test_a_table_that_is_none_is_refused():
    with pytest.raises(ValueError, match=r"speaker is integers \(B, L\); got torch\.float32 \(3,\)"):
        your_own_mask.same_speaker(torch.zeros(3))
