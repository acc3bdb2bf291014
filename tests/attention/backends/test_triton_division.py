"""Masks and score mods that divide get indices that Triton's analysis cannot follow, and only those do."""

import functools

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.backends import compiled
from maskloom.core.cache import LRU
from maskloom.program.record import record
from maskloom.program.under_compile import divides
from tests.catalog import EVERY

BATCH, HEADS, Q, K, D = 2, 3, 21, 33, 5
TABLE = torch.zeros(BATCH, HEADS, Q, K, dtype=torch.bool)
BIAS = torch.linspace(-1, 1, 9)

DIVIDING = {
    "//": lambda b, h, q, k: (q - 5) // 3 >= (k - 8) // 3,
    "number // index": lambda b, h, q, k: 60 // (q + 1) >= k,
    "%": lambda b, h, q, k: (q - k) % 3 == 1,
    "number % index": lambda b, h, q, k: 60 % (k + 1) > q % 2,
    "floor_divide": lambda b, h, q, k: torch.floor_divide(q - 7, 2) >= k - 11,
    "remainder": lambda b, h, q, k: (q - k).remainder(4) < 2,
    "fmod": lambda b, h, q, k: torch.fmod(q - k, 4) < 0,
    "div": lambda b, h, q, k: torch.div(q - k, 4, rounding_mode="trunc") == 0,
    "a method": lambda b, h, q, k: (q - k).div(4, rounding_mode="floor") == 0,
    "below a table": lambda b, h, q, k: ~TABLE[b, h][q, k] & (k % 2 == 0),
    "a partial": functools.partial(lambda step, b, h, q, k: (q - k) % step == 0, 3),
    "inside": loom.masks.shifted(
        (loom.causal | loom.masks.dilated(back=20, ahead=20, step=3)) & loom.window(back=9), q_offset=2
    ),
}


def in_place(b, h, q, k):
    away = q - k
    away //= 4
    return away == 0


def remainder_in_place(b, h, q, k):
    away = q - k
    away %= 3
    return away == 1


DIVIDING |= {
    "//=": in_place,
    "%=": remainder_in_place,
    "remainder_": lambda b, h, q, k: (q - k).remainder_(3) == 1,
    "fmod_": lambda b, h, q, k: (q - k).fmod_(4) < 0,
    "floor_divide_": lambda b, h, q, k: (q - k).floor_divide_(4) == 0,
    "div_": lambda b, h, q, k: (q - k).div_(4, rounding_mode="floor") == 0,
    "an overload of aten": lambda b, h, q, k: torch.ops.aten.remainder.Scalar(q - k, 3) == 1,
    "aten": lambda b, h, q, k: torch.ops.aten.remainder(q - k, 3) == 1,
    "a list of indices": lambda b, h, q, k: ~TABLE[[b, h, q, k]] & (q % 2 == 0),
}
OTHERS = {
    "causal": loom.causal,
    "a table": lambda b, h, q, k: ~TABLE[b, h, q, k] & (q >= k),
    "a shift": lambda b, h, q, k: (q >> 2) >= (k >> 2),
    "a division of floats": lambda b, h, q, k: q / 3 >= k,
}


@pytest.fixture
def graphs(monkeypatch):
    """Graphs are traced and run eagerly; returns them."""
    found = []
    monkeypatch.setattr(compiled, "_COMPILER", lambda graph, inputs: found.append(graph) or graph.forward)
    monkeypatch.setattr(compiled, "_pool", LRU(256))
    torch._dynamo.reset()
    return found


def inputs():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(BATCH, HEADS, length, D, generator=generator) for length in (Q, K, K)]


def fused(mask, score_mod=None):
    blocks = loom.block_mask(mask, Q, K, batch=BATCH, heads=HEADS, block_size=16, device="cpu")
    options = {"score_mod": score_mod, "scale": None, "wants_lse": False, "kernel_options": None}
    return compiled.fused_attention(*inputs(), blocks, **options)[0]


def hidden(graphs):
    """How many indices are hidden in the functions that attention gets."""
    (graph,) = graphs
    targets = [str(node.target) for module in graph.children() for node in module.graph.nodes]
    return sum("xor" in target for target in targets)


@pytest.mark.parametrize("name", DIVIDING)
def test_masks_that_divide(graphs, name):
    mask = loom.as_mask(DIVIDING[name])
    torch.testing.assert_close(fused(mask), loom.attend(*inputs(), mask, backend="reference"))
    assert hidden(graphs) == 2


@pytest.mark.parametrize("name", OTHERS)
def test_masks_that_do_not(graphs, name):
    mask = loom.as_mask(OTHERS[name])
    torch.testing.assert_close(fused(mask), loom.attend(*inputs(), mask, backend="reference"))
    assert hidden(graphs) == 0


@pytest.mark.parametrize(
    ("score_mod", "number"),
    [
        (lambda score, b, h, q, k: score + (q - k) // 4, 2),
        (lambda score, b, h, q, k: score * BIAS[(q - k) % 9], 2),
        (loom.scores.compose(loom.scores.alibi(HEADS), lambda score, b, h, q, k: score - (q - k).remainder(4)), 2),
        (loom.scores.shifted_score(lambda score, b, h, q, k: score - q // 4, q_offset=3), 2),
        (loom.scores.alibi(HEADS), 0),
        (loom.scores.relative_bias(torch.randn(HEADS, 9)), 0),
        (lambda score, b, h, q, k: score / 3 + BIAS[(q - k).clamp(-4, 4) + 4], 0),
    ],
)
def test_score_mods(graphs, score_mod, number):
    exact = loom.attend(*inputs(), loom.causal, score_mod=score_mod, backend="reference")
    torch.testing.assert_close(fused(loom.causal, score_mod), exact)
    assert hidden(graphs) == number


@pytest.mark.parametrize("name", EVERY)
def test_what_divides_is_known_as_its_program_shows_it(name):
    mask = EVERY[name][0]()
    operations = {step.op.overloadpacket.__name__ for step in record(mask, "cpu").steps}
    expected = bool(operations & {"floor_divide", "remainder", "fmod", "div"})
    torch._dynamo.reset()
    index = torch.zeros((), dtype=torch.int64)
    found = torch.compile(lambda: divides(mask, index, index, index, index), backend="eager", fullgraph=True)()
    assert found == expected


def test_inside_a_checkpoint_every_mask_may_divide(graphs):
    blocks = loom.block_mask(loom.causal, Q, K, block_size=16, device="cpu")
    how = {"score_mod": None, "scale": None, "wants_lse": False, "kernel_options": None}
    torch.compile(
        lambda *qkv: checkpoint(lambda *qkv: compiled.fused_attention(*qkv, blocks, **how)[0], *qkv, use_reentrant=False),
        backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True,
    )(*inputs())  # fmt: skip
    inner = [module for module in graphs[0].modules() if isinstance(module, torch.fx.GraphModule)]
    assert sum("xor" in str(node.target) for module in inner for node in module.graph.nodes) == 2


def test_inside_another_compile(graphs):
    mask = loom.as_mask(DIVIDING["//"])
    blocks = loom.block_mask(mask, Q, K, block_size=16, device="cpu")
    how = {"score_mod": None, "scale": None, "wants_lse": False, "kernel_options": None}
    outer = torch.compile(
        lambda *qkv: compiled.fused_attention(*qkv, blocks, **how)[0],
        backend=lambda graph, inputs: graphs.append(graph) or graph.forward, fullgraph=True,
    )  # fmt: skip
    torch.testing.assert_close(outer(*inputs()), loom.attend(*inputs(), mask, backend="reference"))
    assert hidden(graphs) == 2
