"""Attention in bands, against the float64 truth, and what it promises beside numbers."""

from collections import Counter

import pytest
import torch
from torch.nn.attention.flex_attention import AuxRequest
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.sliced import bands
from maskloom.attention.sliced.scores import BandScores
from tests.evidence import gather, gather_lse
from tests.memory import peak_bytes

B, H, HKV, Q, K, D, E = 3, 6, 2, 13, 17, 8, 5
LSE = AuxRequest(lse=True)
MASK = loom.causal & loom.lengths([13, 0, 7], [17, 5, 11])
MASKS = {
    "everything": None,
    "rows that see nothing": MASK,
    "window": loom.window(back=3) | loom.sinks(2),
    "by head": loom.masks.from_dense(torch.rand(1, H, Q, K, generator=torch.Generator().manual_seed(2)) < 0.4),
}
WEIGHT = torch.linspace(-1, 1, H * 7).reshape(H, 7)


def of_a_function(table):
    return lambda score, b, h, q, k: score + table[h, (q - k) % 7]


SCORES = {
    "learned bias": loom.scores.relative_bias,
    "learned, a function": of_a_function,
    "learned, times": lambda table: lambda score, b, h, q, k: score * table[h, 0] + table[h][k % 7],
    "cap": lambda table: loom.scores.compose(loom.scores.relative_bias(table), loom.scores.softcap(1.5)),
    "hardly of the score": lambda table: lambda score, b, h, q, k: table[h, k % 7] + 0 * score,
}


def inputs(dtype=torch.float32, *, learn=False):
    generator = torch.Generator().manual_seed(1)
    shapes = [(B, H, Q, D), (B, HKV, K, D), (B, HKV, K, E)]
    return [torch.randn(shape, generator=generator).to(dtype).requires_grad_(learn) for shape in shapes]


@pytest.fixture(params=[2**20, 150], ids=["one band", "many"], autouse=True)
def most(request, monkeypatch):
    monkeypatch.setattr(bands, "MOST", request.param)
    monkeypatch.setattr(bands, "_FEW", 4 if request.param == 150 else 64)


def dense(mask):
    return None if mask is None else mask.dense(Q, K, batch=B, heads=H)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", SCORES)
def test_it_is_near_the_truth(name, mask, dtype):
    make, mask = SCORES[name], MASKS[mask]

    def attend(*qkv_and_table):
        *qkv, table = qkv_and_table
        assert loom.explain(*qkv, mask, score_mod=make(table)).backend == "sliced"
        return loom.attend(*qkv, mask, score_mod=make(table))

    gather(attend, *inputs(dtype), table=dense(mask), score_mod=make, learned=(WEIGHT.to(dtype),)).check()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mask", MASKS)
def test_the_log_sum_exp_is_near_the_truth(mask, dtype):
    mask = MASKS[mask]
    table = torch.ones(Q, K, dtype=torch.bool) if mask is None else dense(mask)
    for evidence in gather_lse(
        lambda *qkv: loom.attend(*qkv, mask, return_aux=LSE)[1].lse, *inputs(dtype), table=table
    ):
        evidence.check()


@pytest.mark.parametrize("score_mod", [None, lambda score, b, h, q, k: (score - 1).abs().sqrt() + score / (q - k)])
def test_rows_that_see_nothing(score_mod):
    """Also where the derivative of score_mod is infinite or no number at what is hidden."""
    mask = loom.window(back=5) & ~loom.window(back=0) & loom.lengths([13, 0, 7], [17, 5, 11])
    tensors, sinks = inputs(torch.float64, learn=True), torch.zeros(H, dtype=torch.float64, requires_grad=True)
    out, aux = loom.attend(*tensors, mask, score_mod=score_mod, return_aux=LSE)
    unseen = ~dense(mask).any(-1).expand(B, H, Q)
    assert (out[unseen] == 0).all() and (aux.lse[unseen] == -torch.inf).all() and aux.lse[~unseen].isfinite().all()
    out.square().sum().backward()
    assert (tensors[0].grad[unseen] == 0).all() and (tensors[1].grad[1] == 0).all()
    assert all(tensor.grad.isfinite().all() for tensor in tensors)
    out, aux = loom.attend(*tensors, mask, score_mod=score_mod, return_aux=LSE, sinks=sinks)
    assert (aux.lse[unseen] == 0).all()
    (out.sum() + aux.lse.sum()).backward()
    assert sinks.grad.isfinite().all() and (sinks.grad > 0).all()


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("mask", [loom.nothing, loom.causal & ~loom.causal, loom.lengths([0, 0, 0])])
def test_what_learns_has_a_gradient_where_nothing_is_seen(name, mask):
    """As on the other backends: a process of several must have one for each parameter."""
    table = WEIGHT.double().requires_grad_()
    out = loom.attend(*inputs(torch.float64, learn=True), mask, score_mod=SCORES[name](table))
    out.sum().backward()
    assert torch.equal(table.grad, torch.zeros_like(table))


