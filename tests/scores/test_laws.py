"""Every score mod through every law: broadcasting, values, tracing, and attention forward and backward."""

import copy
import pickle

import pytest
import torch
from torch._dynamo._trace_wrapped_higher_order_op import TransformGetItemToIndex
from torch.nn.attention.flex_attention import flex_attention

import maskloom as loom
from maskloom.core import captures
from maskloom.scores.base import ScoreValue
from maskloom.testing import public_names
from tests.evidence import gather
from tests.scores.all_scores import ALL, HKV, B, D, E, H, K, Q


def inputs(dtype=torch.float32, head_dim=D):
    generator = torch.Generator().manual_seed(3)
    shapes = [(B, H, Q, head_dim), (B, HKV, K, head_dim), (B, HKV, K, E if head_dim == D else head_dim)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def lifted(score_mod, scores):
    """The score mod as torch lifts it: vmap over scalars."""
    for dims in (
        (0, None, None, None, 0),
        (0, None, None, 0, None),
        (0, None, 0, None, None),
        (0, 0, None, None, None),
    ):
        score_mod = torch.vmap(score_mod, in_dims=dims)
    with TransformGetItemToIndex():
        return score_mod(scores, *map(torch.arange, scores.shape))


@pytest.mark.parametrize("name", ALL)
def test_broadcasting_gives_what_vmap_gives(name):
    score_mod = ALL[name]()
    scores = torch.randn(B, H, Q, K, generator=torch.Generator().manual_seed(0))
    indices = [torch.arange(n).view([-1 if at == dim else 1 for at in range(4)]) for dim, n in enumerate(scores.shape)]
    bent = score_mod(scores, *indices)
    assert torch.equal(bent, lifted(score_mod, scores))
    assert not torch.equal(bent, scores)


@pytest.mark.parametrize("name", ALL)
def test_it_is_a_value(name):
    score_mod = ALL[name]()
    for other in (ALL[name](), pickle.loads(pickle.dumps(score_mod)), copy.deepcopy(score_mod)):
        assert other == score_mod and hash(other) == hash(score_mod)
    assert all(score_mod != ALL[other]() for other in ALL if other != name)
    assert " object at 0x" not in repr(score_mod) and "\n" not in repr(score_mod)
    assert all(tensor.is_meta for tensor in captures.tensors(score_mod.to("meta")))
    assert score_mod.to("cpu") is score_mod
    with pytest.raises(AttributeError):
        score_mod.name_of_nothing = 1


def plain(score, b, h, q_idx, kv_idx):
    return score


def test_reprs_read_like_the_code():
    assert repr(ALL["alibi"]()) == "alibi(6)"
    assert repr(ALL["alibi_symmetric"]()) == "alibi(6, symmetric=True)"
    assert repr(ALL["relative_bias"]()) == "relative_bias(float32[6, 7])"
    assert repr(ALL["relative_bias_t5"]()) == "relative_bias(float32[6, 8], buckets=int64[23])"
    assert repr(ALL["compose"]()) == "compose(softcap(2.0), alibi(6), relative_bias(float32[6, 5]))"
    assert repr(ALL["shifted"]()) == "shifted_score(alibi(11), q_offset=4, kv_offset=-2, h_offset=5)"
    assert repr(loom.scores.compose(loom.scores.alibi(6), plain)) == "compose(alibi(6), plain)"
    for name in ("alibi", "alibi_symmetric", "softcap", "shifted"):
        assert eval(repr(ALL[name]()), public_names()) == ALL[name]()


@pytest.mark.parametrize("name", ALL)
def test_forward_and_backward(name):
    score_mod, mask = ALL[name](), loom.window(back=9, ahead=2) & loom.lengths([5, 13, 2], [7, 17, 11])
    gather(
        lambda *qkv: loom.attend(*qkv, mask, score_mod=score_mod),
        *inputs(),
        table=mask.dense(Q, K),
        score_mod=score_mod,
    ).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_dtypes(dtype):
    score_mod = ALL["compose"]()
    gather(lambda *qkv: loom.attend(*qkv, score_mod=score_mod), *inputs(dtype), table=None, score_mod=score_mod).check()
    assert loom.attend(*inputs(dtype), score_mod=score_mod).dtype == dtype


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_it_traces_in_flex_attention(name, dynamic):
    torch._dynamo.reset()
    traced = torch.compile(flex_attention, backend="eager", fullgraph=True, dynamic=dynamic)
    check_kernel(traced, ALL[name]())


def test_the_compiled_kernel_itself():
    torch._dynamo.reset()
    everything = loom.scores.shifted_score(
        loom.scores.compose(*(ALL[name]() for name in ALL if "shifted" not in name)), q_offset=3
    )
    check_kernel(torch.compile(flex_attention, fullgraph=True, dynamic=False), everything)


def check_kernel(kernel, score_mod):
    query, key, value = inputs(head_dim=16)
    with torch.no_grad():
        out = kernel(query, key, value, score_mod=score_mod, enable_gqa=True)
    expected, _ = loom.reference(*(tensor.double() for tensor in (query, key, value)), score_mod=score_mod)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)


def test_score_mods_made_inside_a_compiled_region():
    def model(query, key, value, bias):
        score_mod = loom.scores.compose(loom.scores.alibi(H), loom.scores.softcap(3.0), loom.scores.relative_bias(bias))
        return loom.attend(query, key, value, loom.causal, score_mod=loom.scores.shifted_score(score_mod, q_offset=2))

    torch._dynamo.reset()
    bias = torch.randn(H, 5, generator=torch.Generator().manual_seed(0))
    traced = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(traced(*inputs(), bias), model(*inputs(), bias))


def test_a_class_that_is_not_decorated_is_refused():
    class Mine(ScoreValue):
        def __call__(self, score, b, h, q_idx, kv_idx):
            return score

    for function in (loom.attend, loom.reference, loom.explain):
        with pytest.raises(TypeError, match=r"decorate Mine with maskloom\.scores\.base\.score_dataclass$"):
            function(*inputs(), score_mod=Mine())
