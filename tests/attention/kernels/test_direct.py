"""A plan calls the graph that torch.compile chose for it before: what goes in is right, and whatever may change that is asked for."""

import pytest
import torch
from torch.nn.attention import flex_attention
from torch.nn.attention.flex_attention import AuxRequest
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.attention.backends import compiled
from maskloom.attention.backends.compiled import PreparedAttention
from maskloom.attention.plans import kinds
from maskloom.attention.request import Request
from maskloom.core.cache import LRU
from maskloom.scores.base import ScoreValue, score_dataclass
from tests.attention.test_host_cost import count_calls

B, H, L, D = 3, 2, 40, 16
LENS = torch.tensor([20, 5, 40])


@pytest.fixture
def asked(monkeypatch):
    """Requests that say that they are on a GPU, graphs that run eagerly; how often torch.compile was asked."""
    asked = []
    run = PreparedAttention.run
    monkeypatch.setattr(PreparedAttention, "run", lambda *given: asked.append(given) or run(*given))
    monkeypatch.setattr(compiled, "_COMPILER", "eager")
    monkeypatch.setattr(compiled, "_pool", LRU(256))
    monkeypatch.setattr(kinds, "_kinds", LRU(256))
    monkeypatch.setattr(kinds, "readable", lambda tensor: False)
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flex_attention, "_validate_device", lambda *_: None)  # which forbids a backward on the CPU
    torch._dynamo.reset()
    return asked


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, H, L, D, generator=generator) for _ in range(3)]


def masked():
    return loom.causal & loom.lengths(LENS.clone())


def attend(qkv, mask, **options):
    """Attention by the graph, checked against the reference."""
    out = loom.attend(*qkv, mask, backend="triton", **options)
    table = mask if isinstance(mask, loom.Mask) else mask.mask_mod
    torch.testing.assert_close(out, loom.reference(*qkv, table, score_mod=options.get("score_mod"))[0])
    return out


@pytest.mark.parametrize("ready", [False, True])
def test_a_later_call_does_not_ask(asked, ready):
    mask = loom.block_mask(masked(), L, L) if ready else masked()
    for seed in range(4):
        attend(inputs(seed), mask)
    assert len(asked) == 1


def test_a_later_attention_is_few_calls_down_to_the_graph(asked, monkeypatch):
    inside = []
    out = torch.zeros(B, H, L, D)
    monkeypatch.setattr(compiled, "_COMPILER", lambda graph, _: lambda *given: inside.append(given) or (out,))
    qkv, blocks = inputs(), loom.block_mask(masked(), L, L)

    def call():
        return loom.attend(*qkv, blocks, backend="triton")

    call()
    assert count_calls(call) <= 60
    assert len(asked) == 1 and len(inside) == 2
    assert all(one is other for one, other in zip(*inside, strict=True) if isinstance(one, torch.Tensor) and one.ndim)
    assert sum(isinstance(one, torch.Tensor) for one in inside[0]) == 13  # eight tables, the lengths, and the scale


def test_a_changed_mask_goes_in_with_its_own_tensors(asked):
    lens = LENS.clone()
    mask = loom.causal & loom.lengths(lens)
    for step in range(6):
        lens.copy_(LENS.roll(step))
        attend(inputs(step), mask)
        attend(inputs(step), loom.causal & loom.lengths(LENS.roll(step + 1)))
    assert len(asked) <= 3


def test_how_tensors_lie_is_asked_for(asked):
    mask, (query, key, value) = masked(), inputs()
    turned = query.transpose(1, 2).contiguous().transpose(1, 2)
    behind = torch.cat((key, key), 2)[:, :, L:]
    for given in ((query, key, value), (turned, key, value), (query, behind, value), (query, key, key)) * 2:
        attend(given, mask)
    assert len(asked) == 4


def test_which_are_one_tensor_is_asked_for(asked):
    mask, (query, key, value) = masked(), inputs()
    for given in ((query, key, query), (query, key, value), (query, query, query), (query, query, value)) * 2:
        attend(given, mask)
    assert len(asked) == 4