@pytest.mark.parametrize("name", ["cap", "learned, times", "learned bias"])
def test_it_has_a_second_derivative(name):
    tensors = [*inputs(torch.float64, learn=True), WEIGHT.double().requires_grad_()]

    def attend(*qkv_and_table):
        *qkv, table = qkv_and_table
        out, aux = loom.attend(*qkv, MASK, score_mod=SCORES[name](table), return_aux=LSE)
        return out, aux.lse.masked_fill(aux.lse == -torch.inf, 0)

    assert torch.autograd.gradcheck(attend, tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(attend, tensors, fast_mode=True)


def test_one_tensor_for_query_key_and_value_and_what_score_mod_learns():
    x = torch.randn(B, H, Q, D, generator=torch.Generator().manual_seed(3), dtype=torch.float64).requires_grad_()
    times = lambda score, b, h, q, k: score * x[b, h, q, 0]  # noqa: E731
    found = [
        torch.autograd.grad(loom.attend(x, x, x, loom.causal, score_mod=times, backend=backend).sin().sum(), x, **graph)
        for backend in ("sliced", "reference")
        for graph in ({}, {"create_graph": True})
    ]
    for gradient in found[1:]:
        torch.testing.assert_close(gradient, found[0])


def test_what_is_written_to_in_between_is_an_error():
    table = WEIGHT.clone().requires_grad_()
    scale = torch.ones(())
    out = loom.attend(*inputs(learn=True), MASK, score_mod=lambda score, b, h, q, k: score * scale + table[h, 0])
    scale.add_(1)
    with pytest.raises(RuntimeError, match="a tensor of the mask or score_mod was written to after the forward"):
        out.sum().backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant):
    table = WEIGHT.clone().requires_grad_()
    run = lambda *qkv: loom.attend(*qkv, MASK, score_mod=SCORES["cap"](table), sinks=table[:, 0])  # noqa: E731
    found = []
    for call in (run, lambda *qkv: checkpoint(run, *qkv, use_reentrant=reentrant)):
        tensors, table.grad = inputs(learn=True), None
        call(*tensors).square().sum().backward()
        found.append([table.grad, *(tensor.grad for tensor in tensors)])
    torch.testing.assert_close(found[1], found[0])


