"""A score_mod on a whole table is the plain computation, score by score, with its gradients."""

import dataclasses
import math

import numpy
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import maskloom as loom
from maskloom.attention import written_out
from maskloom.attention.kernels.scaled import ScaledScore
from maskloom.distributed.coordinates import ScoreAtRank
from maskloom.nn.slots import PlacedScore
from maskloom.scores import lifted
from maskloom.scores.base import ScoreValue
from maskloom.scores.lifted import broadcasts
from tests.scores.random_scores import B, Code, H, K, Q, learned, leaves, score_codes

EXAMPLES = 100  # random score mods; `--hypothesis-profile=nightly` runs 2,000
D, E = 11, 13
TABLE = (loom.causal & loom.lengths([5, 3], [7, 4])).dense(Q, K) | (torch.arange(K) == 2)


def one_by_one(score_mod, scores: Tensor) -> Tensor:
    """Each score by itself, its four indices as tensors that have values."""
    entries = [
        score_mod(scores[b, h, i, j], *map(torch.tensor, (b, h, i, j)))
        for b in range(B) for h in range(H) for i in range(Q) for j in range(K)
    ]  # fmt: skip
    return torch.stack(entries).reshape(scores.shape)


def plainly(query, key, value, score_mod) -> Tensor:
    scores = one_by_one(score_mod, query @ key.mT / math.sqrt(D))
    return scores.masked_fill(~TABLE, -math.inf).softmax(-1) @ value


