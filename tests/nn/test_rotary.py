"""Rotary: equal to a formula written out, and to transformers' own for each kind of scaling."""

import copy
import math
import pickle

import pytest
import torch
from torch._dynamo.testing import CompileCounter

import maskloom as loom

B, H, L, D = 3, 2, 7, 10


def sample(*shape, seed=0, **how):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(**how)


def written_out(x, positions, base=10000.0, interleaved=False, fraction=1.0):
    """Each pair as a complex number, multiplied by ``exp(i position frequency)``, in Python's own numbers."""
    width = int(x.shape[-1] * fraction)
    out = x.clone().double()
    for b, h, place in ((b, h, t) for b in range(x.shape[0]) for h in range(x.shape[1]) for t in range(x.shape[2])):
        position = int(positions[b][place])
        for i in range(width // 2):
            one, two = (2 * i, 2 * i + 1) if interleaved else (i, i + width // 2)
            turn = complex(math.cos(a := position * base ** (-2 * i / width)), math.sin(a))
            turned = complex(x[b, h, place, one], x[b, h, place, two]) * turn
            out[b, h, place, one], out[b, h, place, two] = turned.real, turned.imag
    return out


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("fraction", [1.0, 0.4, 0.85])
def test_it_is_the_formula(interleaved, fraction):
    rotary = loom.nn.Rotary(D, 500.0, interleaved, fraction)
    x, positions = sample(B, H, L, D), torch.randint(-3, 50, (B, L), generator=torch.Generator().manual_seed(1))
    expected = written_out(x, positions, 500.0, interleaved, fraction)
    torch.testing.assert_close(rotary(x, positions).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotary(x, positions.int()), rotary(x, positions), rtol=0, atol=0)


def test_positions_in_every_form():
    rotary, x = loom.nn.Rotary(D), sample(B, H, L, D)
    expected = written_out(x, [range(5, 5 + L)] * B)
    for given in (5, torch.arange(5, 5 + L), torch.arange(5, 5 + L).expand(B, L), torch.arange(5, 5 + L)[None]):
        torch.testing.assert_close(rotary(x, given).double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(rotary(x), rotary(x, 0), rtol=0, atol=0)


def test_products_depend_on_distances_only():
    rotary, q, k = loom.nn.Rotary(D), sample(1, 1, L, D), sample(1, 1, L, D, seed=1)
    near = rotary(q) @ rotary(k).mT
    torch.testing.assert_close(rotary(q, 1000) @ rotary(k, 1000).mT, near, rtol=1e-3, atol=1e-3)
    left = torch.arange(L)[None] - 4  # padding on the left begins below 0
    torch.testing.assert_close(rotary(q, left) @ rotary(k, left).mT, near, rtol=1e-4, atol=1e-4)


FACTORS = [1.0, 1.25, 1.5, 2.0, 3.0]
SCALINGS = {
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "old name": {"type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0},
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn, all its numbers": {
        "rope_type": "yarn", "factor": 40.0, "original_max_position_embeddings": 4096, "beta_fast": 24, "beta_slow": 2,
        "mscale": 0.7, "mscale_all_dim": 1.1, "truncate": False,
    },
    "yarn, one number is 0": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "mscale": 1.0, "mscale_all_dim": 0.0,
    },
    "yarn, attention factor": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 0.8,
    },
    "longrope": {
        "rope_type": "longrope", "factor": 4.0, "original_max_position_embeddings": 32,
        "short_factor": FACTORS, "long_factor": [2 * number for number in FACTORS],
    },
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "proportional": {"rope_type": "proportional", "partial_rotary_factor": 0.4, "factor": 2.0},
}  # fmt: skip
MOST = 64


def scaled(name, **changed):
    return loom.nn.Rotary(D, scaling=SCALINGS[name] | changed)


def theirs(scaling, base=10000.0, head=D):
    llama = pytest.importorskip("transformers.models.llama.modeling_llama")
    config = llama.LlamaConfig(
        hidden_size=head * H, num_attention_heads=H, head_dim=head, max_position_embeddings=MOST,
        rope_parameters={"rope_theta": base, **scaling},
    )  # fmt: skip
    return llama.LlamaRotaryEmbedding(config), llama.apply_rotary_pos_emb


@pytest.mark.parametrize("length", [L, 2 * MOST + 5])
@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("name", SCALINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_scaling_is_that_of_transformers(name, base, length, dtype):
    embedding, apply = theirs(SCALINGS[name], base)
    scaling = SCALINGS[name] | ({"max_position_embeddings": MOST} if name == "dynamic" else {})
    rotary = loom.nn.Rotary(D, base, scaling=scaling)
    x = sample(B, H, length, D, dtype=dtype)
    positions = (torch.arange(length)[None] - torch.tensor([[0], [3], [5]])).clamp(min=0)
    expected, _ = apply(x, x, *embedding(x, positions))
    torch.testing.assert_close(rotary(x, positions), expected)
    torch.testing.assert_close(rotary(x.double(), positions, length=length).float(), rotary(x.float(), positions))


@pytest.mark.parametrize("name", ["linear", "yarn", "llama3"])
def test_a_dict_with_base_and_fraction_in_it(name):
    """``rope_parameters`` of transformers 5."""
    embedding, _ = theirs(SCALINGS[name] | {"partial_rotary_factor": 0.5}, 1234.0, head=24)
    rotary = loom.nn.Rotary(24, scaling=SCALINGS[name] | {"rope_theta": 1234.0, "partial_rotary_factor": 0.5})
    assert (rotary.base, rotary.fraction) == (1234.0, 0.5)
    torch.testing.assert_close(rotary.inv_freq, embedding.inv_freq)
    x = sample(B, H, L, 24)
    assert torch.equal(rotary(x)[..., 12:], x[..., 12:])


def test_interleaved_is_that_of_transformers():
    gptj = pytest.importorskip("transformers.models.gptj.modeling_gptj")
    x, at = sample(B, H, L, D), torch.arange(L)
    angles = at[:, None] * 10000.0 ** (-torch.arange(0, D, 2) / D)
    expected = gptj.apply_rotary_pos_emb(x.transpose(1, 2), angles.sin()[None], angles.cos()[None]).transpose(1, 2)
    torch.testing.assert_close(loom.nn.Rotary(D, interleaved=True)(x), expected)


def test_a_long_row_is_known_by_its_positions():
    """Dynamic NTK and LongRoPE: by what the host knows, and by ``length`` where it is given."""
    for name in ("dynamic", "longrope"):
        rotary = loom.nn.Rotary(D, scaling=SCALINGS[name] | {"max_position_embeddings": MOST})
        x = sample(1, H, 1, D)
        assert rotary.depends_on_length
        long = rotary(x, 2 * MOST)
        torch.testing.assert_close(rotary(x, torch.tensor([2 * MOST])), long)
        torch.testing.assert_close(rotary(x, torch.tensor([[2 * MOST]]), length=2 * MOST + 1), long)
        assert not torch.allclose(rotary(x, 2 * MOST, length=1), long)


def test_moves_and_conversions_keep_the_angles():
    rotary, x = loom.nn.Rotary(D, scaling=SCALINGS["longrope"]), sample(B, H, L, D)
    expected = rotary(x, 1000)
    for other in (
        copy.deepcopy(rotary),
        pickle.loads(pickle.dumps(rotary)),
        copy.deepcopy(rotary).half(),
        copy.deepcopy(rotary).to("meta").to_empty(device="cpu"),
    ):
        assert other.inv_freq.dtype == torch.float32
        assert torch.equal(other(x, 1000), expected)
    with torch.device("meta"):
        assert torch.equal(loom.nn.Rotary(D, scaling=SCALINGS["longrope"])(x, 1000), expected)
    assert rotary.state_dict() == {} == dict(rotary.named_parameters())


def test_autocast_does_not_round_the_angles():
    rotary, x = loom.nn.Rotary(D), sample(B, H, L, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rotary(x, 5000), rotary(x, 5000).float())
        found = rotary(x, 5000)
    assert torch.equal(found, rotary(x, 5000))


def test_gradients_turn_back():
    rotary, x = loom.nn.Rotary(6).double(), sample(1, 2, 3, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: rotary(x, 3), x)


@pytest.mark.parametrize("name", ["default", "dynamic"])
def test_one_graph_for_many_lengths(name):
    scaling = SCALINGS[name] | ({"max_position_embeddings": MOST} if name == "dynamic" else {})
    rotary, counter = loom.nn.Rotary(D, scaling=scaling), CompileCounter()
    torch._dynamo.reset()
    compiled = torch.compile(rotary, backend=counter, fullgraph=True, dynamic=True)
    for length in (70, 81, 97, 131):
        x = sample(B, H, length, D)
        torch.testing.assert_close(compiled(x), rotary(x))
    assert counter.frame_count == 1


def test_it_prints_its_arguments():
    assert repr(loom.nn.Rotary(D, 500.0, True, 0.4)) == "Rotary(10, base=500, interleaved=True, fraction=0.4)"
    assert "scaling={'rope_type': 'linear', 'factor': 4.0}" in repr(loom.nn.Rotary(D, scaling=SCALINGS["linear"]))


x = sample(B, H, L, D)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: loom.nn.Rotary(1), ValueError, "d_head is a number of features, at least 2; got 1"),
        (lambda: loom.nn.Rotary(D, 0.0), ValueError, "base is a number above 0; got 0.0"),
        (lambda: loom.nn.Rotary(7), ValueError, "an even number of features of a head.* d_head=7 and fraction=1"),
        (lambda: loom.nn.Rotary(D, fraction=0.3), ValueError, "even number .* fraction=0.3"),
        (lambda: loom.nn.Rotary(D, fraction=1.2), ValueError, "fraction=1.2"),
        (lambda: loom.nn.Rotary(D, scaling="linear"), TypeError, "scaling is a dict, .* got 'linear'"),
        (lambda: loom.nn.Rotary(D, scaling={"rope_type": "mrope"}), ValueError, "default, linear, .* got 'mrope'"),
        (lambda: loom.nn.Rotary(D, scaling={"rope_type": "linear"}), ValueError, "'linear' needs factor; got {}"),
        (
            lambda: loom.nn.Rotary(D, scaling=SCALINGS["linear"] | {"beta_fast": 3}),
            ValueError,
            "'linear' takes factor, .*; got 'beta_fast'",
        ),
        (
            lambda: loom.nn.Rotary(D, scaling=SCALINGS["dynamic"]),
            ValueError,
            "'dynamic' needs max_position_embeddings; got {'factor': 2.0}",
        ),
        (
            lambda: loom.nn.Rotary(D, scaling={"rope_type": "linear", "factor": 0}),
            ValueError,
            "factor of scaling is a number above 0; got 0",
        ),
        (
            lambda: loom.nn.Rotary(D, scaling=SCALINGS["longrope"] | {"short_factor": [1.0]}),
            ValueError,
            r"short_factor of scaling has a number for each of 5 frequencies; got \[1.0\]",
        ),
        (
            lambda: loom.nn.Rotary(D, 3.0, scaling={"rope_type": "default", "rope_theta": 5.0}),
            ValueError,
            "base is 3.0, and scaling has rope_theta 5.0; give one of them",
        ),
        (
            lambda: scaled("longrope", short_factor=[1.0, 0.0, 1.0, 1.0, 1.0]),
            ValueError,
            "short_factor .* numbers above 0; got 0.0 among",
        ),
        (
            lambda: scaled("longrope", long_factor=[1.0, math.nan, 1.0, 1.0, 1.0]),
            ValueError,
            "long_factor .* above 0; got nan among",
        ),
        (
            lambda: scaled("longrope", short_factor=[1.0, "a", 1.0, 1.0, 1.0]),
            ValueError,
            "short_factor .* above 0; got 'a' among",
        ),
        (
            lambda: scaled("longrope", original_max_position_embeddings=1),
            ValueError,
            "'longrope' needs original_max_position_embeddings above 1; got 1",
        ),
        (lambda: loom.nn.Rotary(D, 1.0, scaling=SCALINGS["yarn"]), ValueError, "'yarn' needs base above 1; got 1.0"),
        (lambda: scaled("yarn", factor=math.inf), ValueError, "factor of scaling is a number above 0; got inf"),
        (lambda: scaled("yarn", truncate="no"), ValueError, "truncate of scaling is True or False; got 'no'"),
        (
            lambda: loom.nn.Rotary(D, scaling={"rope_type": ["a"]}),
            ValueError,
            r"rope_type among default, .* got \['a'\]",
        ),
        (lambda: loom.nn.Rotary(D)(x, length="x"), TypeError, "length is a number of positions, an int; got str: 'x'"),
        (lambda: loom.nn.Rotary(D, interleaved="no"), TypeError, "interleaved is True or False; got 'no'"),
        (lambda: loom.nn.Rotary(D)(x[0]), ValueError, r"x has shape \(batch, heads, length, 10\); got \(2, 7, 10\)"),
        (lambda: loom.nn.Rotary(8)(x), ValueError, r"length, 8\); got \(3, 2, 7, 10\)"),
        (lambda: loom.nn.Rotary(D)(x.long()), TypeError, r"x is floating point .*; got Tensor int64\[3, 2, 7, 10\]"),
        (lambda: loom.nn.Rotary(D)(x.tolist()), TypeError, "x is floating point .*; got list"),
        (lambda: loom.nn.Rotary(D)(x, 1.5), TypeError, r"positions are integers \(L,\) or \(B, L\), .* got 1.5"),
        (lambda: loom.nn.Rotary(D)(x, torch.ones(L)), TypeError, "got torch.float32"),
        (lambda: loom.nn.Rotary(D)(x, torch.arange(B)), ValueError, r"here B = 3, L = 7; got \(3,\)"),
        (lambda: loom.nn.Rotary(D)(x, torch.zeros(2, L, dtype=torch.int64)), ValueError, r"got \(2, 7\)"),
    ],
)
def test_words(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_a_call_on_the_meta_device_takes_nothing_with_it():
    rotary, x = loom.nn.Rotary(4), torch.randn(2, 3, 5, 4)
    expected = rotary(x)
    assert rotary(x.to("meta")).device.type == "meta"
    assert torch.equal(rotary(x), expected)
    with pytest.raises(ValueError, match="fraction=inf"):
        loom.nn.Rotary(16, fraction=float("inf"))
