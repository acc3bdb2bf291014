"""Masks made anew for each step are served by the graph of the first: nothing in a graph is tied to the mask as an object.

On a GPU that is pretended, where attention traces as far as FlexAttention; see `tests.gpu` for a real one.
"""

import functools

import pytest
import torch
from torch._dynamo.utils import counters
from torch.nn.attention.flex_attention import AuxRequest, and_masks

import maskloom as loom
from maskloom.attention.backends import choose, decode, flash
from maskloom.attention.request import Request
from tests.catalog import EVERY

B, H, N, D = 2, 3, 150, 64


@pytest.fixture
def _pretended(monkeypatch, request):
    monkeypatch.setattr(Request, "device", torch.device("cuda", 0))
    monkeypatch.setattr(flash, "_major_of", lambda device: 9)
    monkeypatch.setattr(flash, "_HAS_FLASH", True)
    monkeypatch.setattr(decode, "has_triton", lambda: False)
    monkeypatch.setattr(choose, "LITTLE", 0 if request.param == "flash" else 1 << 60)
    monkeypatch.setattr(torch.nn.attention.flex_attention, "_validate_device", lambda *qkv: None)


def graphs_of(make, batch=B, heads=H, q_len=N, kv_len=N):
    """How many graphs three calls have, each with what ``make`` makes anew: a mask, and options of `maskloom.attend`."""
    torch._dynamo.reset()
    counters.clear()
    query, key = (torch.zeros(batch, heads, length, D, dtype=torch.bfloat16) for length in (q_len, kv_len))

    @functools.partial(torch.compile, backend="eager", fullgraph=True)
    def attend(query, key, mask, options):
        return loom.attend(query, key, key, mask, **options)

    for _ in range(3):
        mask, options = make()
        attend(query, key, mask, options)
        del mask, options
    return counters["stats"]["unique_graphs"]


def lens():
    return torch.randint(1, N, (B,))


def closure():
    lengths = lens()

    def mask_mod(b, h, q_idx, kv_idx):
        return (q_idx >= kv_idx) & (kv_idx < lengths[b])

    return mask_mod


def bias():
    slopes = torch.rand(H)

    def score_mod(score, b, h, q_idx, kv_idx):
        return score + slopes[h] * (kv_idx - q_idx)

    return score_mod


def shorter(lengths, b, h, q_idx, kv_idx):
    return kv_idx < lengths[b]


nightly = pytest.mark.skipif("config.getoption('hypothesis_profile') != 'nightly'", reason="minutes: make nightly")
ALWAYS = "block mask", "torch's block mask", "clean", "sinks"

