"""A scale that changes is a tensor before the score mod."""

import torch

import maskloom as loom
from maskloom.attention.kernels.scaled import ScaledScore, is_first_scale, scale_tensor


def test_the_first_scale_of_a_kind_stays_the_first():
    kind = object()
    assert is_first_scale(kind, 0.5)
    assert not is_first_scale(kind, 0.25)
    assert is_first_scale(kind, 0.5) and is_first_scale(object(), 0.25)


def test_the_tensor_of_a_scale_is_made_once_and_outside_of_inference_mode():
    with torch.inference_mode():
        made = scale_tensor(0.3125, torch.device("cpu"))
    assert made is scale_tensor(0.3125, torch.device("cpu"))
    assert not made.is_inference() and made.dtype == torch.float32 and made == 0.3125


def test_scores_are_scaled_before_a_score_mod():
    scaled = ScaledScore(scale_tensor(0.25, torch.device("cpu")), None)
    score, zero = torch.tensor(8.0), torch.zeros((), dtype=torch.int64)
    assert scaled(score, zero, zero, zero, zero) == 2
    assert scaled.before(None) is scaled
    cap = loom.scores.softcap(3.0)
    found = scaled.before(cap)(score, zero, zero, zero, zero)
    torch.testing.assert_close(found, cap(torch.tensor(2.0), zero, zero, zero, zero))