def test_score_mod_runs_under_the_autocast_of_its_forward():
    seen, line = [], torch.nn.Linear(2, 1)

    def score_mod(score, b, h, q, k):
        seen.append((torch.is_autocast_enabled("cpu"), score.dtype))
        return score + line(torch.stack([q, k]).float())[0]

    tensors = inputs(learn=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = loom.attend(*tensors, MASK, score_mod=score_mod)
    before, seen[:] = set(seen), []
    out.sum().backward()
    assert before == set(seen) == {(True, torch.float32)}
    assert line.weight.grad.dtype == torch.float32 and line.weight.grad.any()


def test_a_table_that_score_mod_returns_is_not_written_over():
    table = torch.zeros(B, H, Q, K)
    loom.attend(
        *inputs(), MASK, score_mod=lambda score, b, h, q, k: table[b, h, q, k] if score is None else table[b][h][q][k]
    )
    one = torch.ones(())
    loom.attend(*inputs(), MASK, score_mod=lambda score, b, h, q, k: one)
    assert not table.any() and one == 1


def test_where_it_cannot_run_the_reference_does():
    softcap = {"score_mod": loom.scores.softcap(2.0)}
    query, key, value = inputs()
    expected = loom.attend(query, key, value, MASK, **softcap)
    for transformed in (
        lambda: torch.func.vmap(lambda q: loom.attend(q, key, value, MASK, **softcap))(query[None])[0],
        lambda: torch.func.jvp(lambda q: loom.attend(q, key, value, MASK, **softcap), (query,), (query,))[0],
        lambda: torch.compile(lambda q: loom.attend(q, key, value, MASK, **softcap), backend="eager", fullgraph=True)(
            query
        ),
    ):
        torch.testing.assert_close(transformed(), expected)


def test_each_band_is_made_once_forward_and_once_backward(monkeypatch):
    made = {"forward": 0, "weights": 0}

    def counted(name, own):
        def run(*arguments):
            made[name] += 1
            return own(*arguments)

        return run

    for name in made:
        monkeypatch.setattr(BandScores, name, counted(name, getattr(BandScores, name)))
    bands_made = len(bands.bands_of(bands.Sizes(B, HKV, H // HKV, Q, K), dense(MASK)))
    mask = loom.causal & loom.lengths([13, 0, 7], [17, 5, 11])  # nothing is kept with it
    loom.attend(*inputs(learn=True), mask, sinks=torch.zeros(H)).sum().backward()
    assert made == {"forward": bands_made, "weights": bands_made}


def test_a_mask_too_large_for_a_table_is_read_by_bands(monkeypatch):
    expected = loom.attend(*inputs(), MASK, return_aux=LSE)
    monkeypatch.setattr("maskloom.attention.tables.KEPT_BYTES", 0)
    again = loom.causal & loom.lengths([13, 0, 7], [17, 5, 11])
    for mask in (again, loom.block_mask(again, Q, K, block_size=(4, 8)), lambda b, h, q, k: again(b, h, q, k)):
        found = loom.attend(*inputs(), mask, return_aux=LSE)
        torch.testing.assert_close((found[0], found[1].lse), (expected[0], expected[1].lse))


@pytest.mark.parametrize("how", [{"score_mod": loom.scores.softcap(9.0)}, {"return_aux": LSE}], ids=["cap", "lse"])
def test_at_most_64_mib_of_scores_at_one_time(how, monkeypatch):
    monkeypatch.undo()
    rows, heads, length, dim = 4, 8, 512, 16
    tensors = [torch.randn(rows, heads, length, dim).requires_grad_() for _ in range(3)]
    mask = loom.window(back=400)

    def step():
        out = loom.attend(*tensors, mask, **how)
        (out if isinstance(out, torch.Tensor) else out[0]).sum().backward()
        for tensor in tensors:
            tensor.grad = None

    of_inputs = tensors[0].nbytes
    assert rows * heads * length**2 > 4 * bands.MOST
    assert peak_bytes(step) - 12 * of_inputs <= 2**26


class Operations(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_a_backward_adds_in_products(most):
    """Gradients of keys and values are added up by the products themselves, and those of distances by one sum."""
    leaves = [*inputs(learn=True), WEIGHT.clone().requires_grad_()]
    hides_nothing = loom.key_padding(torch.zeros(B, K, dtype=torch.bool))
    out = loom.attend(*leaves[:3], hides_nothing, score_mod=loom.scores.relative_bias(leaves[3]), backend="sliced")
    cut = len(bands.bands_of(bands.Sizes(B, HKV, H // HKV, Q, K), None))
    with Operations() as operations:
        torch.autograd.grad(out, leaves, torch.ones_like(out))
    counts = operations.counts
    assert (counts["baddbmm_"], counts["baddbmm"], counts["bmm"]) == (2 * cut, cut, 2 * cut)
    assert counts["add_"] == cut  # what score_mod adds
    assert not counts["unfold_backward"]