FORMS = {
    "lengths": lambda: (loom.causal & loom.lengths(lens()), {}),
    "documents": lambda: (loom.causal & loom.documents(ids=torch.arange(N) // torch.randint(9, 50, ())), {}),
    "function": lambda: (closure(), {}),
    "partial": lambda: (functools.partial(shorter, lens()), {}),
    "torch's and_masks": lambda: (and_masks(closure(), closure()), {}),
    "and": lambda: (loom.causal & closure(), {}),
    "or, not": lambda: (~(closure() | loom.causal), {}),
    "shifted": lambda: (loom.masks.shifted(loom.causal & closure(), q_offset=torch.tensor(2)), {}),
    "by head": lambda: (loom.masks.per_head([closure(), loom.causal, closure()]), {}),
    "transposed": lambda: (loom.masks.transposed(loom.causal & closure()), {}),
    "within": lambda: (loom.masks.within(loom.documents(ids=torch.arange(N) // 50), closure()), {}),
    "block mask": lambda: (loom.block_mask(loom.causal & loom.lengths(lens()), N, N), {}),
    "block mask of a function": lambda: (loom.block_mask(loom.causal & closure(), N, N, batch=B, heads=1), {}),
    "torch's block mask": lambda: (
        torch.nn.attention.flex_attention.create_block_mask(closure(), B, None, N, N, device="cpu"),
        {},
    ),
    "score_mod": lambda: (loom.causal & closure(), {"score_mod": bias()}),
    "alibi": lambda: (loom.causal & loom.lengths(lens()), {"score_mod": loom.scores.alibi(H)}),
    "offset": lambda: (loom.causal & closure(), {"q_offset": torch.tensor(2)}),
    "dropout": lambda: (loom.causal & closure(), {"dropout": 0.1}),
    "clean": lambda: (loom.causal & loom.lengths(lens()), {"clean_padding": True}),
    "sinks": lambda: (loom.causal & closure(), {"sinks": torch.randn(H), "return_aux": AuxRequest(lse=True)}),
}


@pytest.mark.parametrize("_pretended", ["triton"], indirect=True)
@pytest.mark.parametrize("form", FORMS)
def test_what_is_made_anew_needs_no_graph_of_its_own(_pretended, form):
    torch.manual_seed(0)
    assert graphs_of(FORMS[form]) == 1


@pytest.mark.parametrize("_pretended", ["flash"], indirect=True)
@pytest.mark.parametrize("form", ["lengths", "documents", "and", "block mask", "offset"])
def test_nor_where_flash_is_taken(_pretended, form):
    torch.manual_seed(0)
    assert graphs_of(FORMS[form]) == 1


@pytest.mark.parametrize("_pretended", ["triton"], indirect=True)
@pytest.mark.parametrize("form", [pytest.param(form, marks=[] if form in ALWAYS else [nightly]) for form in FORMS])
def test_a_size_that_query_alone_has_as_a_symbol_is_the_one_of_the_mask(_pretended, form):
    torch._dynamo.reset()
    mask, options = FORMS[form]()
    query, key = (torch.zeros(B, H, N, D, dtype=torch.bfloat16) for _ in range(2))
    for tensor in (query, key):
        torch._dynamo.maybe_mark_dynamic(tensor, (0, 2))
    attend = torch.compile(
        lambda query, key: loom.attend(query, key, key, mask, **options), backend="eager", fullgraph=True
    )
    assert attend(query, key) is not None


MODULE = {
    "positions": lambda: (loom.causal, {"positions": torch.arange(N).repeat(B, 1)}),
    "block mask": lambda: (loom.block_mask(loom.causal & loom.lengths(lens()), N, N), {}),
    "block mask of known lengths": lambda: (loom.block_mask(loom.causal & loom.lengths([N, 17]), N, N), {}),
    "padding": lambda: (loom.causal & loom.padding(torch.arange(N) >= lens()[:, None]), {"clean_padding": True}),
    "documents": lambda: (loom.causal & loom.documents(torch.arange(N).repeat(B, 1) // 50), {}),
    "context": lambda: (loom.lengths(lens(), lens()), {"context": torch.zeros(B, N, 2 * D)}),
}


@pytest.mark.parametrize("_pretended", ["triton"], indirect=True)
@pytest.mark.parametrize("form", MODULE)
def test_nor_does_the_module_take_it_for_another(_pretended, form):
    torch._dynamo.reset()
    mask, options = MODULE[form]()
    module = loom.MultiheadFlexAttention(2 * D, 2 * D, 2, rotary=None if form == "context" else loom.nn.Rotary(D))
    x = torch.zeros(B, N, 2 * D)
    torch._dynamo.maybe_mark_dynamic(x, (0, 1))
    assert torch.compile(lambda x: module(x, mask, **options), backend="eager", fullgraph=True)(x).out is not None


def classes_of(held):
    """The classes of an object and of what its fields hold."""
    names = getattr(held, "__match_args__", ())
    inner = held if isinstance(held, (tuple, list)) else [getattr(held, name) for name in names]
    return {type(held)}.union(*map(classes_of, inner))


def with_every_class():
    """Names of masks that together have each class of mask that there is."""
    seen = set()
    for name, (make, _, _) in EVERY.items():
        found = classes_of(make())
        if not found <= seen:
            seen |= found
            yield name


NAMES = [pytest.param(name, marks=[nightly] if at % 5 else []) for at, name in enumerate(with_every_class())]


@pytest.mark.parametrize("_pretended", ["triton"], indirect=True)
@pytest.mark.parametrize("name", NAMES)
def test_nor_does_any_mask(_pretended, name):
    make, q_len, kv_len = EVERY[name]
    batch, heads = (max(2, size) for size in make().dense(q_len, kv_len).shape[:2])
    assert graphs_of(lambda: (make(), {}), batch, heads, q_len, kv_len) == 1
