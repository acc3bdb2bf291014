"""What a score_mod gives is a score, or the error says what it gave."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.reference import reference
from tests.scores.no_scores import NO_SCORES

B, H, Q, K, D = 3, 2, 5, 7, 4


def inputs():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(B, H, length, D, generator=generator) for length in (Q, K, K)]


@pytest.mark.parametrize("call", [loom.attend, reference])
@pytest.mark.parametrize("name", NO_SCORES)
def test_no_score_is_an_error(name, call):
    score_mod, words = NO_SCORES[name]
    with pytest.raises(TypeError, match=words) as error:
        call(*inputs(), loom.causal, score_mod=score_mod)
    assert str(error.value).startswith("a score_mod answers with the score, a tensor without dimensions, for one (")


def test_it_is_named():
    score_mod, _ = NO_SCORES["none"]
    with pytest.raises(TypeError, match="forgetful gave None"):
        loom.attend(*inputs(), score_mod=score_mod)
    with pytest.raises(TypeError, match=r"shifted_score\(forgetful, q_offset=2\) gave None"):
        loom.attend(*inputs(), score_mod=score_mod, q_offset=2)


def test_integers_are_scores_as_in_torch():
    whole = loom.attend(*inputs(), score_mod=lambda score, b, h, q_idx, kv_idx: kv_idx - q_idx)
    floating = loom.attend(*inputs(), score_mod=lambda score, b, h, q_idx, kv_idx: (kv_idx - q_idx).float())
    assert torch.equal(whole, floating)
