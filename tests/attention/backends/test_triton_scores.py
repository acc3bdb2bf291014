"""Which score mods Triton's kernel has a backward for."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends import triton_scores
from maskloom.core.cache import LRU
from tests.attention.backends.test_choose import gpu, inputs, refusal  # noqa: F401

B, H = 3, 2
TABLE, CUBE = torch.zeros(H, 13, requires_grad=True), torch.zeros(B, H, 13, 13, requires_grad=True)
ONE, NUMBER, FIXED = torch.ones(1, requires_grad=True), torch.ones((), requires_grad=True), torch.zeros(H, 13)
LINE, EMBED = torch.nn.Linear(1, H), torch.nn.Embedding(13, H)

TAKEN = {
    "one read": lambda s, b, h, i, j: s + TABLE[h, i],
    "four indices": lambda s, b, h, i, j: s * CUBE[b, h, i, j],
    "numbers": lambda s, b, h, i, j: s * ONE[0] - TABLE[1, j],
    "a choice": lambda s, b, h, i, j: torch.where(i > j, TABLE[h, i], s),
    "sizes": lambda s, b, h, i, j: s + TABLE[h, (i - j).clamp(0, TABLE.shape[1] - 1)],
    "fixed": lambda s, b, h, i, j: s + FIXED[h][i] + FIXED[h, j] * TABLE.detach()[h][i],
    "ours": loom.scores.compose(loom.scores.softcap(3.0), loom.scores.relative_bias(TABLE), loom.scores.alibi(H)),
    "ours beside one": loom.scores.compose(loom.scores.relative_bias(TABLE), lambda s, b, h, i, j: s * ONE[0]),
}
MORE = r"does more with a learned tensor of shape \(.*\) than to read one entry by one index, as in table\[h, q_idx\]"
REFUSED = {
    "two reads": (
        lambda s, b, h, i, j: s + TABLE[h, i] + TABLE[h, j],
        r"reads a learned tensor of shape \(2, 13\) more than once; give it a clone of that for each",
    ),
    "shared": (
        loom.scores.compose(loom.scores.relative_bias(TABLE), loom.scores.relative_bias(TABLE)),
        "more than once",
    ),
    "chained": (lambda s, b, h, i, j: s + CUBE[b][h][i][j], MORE),
    "joined": (loom.scores.shifted_score(lambda s, b, h, i, j: s + CUBE[b, h][i, j], q_offset=2), MORE),
    "a row": (lambda s, b, h, i, j: s + TABLE[h].sum(), MORE),
    "a slice": (lambda s, b, h, i, j: s + TABLE[h, 1:].sum(), MORE),
    "transposed": (lambda s, b, h, i, j: s + TABLE.T[i, h], MORE),
    "without dimensions": (lambda s, b, h, i, j: s * NUMBER, MORE),
    "a layer": (lambda s, b, h, i, j: s + LINE((i - j).float()[None])[h], MORE),
    "an embedding": (lambda s, b, h, i, j: s + EMBED(i)[h], MORE),
    "computed": (lambda s, b, h, i, j: torch.stack([s, 2 * s])[0], "score_mod indexes what it computed itself"),
}


def training():
    return [tensor.requires_grad_() for tensor in inputs()]


@pytest.mark.parametrize("name", TAKEN)
def test_taken(gpu, name):  # noqa: F811
    assert loom.explain(*training(), score_mod=TAKEN[name]).backend == "triton"


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_is_launched(gpu, name):  # noqa: F811
    score_mod, words = REFUSED[name]
    explained = loom.explain(*training(), score_mod=score_mod)
    assert explained.backend == "reference"
    with pytest.raises(ValueError, match=words):
        loom.attend(*training(), score_mod=score_mod, backend="triton")
    assert refusal("triton", training(), score_mod=score_mod) == explained.ruled_out["triton"]
    with torch.no_grad():  # the forward of some is torch's to refuse
        assert loom.explain(*training(), score_mod=score_mod).backend == "triton"


def test_what_it_raises_itself_is_told_by_the_kernels_compiler(gpu):  # noqa: F811
    assert loom.explain(*training(), score_mod=lambda s, b, h, i, j: s + None).backend == "triton"


def test_it_is_found_out_once_for_each_structure(gpu, monkeypatch):  # noqa: F811
    calls, watched = [], triton_scores._watched
    monkeypatch.setattr(triton_scores, "_watched", lambda *given: calls.append(given) or watched(*given))

    def explain(table):
        return loom.explain(*training(), score_mod=lambda score, b, h, q_idx, kv_idx: score + table[h, q_idx])

    monkeypatch.setattr(triton_scores, "_found", LRU(5))
    for _ in range(3):
        explain(torch.zeros(H, 13, requires_grad=True))
    assert len(calls) == 2  # for the forward, and for the backward
    explain(torch.zeros(H, 13))  # another that learns nothing
    explain(torch.zeros(H, 11, 5))  # and one of another structure
    assert len(calls) == 6


def test_the_gradients_are_those_of_the_plain_computation():
    """What is refused runs on the reference: see tests/scores/test_lifted.py for more."""
    out = loom.attend(*training(), score_mod=REFUSED["chained"][0])
    assert torch.autograd.grad(out.float().square().sum(), CUBE)[0].any()