def with_gradients(out: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The output, its gradients, and theirs."""
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).reshape(out.shape)
    first = gradients((out.sin() * weights).sum(), inputs, create_graph=True)
    return [out, *first, *gradients(sum(grad.cos().sum() for grad in first), inputs)]


def gradients(loss: Tensor, inputs: list[Tensor], **how) -> list[Tensor]:
    found = torch.autograd.grad(loss, inputs, allow_unused=True, **how)
    return [torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(inputs, found, strict=True)]


def qkv() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, Q, D), (B, H, K, D), (B, H, K, E)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def check(code: Code, **names) -> None:
    held = learned()
    tensors, score_mod = qkv(), code.bound({**held, **names})
    inputs = [*tensors, *leaves(held)]
    found = with_gradients(loom.reference(*tensors, TABLE, score_mod=score_mod)[0], inputs)
    torch.testing.assert_close(found, with_gradients(plainly(*tensors, score_mod), inputs))


def added_in_place(score, b, h, i, j, t3):
    score = score.clone()
    score += t3[b, i, j]
    return score.mul_(t3[b][i][j])


def of_a_loop(score, b, h, i, j, t3):
    for row in t3[b, :, j]:
        score = score * row.sin() + row
    return score


READS = {
    "numbers in a list": "score + t3[b, [0, 3], j].sum() + t2[[0, 2]][:, i].prod()",
    "numbers of NumPy": "score + t3[numpy.int64(1), i, j] + t3[b, numpy.array([4, 0])].sum()",
    "bools of several dimensions": "score + t3[:, torch.ones(5, 7).bool(), None][b, i].sum() + t3[b, [True, False] * 2 + [True], j].sum()",
    "products": "score + t3[b, i] @ t4[b, h, i] + torch.einsum('a,a->', t2[h], t2[i % 3])",
    "one_hot": "score + F.one_hot(h, 3).double() @ t4[b, :, i, j]",
    "take": "score + t3.take(b * 35 + i * 7 + j) + torch.take_along_dim(t1, j[None], 0).squeeze()",
    "aten's own": "score + torch.ops.aten.index(t3, [b, None, j]).sum()",
    "sums into zeros": "score + torch.zeros(5).double().index_add(0, h[None], t2[h, i][None])[i]",
    "puts into zeros": "score + torch.zeros(5).double().index_put((h[None],), t2[h, i][None])[2] + torch.zeros(5).double().scatter(0, i[None], score[None])[3]",
    "a gradient inside": "score + torch.func.grad(lambda x: (x * t3[b, i, j]).sin())(score)",
    "embedding, rows by frequency": "score + F.embedding(i % 2, t2, scale_grad_by_freq=True)[h] + F.embedding(i % 2, t2, None, None, 2.0, True)[h]",
    "embedding, a row without gradient": "score + F.embedding(i % 3, t2, padding_idx=1)[j]",
    "narrow types": "score + t3[b.to(torch.int8), i.short(), j.int()]",
    "nothing batched": "score * t3[1][0][2] + t2[torch.tensor(1), torch.tensor(2)]",
    "in place": "added_in_place(score, b, h, i, j, t3)",
    "a loop": "of_a_loop(score, b, h, i, j, t3)",
}


@pytest.mark.parametrize("name", READS)
def test_reads_of_every_kind(name):
    check(Code(READS[name]), added_in_place=added_in_place, of_a_loop=of_a_loop, numpy=numpy)


@pytest.mark.parametrize("rows", [1, 2])
def test_chunks_have_the_same_gradients(rows, monkeypatch):
    monkeypatch.setattr(written_out, "CHUNK", B * H * K * rows)
    check(Code("score * t4[b][h][i][j] + line((i - j).double()[None])[h]"))


def test_torch_func_has_the_same_gradients():
    held, tensors = learned(), qkv()
    code = Code("torch.stack([score, 3 * score])[h % 2] + t4[b, h][i, j] + embed((i - j).abs())[h] * t2[h].sum()")

    def loss(tables):
        return loom.reference(*tensors, TABLE, score_mod=code.bound({**held, **tables}))[0].sin().sum()

    tables = {name: held[name] for name in ("t2", "t4")}
    expected = torch.autograd.grad(plainly(*tensors, code.bound(held)).sin().sum(), list(tables.values()))
    torch.testing.assert_close(list(torch.func.grad(loss)(tables).values()), list(expected))
    rows = {name: torch.stack([table, 2 * table]) for name, table in tables.items()}
    found = torch.func.vmap(torch.func.grad(loss))(rows)
    torch.testing.assert_close(
        {name: table[0] for name, table in found.items()}, dict(zip(tables, expected, strict=True))
    )


REFUSED = {
    "item": "score + t1[i.item()]",
    "a branch": "score if i > j else 2 * score",
    "a slice": "score + t1[i : i + 2].sum()",
    "random numbers": "F.dropout(score, 0.5)",
    "a selection": "score + t1[t1[i] > 0].sum()",
    "a list": "score + [1, 2, 3, 4, 5][i]",
    "NumPy": "score + i.numpy()",
    "a write": "score + torch.zeros(5).double().index_put_((i,), score).sum()",
    "narrow": "score + t1.narrow(0, i, 2).sum()",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_all_scores_at_once_cannot_do(name):
    for mod in (
        Code(REFUSED[name]).bound(learned()),
        loom.scores.compose(loom.scores.alibi(H), Code(REFUSED[name]).bound(learned())),
    ):
        with pytest.raises(
            TypeError, match=r"is run for all scores at once .* Write torch.where, table\[b, kv_idx\]\. torch says"
        ):
            loom.attend(*qkv(), loom.causal, score_mod=mod)


@pytest.mark.parametrize(
    ("code", "error", "words"),
    [
        (
            "score + t1[i.to(torch.uint8)]",
            TypeError,
            r"takes an index of uint8 for a mask.* write table\[index.long\(\)\]",
        ),
        ("score + F.embedding(i[None], t2, scale_grad_by_freq=True).sum()", TypeError, "takes one index"),
        ("score + t1[3 * i + 9]", IndexError, "out of bounds"),
        ("score + t2[h] @ t1", RuntimeError, "size"),
    ],
)
def test_its_own_errors_come_through(code, error, words):
    with pytest.raises(error, match=words):
        loom.attend(*qkv(), loom.causal, score_mod=Code(code).bound(learned()))


@settings(max_examples=max(EXAMPLES, settings().max_examples))
@given(score_codes())
def test_random_score_mods_are_the_plain_computation(code):
    check(code)


@pytest.mark.parametrize("sizes", [(5, 7), (7, 5), (1, 7), (5, 1), (1, 1)])
def test_values_of_distances_as_a_table(sizes):
    queries, keys = sizes
    values = torch.randn(2, 3, queries + keys - 1, dtype=torch.float64, requires_grad=True)

    def table(values):
        return lifted._OfDistances.apply(values, keys)

    for q in range(queries):
        for k in range(keys):
            assert torch.equal(table(values)[..., q, k], values[..., queries - 1 - q + k])
    assert torch.autograd.gradcheck(table, values) and torch.autograd.gradgradcheck(table, values)


def kinds_of_scores(base=ScoreValue):
    """maskloom's own: other tests have some too."""
    kinds = [kind for one in base.__subclasses__() for kind in (one, *kinds_of_scores(one))]
    return [kind for kind in kinds if kind.__module__.startswith("maskloom.")]


def test_whatever_holds_another_score_mod_is_looked_into():
    """By the name of the field: of one that holds a plain function by another name nobody would know that it is scalar."""
    for kind in kinds_of_scores():
        names = {field.name for field in dataclasses.fields(kind) if "ScoreMod" in str(field.type)}
        assert names <= {"score_mod", "parts"}, kind
    plain = lambda score, b, h, q_idx, kv_idx: score + q_idx  # noqa: E731
    own = loom.scores.softcap(3.0)
    for inner in (plain, own):
        held = [
            ScoreAtRank(inner, None, None, None, 1), ScaledScore(torch.tensor(2.0), inner), loom.scores.shifted_score(inner, q_offset=2),
            PlacedScore(inner, loom.nn.KVCache(1, 1, 4, 4).append(*torch.zeros(2, 1, 1, 2, 4))[2]),
        ]  # fmt: skip
        for one in held:
            assert broadcasts(one) == broadcasts(loom.scores.compose(own, one)) == (inner is own)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["auto", "sliced", "reference"])
@pytest.mark.parametrize("reads", ["own", "function", "slice", "embedding"])
def test_gradients_of_half_tables_are_not_summed_in_half_precision(dtype, backend, reads):
    """100,000 scores read one entry."""
    torch.manual_seed(0)
    (q, k), v = torch.randn(2, 1, 2, 509, 8).unbind(0), torch.randn(1, 2, 509, 8)
    table = torch.randn(2, 5).to(dtype)
    found = []
    for kind in (dtype, torch.float64):
        t = table.to(kind).requires_grad_()
        near = {
            "own": loom.scores.relative_bias(t),
            "function": lambda s, b, h, i, j, t=t: s + t[h, (j - i + 2).clamp(0, 4)],
            "slice": lambda s, b, h, i, j, t=t: s + t[:, (j - i + 2).clamp(0, 4)].sum(),
            "embedding": lambda s, b, h, i, j, t=t: (
                s + torch.nn.functional.embedding((j - i + 2).clamp(0, 4), t.T).sum()
            ),
        }[reads]
        inputs = [tensor.to(torch.float64 if kind == torch.float64 else torch.float32) for tensor in (q, k, v)]
        out = loom.attend(*inputs, loom.causal, score_mod=near, backend=backend)
        found.append(torch.autograd.grad((out * inputs[2]).sum(), t)[0].double())
    torch.testing.assert_close(*found, rtol=0.03, atol=0.03 * float(found[1].abs().max()))
