"""What is known of a score_mod before it runs: whether it adds, and which tensors of it get a gradient."""

import pytest
import torch

import maskloom as loom
from maskloom.scores.base import ScoreReading
from maskloom.scores.reading import read_score

CPU = torch.device("cpu")
TABLE = torch.zeros(3, 7, requires_grad=True)
EMBEDDING = torch.nn.Embedding(5, 3)
LINE = torch.nn.Linear(1, 3)


def read(score_mod):
    return read_score(score_mod, CPU, torch.float32)


def of_a_module(score, b, h, q, k):
    return score + EMBEDDING(q - k)[h] + LINE((q - k).float()[None])[h]


def hidden(score, b, h, q, k):
    """A learned tensor that goes into an autograd function of the caller's."""
    return Hides.apply(score, TABLE)


class Hides(torch.autograd.Function):
    @staticmethod
    def forward(ctx, score, table):
        return score * table[0, 0]

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def ids(tensors):
    return sorted(map(id, tensors))


def test_ours_are_not_run():
    assert read(loom.scores.alibi(3)) == ScoreReading(True, ())
    assert read(loom.scores.softcap(3.0)) == ScoreReading(False, ())
    found = read(loom.scores.compose(loom.scores.softcap(3.0), loom.scores.relative_bias(TABLE)))
    assert not found.adds and ids(found.learned) == ids([TABLE])


@pytest.mark.parametrize(
    ("score_mod", "adds", "learned"),
    [
        (lambda score, b, h, q, k: score + TABLE[h, (q - k).clamp(0, 6)], True, [TABLE]),
        (lambda score, b, h, q, k: score + TABLE.T[k][h] + TABLE[0, 0], True, [TABLE]),
        (lambda score, b, h, q, k: score * TABLE[h].sum(), False, [TABLE]),
        (lambda score, b, h, q, k: score + TABLE.detach()[h, q], True, []),
        (of_a_module, True, [EMBEDDING.weight, LINE.weight, LINE.bias]),
        (loom.scores.compose(loom.scores.relative_bias(TABLE), lambda score, b, h, q, k: score), True, [TABLE]),
        (lambda score, b, h, q, k: TABLE[h, q], False, [TABLE]),
    ],
)
def test_plain_functions(score_mod, adds, learned):
    found = read(score_mod)
    assert found.adds == adds
    assert ids(found.learned) == ids(learned)
    with torch.no_grad():
        assert read(score_mod) == ScoreReading(adds, ())


def test_a_tensor_that_was_computed_is_learned_itself():
    computed = TABLE.exp()
    assert ids(read(lambda score, b, h, q, k: score + computed[h, q]).learned) == [id(computed)]


@pytest.mark.parametrize("score_mod", [hidden, lambda *scalars: None])
def test_what_is_not_known(score_mod):
    assert read(score_mod) is None


def test_nothing_is_known_while_torch_traces_or_transforms():
    found = []

    def within(x):
        found.append(read(loom.scores.alibi(3)))
        return x

    torch.func.vmap(within)(torch.zeros(2))
    torch.func.grad(within)(torch.zeros(()))
    assert found == [None, None]
