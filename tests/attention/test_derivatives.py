"""The reference has every derivative; what has a first backward alone says so, and says what has more."""

import pytest
import torch
from torch.autograd import forward_ad

import maskloom as loom
from maskloom.attention.derivatives import with_first_only
from tests.attention.backends.test_choose import gpu  # noqa: F401

B, H, HKV, Q, K, D, E = 2, 4, 2, 3, 5, 7, 11
MASK = loom.causal & loom.lengths([3, 2], [5, 1])


def inputs(value_dim=D):
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, H, Q, D), (B, HKV, K, D), (B, HKV, K, value_dim)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_() for shape in shapes]


def learned():
    return torch.linspace(-1, 1, H * 7, dtype=torch.float64).reshape(H, 7).requires_grad_()


def attention(how):
    def attend(query, key, value, table):
        options = {
            "plain": {},
            "score_mod": {"score_mod": lambda score, b, h, q, k: score * table[h][(q - k + 2) % 7]},
            "ours": {"score_mod": loom.scores.compose(loom.scores.relative_bias(table), loom.scores.softcap(3.0))},
            "sinks": {"sinks": table[:, 0]},
            "clean": {"clean_padding": True},
        }[how]
        return loom.attend(query, key, value, MASK, backend="reference", **options)

    return attend


@pytest.mark.parametrize("rows", [None, 2])
@pytest.mark.parametrize("how", ["plain", "score_mod", "ours", "sinks", "clean"])
def test_the_reference_has_every_derivative(how, rows, monkeypatch):
    if rows is not None:
        monkeypatch.setattr("maskloom.attention.written_out.CHUNK", B * H * K * rows)
    tensors, attend = [*inputs(), learned()], attention(how)
    check = {"fast_mode": True, "check_undefined_grad": False}
    assert torch.autograd.gradcheck(attend, tensors, check_forward_ad=rows is None, **check)
    assert torch.autograd.gradgradcheck(attend, tensors, **check)
    _, tangent = torch.func.jvp(attend, tuple(tensors), tuple(tensor.cos() for tensor in tensors))
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(tensor, tensor.detach().cos()) for tensor in tensors]
        torch.testing.assert_close(forward_ad.unpack_dual(attend(*duals)).tangent, tangent)
    # the derivative of a gradient along a direction, forward over reverse and reverse over reverse
    loss = lambda *tensors: attend(*tensors).sin().sum()  # noqa: E731
    gradients = torch.func.grad(loss, argnums=(0, 1, 2, 3))
    _, forward = torch.func.jvp(gradients, tuple(tensors), tuple(tensor.cos() for tensor in tensors))
    first = torch.autograd.grad(loss(*tensors), tensors, create_graph=True, materialize_grads=True)
    along = sum((grad * tensor.detach().cos()).sum() for grad, tensor in zip(first, tensors, strict=True))
    reverse = torch.autograd.grad(along, tensors, materialize_grads=True)
    torch.testing.assert_close(forward, reverse)


FORWARD = r"has no forward-mode derivative \(torch.func.jvp, .*\); backend 'reference' has it"
ASKED = {
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.cos(),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(f)(x),
    "hessian": lambda f, x: torch.func.hessian(lambda x: f(x).sin().sum())(x),
    "grad of grad": lambda f, x: torch.func.grad(lambda x: torch.func.grad(lambda x: f(x).sin().sum())(x).cos().sum())(
        x
    ),
    "dual": lambda f, x: dual(f, x),
}


def dual(function, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(function(forward_ad.make_dual(x, x.cos()))).tangent


@pytest.mark.parametrize("name", ASKED)
def test_what_is_seen_before_it_runs(name):
    query, key, value = (tensor.detach() for tensor in inputs())

    def result(backend):
        return ASKED[name](lambda query: loom.attend(query, key, value, MASK, backend=backend), query)

    torch.testing.assert_close(result("auto"), result("reference"))
    with pytest.raises(ValueError, match="no second derivative" if name == "grad of grad" else FORWARD):
        result("sdpa")


def test_what_is_seen_of_tensors_that_a_score_mod_reads(gpu):  # noqa: F811
    tensors = [tensor.detach().to(torch.bfloat16) for tensor in inputs()]
    with forward_ad.dual_level():
        table = forward_ad.make_dual(torch.zeros(H, 7), torch.ones(H, 7))
        explained = loom.explain(*tensors, MASK, score_mod=loom.scores.relative_bias(table))
        assert explained.backend == "reference" and "forward-mode" in explained.ruled_out["triton"]
        assert loom.explain(*tensors, MASK, score_mod=loom.scores.alibi(H)).backend == "triton"
    assert torch.func.vmap(lambda q: q + (loom.explain(q, *tensors[1:]).backend == "reference"))(tensors[0][None]).any()


@pytest.mark.parametrize("cut", [False, True])
def test_a_gradient_of_sdpa_that_is_differentiated_again_says_who_can(cut, monkeypatch):
    if cut:
        monkeypatch.setattr("maskloom.attention.tables.KEPT_BYTES", 0)
        monkeypatch.setattr("maskloom.attention.backends.sdpa.CHUNK", B * H * K)
    tensors = inputs()
    out = loom.attend(*tensors, MASK)
    plainly = torch.autograd.grad(out.sin().sum(), tensors, retain_graph=True)
    with_graph = torch.autograd.grad(out.sin().sum(), tensors, create_graph=True)
    torch.testing.assert_close(with_graph, plainly)  # no one differentiates it yet
    words = r"attention by backend 'sdpa' has no second derivative, .*; attend\(..., backend='reference'\) has every"
    for gradient in with_graph:
        with pytest.raises(RuntimeError, match=words):
            torch.autograd.grad(gradient.sum(), tensors, retain_graph=True)
    with pytest.raises(RuntimeError, match=words):
        torch.autograd.gradgradcheck(lambda *qkv: loom.attend(*qkv, MASK), tensors)


def test_where_torch_writes_attention_out_it_has_a_second_derivative():
    tensors = inputs(value_dim=E)  # no kernel has that
    assert torch.autograd.gradgradcheck(lambda *qkv: loom.attend(*qkv, MASK, backend="sdpa"), tensors, fast_mode=True)


def test_a_compiled_kernel_says_so_too():
    compiled = torch.compile(lambda x: x.sin() * x, backend="aot_eager")
    x = torch.linspace(-1, 1, 5, requires_grad=True)
    (gradient,) = torch.autograd.grad(with_first_only(compiled(x), "triton").sum(), x, create_graph=True)
    torch.testing.assert_close(gradient, x.cos() * x + x.sin())
    with pytest.raises(RuntimeError, match="attention by backend 'triton' has no second derivative"):
        gradient.sum().backward()
