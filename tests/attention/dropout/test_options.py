"""What dropout= and dropout_seed= refuse, in words."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends import choose
from maskloom.attention.request import Dropout, Request

B, H, L, D = 2, 3, 5, 7
QKV = torch.randn(3, B, H, L, D).unbind(0)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"dropout": 1.5}, ValueError, "dropout is from 0 to 1, the share of probabilities that become 0; got 1.5"),
        ({"dropout": -0.1}, ValueError, "got -0.1"),
        ({"dropout": float("nan")}, ValueError, "got nan"),
        ({"dropout": None}, TypeError, "dropout is a number, the share of probabilities that become 0; got None"),
        ({"dropout": True}, TypeError, "got True"),
        ({"dropout": "0.1"}, TypeError, "got '0.1'"),
        ({"dropout": torch.tensor(0.1)}, TypeError, r"got float32\[\]"),
        ({"dropout": torch.zeros(2, 3)}, TypeError, r"got float32\[2, 3\]"),
        ({"dropout_seed": 1.0}, TypeError, "dropout_seed is an integer or an integer tensor, or None to draw one; got 1.0"),
        ({"dropout_seed": False}, TypeError, "got False"),
        ({"dropout_seed": torch.Generator()}, TypeError, "dropout_seed is an integer or an integer tensor"),
        ({"dropout_seed": torch.ones(())}, TypeError, "dropout_seed is an integer tensor; got torch.float32"),
        ({"dropout_seed": torch.ones((), dtype=torch.bool)}, TypeError, "got torch.bool"),
        ({"dropout_seed": torch.ones(2, dtype=torch.int64)}, ValueError, r"dropout_seed is one number; got a tensor \(2,\)"),
        ({"dropout_seed": torch.ones((), dtype=torch.int64, device="meta")}, ValueError, "is on meta and the attention on cpu"),
        ({"dropout_seed": 2**64}, ValueError, "dropout_seed has 64 bits; got 18446744073709551616"),
        ({"backend": "varlen"}, ValueError, "backend 'varlen' cannot do this: it needs a GPU"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [loom.attend, loom.explain])
def test_words(call, options, error, words):
    with pytest.raises(error, match=words):
        call(*QKV, loom.causal, **{"dropout": 0.1, **options})


def test_kernels_that_drop_nothing(monkeypatch):
    request = Request(*QKV, loom.causal, dropout=Dropout(2.0, loom.scores.alibi(H)))
    for name in ("decode", "flash", "varlen"):
        monkeypatch.setattr(type(choose.BACKENDS[name]), "refuse", lambda self, request: None)
        with pytest.raises(
            ValueError, match=f"backend '{name}' cannot do this: it drops no probabilities.*sdpa, triton"
        ):
            choose.choose(request, name)
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    assert choose.choose(request, "auto").backend.name == "triton"  # not sdpa, though the mask is causal


def test_numpys_numbers_and_fractions():
    from fractions import Fraction

    expected = loom.attend(*QKV, loom.causal, dropout=0.5, dropout_seed=3)
    assert torch.equal(loom.attend(*QKV, loom.causal, dropout=Fraction(1, 2), dropout_seed=3), expected)


def test_a_graph_does_not_know_the_number_of_a_seed():
    """Inductor would compute with it in Python, where no product wraps, and its kernels have 64 bits."""
    graphs = []

    def keep(graph, _):
        graphs.append(graph)
        return graph.forward

    def call(q, k, v, seed):
        return loom.attend(q, k, v, loom.causal, dropout=0.4, dropout_seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(call, backend=keep, fullgraph=True)
    for seed in (5, 2**62 + 7, -3):
        torch.testing.assert_close(compiled(*QKV, seed), call(*QKV, seed))
    assert all(any(node.target is torch.ops.maskloom.seed.default for node in each.graph.nodes) for each in graphs)
    torch.library.opcheck(torch.ops.maskloom.seed, (5, torch.device("cpu")))