SETTINGS = {
    "for all": lambda: torch.set_float32_matmul_precision("high"),
    "for cuBLAS": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "for one backend": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "of sums": lambda: setattr(torch.backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
}


@pytest.fixture
def restored():
    yield
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = True


@pytest.mark.parametrize("name", SETTINGS)
def test_the_precision_is_asked_for(asked, restored, name):
    mask, qkv = masked(), inputs()
    for _ in range(2):
        attend(qkv, mask)
    SETTINGS[name]()
    for _ in range(2):
        attend(qkv, mask)
    assert len(asked) == 2


FACTOR = 2


@score_dataclass
class Times(ScoreValue):
    """A user's score mod, which reads its module."""

    bias: torch.Tensor

    def __call__(self, score, b, h, q_idx, kv_idx):
        return score * FACTOR + self.bias[h]


def test_what_a_user_s_module_holds_is_asked_for(asked, monkeypatch):
    mask, bend = masked(), Times(torch.randn(H))
    for factor in (2, 2, 3, 2):
        monkeypatch.setitem(globals(), "FACTOR", factor)
        attend(inputs(), mask, score_mod=bend)
    assert len(asked) == 4


def test_gradients(asked):
    mask = masked()
    for seed in range(3):
        qkv = [tensor.requires_grad_() for tensor in inputs(seed)]
        found = torch.autograd.grad(attend(qkv, mask).square().sum(), qkv)
        expected = torch.autograd.grad(loom.reference(*qkv, mask)[0].square().sum(), qkv)
        torch.testing.assert_close(found, expected)
    assert len(asked) == 1
    with torch.no_grad():
        assert not attend(qkv, mask).requires_grad
    assert len(asked) == 2


def test_the_log_sum_exp(asked):
    mask = masked()
    for seed in range(3):
        qkv = inputs(seed)
        _, aux = loom.attend(*qkv, mask, backend="triton", return_aux=AuxRequest(lse=True))
        torch.testing.assert_close(aux.lse, loom.reference(*qkv, mask)[1])
    assert len(asked) == 1


def test_another_scale(asked):
    mask, qkv = masked(), inputs()
    for scale in (0.5, 0.25, 0.5, 0.25):
        out = loom.attend(*qkv, mask, backend="triton", scale=scale)
        torch.testing.assert_close(out, loom.reference(*qkv, mask, scale=scale)[0])
    assert len(asked) == 2


def test_score_mods_of_one_structure(asked):
    mask, qkv = masked(), inputs()
    tables = [torch.randn(H, 7), torch.randn(H, 7), torch.randn(7, H).T, torch.randn(H, 7)]
    for table in tables:
        attend(qkv, mask, score_mod=loom.scores.relative_bias(table))
    assert len(asked) == 2  # one lies otherwise
    for cap in (20, 30, 20, 30):
        attend(qkv, mask, score_mod=loom.scores.softcap(cap))
    assert len(asked) == 4


def test_hooks_on_what_is_saved_are_asked_for(asked):
    mask, qkv = masked(), [tensor.requires_grad_() for tensor in inputs()]
    attend(qkv, mask)
    out = checkpoint(lambda *given: loom.attend(*given, mask, backend="triton"), *qkv, use_reentrant=False)
    found = torch.autograd.grad(out.square().sum(), qkv)
    expected = torch.autograd.grad(loom.reference(*qkv, mask)[0].square().sum(), qkv)
    torch.testing.assert_close(found, expected)
    assert len(asked) >= 2


def test_a_function_mode_is_asked_for(asked):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            return function(*args, **(kwargs or {}))

    mask, qkv = masked(), inputs()
    attend(qkv, mask)
    with Mode():
        loom.attend(*qkv, mask, backend="triton")
    assert len(asked) == 2


def test_a_stance_is_asked_for(asked):
    mask, qkv = masked(), inputs()
    attend(qkv, mask)
    with torch.compiler.set_stance("force_eager"), pytest.raises(loom.FallbackError, match="was not compiled"):
        loom.attend(*qkv, mask, backend="triton")
    attend(qkv, mask)
    assert len(asked) == 2


def test_a_reset_drops_the_graph(asked):
    mask, qkv = masked(), inputs()
    for _ in range(2):
        attend(qkv, mask)
        attend(qkv, mask)
        torch._dynamo.reset()
    assert len(asked) == 2


def test_behind_a_break_of_the_user_s_graph(asked):
    mask, qkv = masked(), inputs()
    attend(qkv, mask)

    @torch.compile(backend="eager")
    def model(query, key, value):
        torch._dynamo.graph_break()
        return loom.attend(query * 2, key, value, mask, backend="triton")

    query, key, value = qkv
    torch.testing.assert_close(model(*qkv), loom.reference(query * 2, key, value, mask)[0])


def test_cuda_graphs_of_the_compiler_s_own_are_asked_for(asked):
    """They must know where a step begins, and torch.compile tells them."""
    import torch._inductor.config as config

    mask, qkv = masked(), inputs()
    with config.patch({"triton.cudagraphs": True}):
        attend(qkv, mask)
    attend(qkv, mask)
    assert len(asked) == 2


def test_tables_that_are_one_tensor_are_not_noted(asked):
    blocks = loom.block_mask(masked(), L, L)
    blocks.q_indices, blocks.q_num_blocks = blocks.kv_indices, blocks.kv_num_blocks
    for seed in range(3):
        attend(inputs(seed), blocks)
    assert len(asked) == 3
