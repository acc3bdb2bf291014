"""A mask_mod that gives no bool is one error, in eager mode and while torch compiles."""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask

import maskloom as loom
from maskloom.attention.backends import compiled
from maskloom.core.cache import LRU
from maskloom.program.answers import NO_BOOL

B, H, L, D = 1, 2, 7, 16


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()


def floats(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx).float()


def ints(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx).int()


def pair(b, h, q_idx, kv_idx):
    return torch.stack([q_idx >= kv_idx, q_idx < kv_idx])


@loom.masks.mask_dataclass
class Mine(loom.Mask):
    """A mask of one's own, with a dtype of its own."""

    dtype: torch.dtype

    def __call__(self, b, h, q_idx, kv_idx):
        return (q_idx >= kv_idx).to(self.dtype)


NO_MASKS = {
    "floats": (floats, "floats gave float32"),
    "ints": (ints, "ints gave int32"),
    "Python's bool": (lambda b, h, q_idx, kv_idx: True, "gave bool True"),
    "nothing": (lambda b, h, q_idx, kv_idx: None, "gave None"),
    "two": (pair, "gave bool of shape (2,)"),
    "a class": (Mine(torch.int64), "gave int64"),
    "and": (loom.causal & floats, "floats gave float32"),
    "and_masks": (loom.and_masks(ints, loom.causal), "ints gave int32"),
    "or": (loom.window(back=3) | Mine(torch.int8), "gave int8"),
    "xor": (loom.causal ^ ints, "ints gave int32"),
    "not": (~loom.as_mask(ints), "ints gave int32"),
    "not of floats": (~Mine(torch.float16), "gave float16"),
    "per head": (loom.masks.per_head([floats, loom.causal]), "floats gave float32"),
    "shifted": (loom.masks.shifted(ints, q_offset=3), "ints gave int32"),
    "within": (loom.masks.within(loom.documents(offsets=[0, 3, 7]), floats), "floats gave float32"),
}


def inputs():
    return torch.randn(3, B, H, L, D).unbind()


def attend(mask):
    return lambda: loom.attend(*inputs(), mask)


def build(mask):
    return lambda: loom.block_mask(mask, L, L, batch=B, heads=H, device="cpu").kv_indices + 1


def build_as_torch(mask):
    return lambda: loom.create_block_mask(mask, B, H, L, L, device="cpu").kv_indices + 1


def module(mask):
    attention = loom.MultiheadFlexAttention(D, D, H)
    return lambda: attention(torch.randn(B, L, D), mask).out


def dense(mask):
    return lambda: loom.as_mask(mask).dense(L, L, batch=B, heads=H) & True


WAYS = [attend, build, build_as_torch, module, dense]


@pytest.mark.parametrize("name", NO_MASKS)
@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_what_is_no_bool_is_an_error(way, name):
    mask, words = NO_MASKS[name]
    with pytest.raises(TypeError) as eager:
        way(mask)()
    assert NO_BOOL in str(eager.value) and words in str(eager.value)


@pytest.mark.parametrize(
    "way, name",
    [
        *((attend, name) for name in NO_MASKS),
        *((way, name) for way in WAYS[1:] for name in ("floats", "a class", "and")),
    ],
)
def test_it_is_the_same_error_while_torch_compiles(way, name):
    mask, words = NO_MASKS[name]
    if name == "Python's bool" and torch.__version__ < "2.12":
        pytest.skip("torch 2.11 raises an error of its own in the place of ours")
    with pytest.raises(TypeError) as traced:
        torch.compile(way(mask), backend="eager")()
    assert NO_BOOL in str(traced.value) and words in str(traced.value)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["floats", "two", "a class", "or", "per head"])
def test_one_graph_says_it_too(backend, name):
    with pytest.raises(Exception) as traced:  # torch's own, which quotes ours
        torch.compile(attend(NO_MASKS[name][0]), backend=backend, fullgraph=True)()
    assert NO_BOOL in str(traced.value)


def by_hand(mask_mod):
    """A BlockMask of all tiles, of which nobody has asked the mask_mod yet."""
    number, indices = torch.ones(1, 1, 1, dtype=torch.int32), torch.zeros(1, 1, 1, 1, dtype=torch.int32)
    return BlockMask.from_kv_blocks(number, indices, BLOCK_SIZE=128, mask_mod=mask_mod, seq_lengths=(L, L))


@pytest.mark.parametrize(
    "around", [lambda f: f, lambda f: torch.compile(f, backend="eager")], ids=["eager", "compiled"]
)
@pytest.mark.parametrize("mask", [floats, ints, loom.causal & floats], ids=["floats", "ints", "and"])
def test_nor_does_a_block_mask_hold_one(around, mask):
    with pytest.raises(TypeError, match="answers with one bool"):
        around(attend(by_hand(mask)))()


@pytest.mark.parametrize("mask", [floats, ints, pair], ids=lambda mask: mask.__name__)
def test_nor_does_a_kernel_take_one(monkeypatch, mask):
    monkeypatch.setattr(compiled, "_COMPILER", "eager")
    monkeypatch.setattr(compiled, "_pool", LRU(256))
    with pytest.raises(TypeError, match="answers with one bool"), torch.no_grad():
        compiled.fused_attention(
            *inputs(), by_hand(mask), score_mod=None, scale=None, wants_lse=False, kernel_options=None
        )


def test_a_bool_of_pythons_joins_others():
    mask = loom.causal & (lambda b, h, q_idx, kv_idx: True)
    assert torch.equal(mask.dense(5, 7), loom.causal.dense(5, 7))
    traced = torch.compile(lambda: mask.dense(5, 7, batch=1, heads=1), backend="eager")
    assert torch.equal(traced(), loom.causal.dense(5, 7))
