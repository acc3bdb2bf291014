"""Which score mods only add, read from one run on scalars; `added` gives what they add."""

import pytest
import torch

from maskloom.program.record import record_score
from maskloom.scores.additive import is_sum
from maskloom.scores.lifted import added, modified, modified_part
from tests.scores.all_scores import ALL, B, H, K, Q

CPU = torch.device("cpu")
BIAS = torch.linspace(-1, 1, H * 30).reshape(H, 30)
INF = float("inf")


def in_place(score, b, h, q_idx, kv_idx):
    score += BIAS[h, q_idx]
    return score


def later_in_place(score, b, h, q_idx, kv_idx):
    made = score + 1
    made -= BIAS[h, kv_idx]
    return made


ADD = {
    "itself": lambda score, b, h, q, k: score,
    "a table": lambda score, b, h, q, k: score + BIAS[h, q - k + 16],
    "before the score": lambda score, b, h, q, k: BIAS[h][k] + score,
    "less": lambda score, b, h, q, k: score - 0.5 * (q - k).abs(),
    "times": lambda score, b, h, q, k: torch.add(score, k, alpha=2),
    "twice": lambda score, b, h, q, k: score + BIAS[h, q] - BIAS[h, k],
    "a float64 table": lambda score, b, h, q, k: score + BIAS.double()[h, k],
    "one of two sums": lambda score, b, h, q, k: torch.where(k % 2 == 0, score, score - 1),
    "-inf": lambda score, b, h, q, k: torch.where(q >= k, score + q, -INF),
    "-inf, filled": lambda score, b, h, q, k: score.masked_fill(q < k, -INF),
    "by batch row": lambda score, b, h, q, k: score + b * k,
    "clone": lambda score, b, h, q, k: score.clone() + 1,
}
DO_MORE = {
    "twice the score": lambda score, b, h, q, k: score + score,
    "times": lambda score, b, h, q, k: score * 2 + k,
    "minus the score": lambda score, b, h, q, k: k - score,
    "the alpha of the score": lambda score, b, h, q, k: torch.add(k.float(), score, alpha=2),
    "a cap": lambda score, b, h, q, k: 30 * torch.tanh(score / 30),
    "by the score": lambda score, b, h, q, k: torch.where(score > 0, score, score - 1),
    "another number": lambda score, b, h, q, k: torch.where(q >= k, score, -9.0),
    "inf": lambda score, b, h, q, k: torch.where(q >= k, score, INF),
    "detached": lambda score, b, h, q, k: score.detach() + k,
    "no score": lambda score, b, h, q, k: k + 0.0,
    "rounded": lambda score, b, h, q, k: score.to(torch.bfloat16) + k.to(torch.bfloat16),
    "in place": in_place,
    "later in place": later_in_place,
    "clamped": lambda score, b, h, q, k: score.clamp(max=3) + k,
}


@pytest.mark.parametrize("name", ADD)
def test_what_only_adds(name):
    score_mod = ADD[name]
    assert is_sum(record_score(score_mod, CPU, torch.float32))
    check_added(score_mod)


@pytest.mark.parametrize("name", DO_MORE)
def test_what_is_not_known_to_only_add(name):
    assert not is_sum(record_score(DO_MORE[name], CPU, torch.float32))


@pytest.mark.parametrize("name", ALL)
def test_what_ours_say_of_themselves(name):
    score_mod = ALL[name]()
    assert score_mod.adds == is_sum(record_score(score_mod, CPU, torch.float32))
    assert score_mod.adds == ("softcap" not in name and "compose" not in name)
    if score_mod.adds:
        assert score_mod.is_by_distance
        check_added(score_mod)


@pytest.mark.parametrize("name", ALL)
def test_a_part_is_that_of_the_whole(name):
    score_mod = ALL[name]()
    scores = torch.randn(B, H, Q, K, generator=torch.Generator().manual_seed(0))
    part = modified_part(scores[1:, 2:5, 3:7, 2:13], score_mod, (1, 2, 3, 2))
    torch.testing.assert_close(part, modified(scores, score_mod)[1:, 2:5, 3:7, 2:13])


def check_added(score_mod):
    """What it adds to a part, against what it makes of all scores."""
    scores = torch.randn(B, H, Q, K, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = modified(scores, score_mod)
    for first, last in (((0, 0, 0, 0), (B, H, Q, K)), ((1, 2, 3, 2), (2, 5, 5, 13)), ((0, 0, 4, 5), (3, 6, 5, 6))):
        there = tuple(map(slice, first, last))
        sizes = [end - start for start, end in zip(first, last, strict=True)]
        found = added(score_mod, sizes, first, torch.zeros((), dtype=torch.float64))
        assert found.dtype == torch.float64 and found.shape[0] in (1, sizes[0]) and found.shape[1] in (1, sizes[1])
        torch.testing.assert_close(scores[there] + found, made[there])


def test_what_is_the_same_for_all_rows_is_there_once():
    sizes, zero = (B, H, Q, K), torch.zeros(())
    assert added(ALL["alibi"](), sizes, (0, 0, 0, 0), zero).shape == (1, H, Q, K)
    assert added(ADD["a table"], sizes, (0, 0, 0, 0), zero).shape == (1, H, Q, K)
    assert added(ADD["by batch row"], sizes, (0, 0, 0, 0), zero).shape == (B, 1, 1, K)
    assert added(ALL["shifted_by_row"](), sizes, (0, 0, 0, 0), zero).shape == (B, H, Q, K)
