"""What Triton's kernel is asked for: narrow tiles where tables are read at keys, the head dim being 64 and the type half."""

import pytest
import torch

import maskloom as loom
from maskloom.attention.backends import triton
from tests.attention.test_host_cost import launches  # noqa: F401 - a fixture

B, H, KV, Q, K = 3, 4, 2, 129, 257
REAL = torch.arange(K) < torch.tensor([K, 5, 131])[:, None]
IDS = torch.arange(K) // 50


@loom.masks.mask_dataclass
class Computed(loom.Mask):
    """Reads a table at what is computed from keys."""

    table: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return self.table[(kv_idx * 3 + h) % len(self.table)]


@loom.masks.mask_dataclass
class AtQueries(loom.Mask):
    """Reads a table at queries alone."""

    start: torch.Tensor

    def __call__(self, b, h, q_idx, kv_idx):
        return kv_idx >= self.start[q_idx]


AT_KEYS = {
    "key_padding": lambda: loom.causal & loom.key_padding(~REAL),
    "documents": lambda: loom.documents(IDS),
    "dense": lambda: loom.masks.from_dense(torch.rand(Q, K) < 0.5),
    "computed": lambda: Computed(torch.rand(7) < 0.5),
    "a function": lambda: lambda b, h, q_idx, kv_idx: REAL[b, kv_idx],
}
NOT_AT_KEYS = {
    "nothing": lambda: None,
    "causal": lambda: loom.causal,
    "lengths": lambda: loom.causal & loom.lengths(torch.tensor([Q, 5, 11]), torch.tensor([K, 5, 131])),
    "at queries": lambda: AtQueries(torch.arange(Q)),
}


def options_of(launches, mask, *, head_dim=64, dtype=torch.bfloat16, **given):  # noqa: F811
    query, key = (torch.randn(B, heads, length, head_dim).to(dtype) for heads, length in ((H, Q), (KV, K)))
    loom.attend(query, key, key.clone(), mask, backend="triton", **given)
    return launches[-1][8]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", AT_KEYS)
def test_tables_at_keys(name, dtype, launches):  # noqa: F811
    assert options_of(launches, AT_KEYS[name](), dtype=dtype)["fwd_BLOCK_N"] == 64


@pytest.mark.parametrize("name", NOT_AT_KEYS)
def test_other_masks(name, launches):  # noqa: F811
    assert "fwd_BLOCK_N" not in options_of(launches, NOT_AT_KEYS[name]())


def test_masks_whose_tables_change(launches):  # noqa: F811
    for _ in range(4):
        assert options_of(launches, loom.causal & loom.key_padding(~REAL.clone()))["fwd_BLOCK_N"] == 64


@pytest.mark.parametrize("given", [{"head_dim": 128}, {"head_dim": 32}, {"dtype": torch.float32}], ids=str)
def test_other_kernels(given, launches):  # noqa: F811
    assert "fwd_BLOCK_N" not in options_of(launches, AT_KEYS["documents"](), **given)


@pytest.mark.parametrize("name", ["BLOCK_M", "BLOCK_N", "fwd_BLOCK_M", "fwd_BLOCK_N"])
def test_what_a_caller_asks_for_counts(name, launches):  # noqa: F811
    found = options_of(launches, AT_KEYS["documents"](), kernel_options={name: 128})
    assert {key: size for key, size in found.items() if "BLOCK" in key} == {name: 128}


@pytest.mark.parametrize(
    ("block", "is_narrow"), [((128, 128), True), ((128, 64), True), ((256, 192), True), ((64, 32), False)]
)
def test_tiles_divide_the_blocks(block, is_narrow, launches):  # noqa: F811
    blocks = loom.block_mask(AT_KEYS["documents"](), Q, K, block_size=block)
    assert ("fwd_BLOCK_N" in options_of(launches, blocks)) is is_narrow


def test_tables_of_a_score_mod(launches):  # noqa: F811
    table = torch.randn(H, 2 * K)
    found = options_of(
        launches, loom.causal, score_mod=lambda score, b, h, q_idx, kv_idx: score + table[h, q_idx + kv_idx]
    )
    assert found["fwd_BLOCK_N"] == 64 and found["num_stages"] == 2
    slopes = torch.rand(H)
    found = options_of(launches, loom.causal, score_mod=lambda score, b, h, q_idx, kv_idx: score * slopes[h])
    assert "fwd_BLOCK_N" not in found


@pytest.mark.parametrize("name", ["key_padding", "documents", "dense", "computed", "causal", "lengths", "at queries"])
def test_in_a_graph_any_table_but_one_of_rows_counts(name):
    mask = {**AT_KEYS, **NOT_AT_KEYS}[name]()
    found = []

    @torch.compile(backend="eager", fullgraph=True)
    def traced(query):
        found.append(triton._holds_tables(mask, query.shape[0]))
        return query + 1

    traced(torch.randn(B, H))
    assert found[0] is (name in AT_KEYS or name == "at queries")


BIAS = loom.scores.relative_bias(torch.randn(H, 2 * K - 1))
IN_FIELDS = {
    "a bias": (lambda: BIAS, True),
    "composed": (lambda: loom.scores.compose(loom.scores.softcap(3.0), BIAS), True),
    "shifted": (lambda: loom.scores.shifted_score(BIAS, q_offset=2), True),
    "slopes": (lambda: loom.scores.alibi(H), False),
    "a number": (lambda: loom.scores.softcap(3.0), False),
    "a function": (lambda: lambda score, b, h, q_idx, kv_idx: score, False),
}


@pytest.mark.parametrize("made_inside", [False, True])
@pytest.mark.parametrize("name", IN_FIELDS)
def test_tables_in_the_fields_of_a_score_mod_count_in_a_graph(name, made_inside):
    """There a kernel with three stages has no room for them on the chip, as outside."""
    torch._dynamo.reset()
    make, reads = IN_FIELDS[name]
    outside, found = make(), []

    @torch.compile(backend="eager", fullgraph=True)
    def traced(query):
        found.append(triton._reads_tables(make() if made_inside else outside))
        return query + 1

    traced(torch.randn(B, H))
    assert found == [reads]
