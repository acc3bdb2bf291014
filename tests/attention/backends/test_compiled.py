"""The pool of compiled functions: one per kind, none falls back.

Most tests trace only (no kernel is built), which is where graphs are counted and limits are met; one runs the CPU kernel.
tests/gpu runs the same on a GPU.
"""

import pytest
import torch
from torch.nn.attention.flex_attention import and_masks as torch_and
from torch.nn.attention.flex_attention import or_masks as torch_or

import maskloom as loom
from maskloom.attention.attend import run_backend as run
from maskloom.attention.backends import compiled
from maskloom.attention.backends.triton import Triton
from maskloom.attention.reference import reference
from maskloom.attention.request import Request
from maskloom.core.cache import LRU
from tests.all_masks import ALL_MASKS
from tests.scores.no_scores import NO_SCORES

B, H, D = 3, 2, 16


@pytest.fixture
def tracing(monkeypatch):
    """Graphs are traced and run eagerly; returns a counter of them. The pool starts empty."""
    graphs = []
    monkeypatch.setattr(compiled, "_COMPILER", lambda graph, inputs: graphs.append(graph) or graph.forward)
    monkeypatch.setattr(compiled, "_pool", LRU(256))
    torch._dynamo.reset()
    return graphs


def attend(mask, q_len, *, kv_len=None, batch=B, heads=H, dtype=torch.float32, score_mod=None, options=None):
    """Compiled attention, checked against the reference."""
    kv_len = q_len if kv_len is None else kv_len
    generator = torch.Generator().manual_seed(q_len)
    query = torch.randn(batch, heads, q_len, D, generator=generator).to(dtype)
    key = torch.randn(batch, heads, kv_len, D, generator=generator).to(dtype)
    blocks = loom.block_mask(mask, q_len, kv_len, block_size=16)
    with torch.no_grad():
        out, _ = compiled.fused_attention(
            query, key, key.clone(), blocks, score_mod=score_mod, scale=None, wants_lse=False, kernel_options=options
        )
    table = loom.as_mask(mask).dense(q_len, kv_len)
    expected, _ = reference(query.double(), key.double(), key.double(), table, score_mod=score_mod)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 if dtype == torch.float32 else 0.03)


LENS = torch.tensor([20, 5, 40])


def closure(lens):
    def mask_mod(b, h, q_idx, kv_idx):
        return kv_idx < lens[b]

    return mask_mod


def test_twenty_eight_lengths_are_few_graphs(tracing):
    for q_len in range(33, 33 + 28 * 5, 5):
        attend(loom.causal & loom.lengths(LENS), q_len)
    assert compiled.compiled_kinds() == 1
    assert len(tracing) <= 2  # the first has as many key tiles as batch rows, so torch took the two sizes for one


def test_every_kind_of_mask_has_a_function_of_its_own(tracing):
    masks = [make() for name, make in ALL_MASKS.items() if "cross" not in name]
    masks += [
        closure(LENS),
        loom.causal & closure(LENS),
        torch_and(loom.causal, closure(LENS)),
        torch_or(loom.causal, loom.lengths(LENS)),
    ]
    for mask in masks:
        attend(mask, 17)
    assert len(masks) > 20
    assert compiled.compiled_kinds() == len(tracing)
    assert len(tracing) >= 20  # more than the recompile limit of one function


def test_numbers_tensors_and_batches_change_freely(tracing):
    for back in range(2, 14):
        attend(loom.window(back=back) & loom.lengths(LENS + back), 33)
    assert len(tracing) == 1
    for batch in (4, 5, 7):
        attend(loom.lengths(torch.arange(1, batch + 1)), 33 + batch, batch=batch)
    assert len(tracing) == 2


def test_sizes_of_one_are_kinds_of_their_own(tracing):
    attend(loom.causal, 33)
    attend(loom.causal, 33, batch=1)
    attend(loom.causal, 1, kv_len=33)
    attend(loom.causal, 33, kv_len=50)
    assert compiled.compiled_kinds() == len(tracing) == 4


def test_dtypes_heads_and_score_mods_are_kinds_of_their_own(tracing):
    attend(loom.causal, 33)
    attend(loom.causal, 33, dtype=torch.bfloat16)
    attend(loom.causal, 33, heads=5)
    attend(loom.causal, 33, score_mod=lambda score, b, h, q, k: score * 2)
    attend(loom.causal, 33, options={"PRESCALE_QK": True})
    assert compiled.compiled_kinds() == len(tracing) == 5


def test_tables_and_offsets_of_score_mods_change_freely(tracing):
    def learned(heads, columns):
        return torch.randn(heads, columns, generator=torch.Generator().manual_seed(columns))

    for step in range(2, 14):  # more than the recompile limit
        attend(
            loom.causal,
            33 + step,
            score_mod=loom.scores.shifted_score(loom.scores.alibi(3 + step), q_offset=step, h_offset=1),
        )
    assert compiled.compiled_kinds() == 1 and len(tracing) <= 2
    for reach in range(1, 13):
        attend(loom.causal, 33 + reach, score_mod=loom.scores.relative_bias(learned(H, 2 * reach + 1)))
    assert compiled.compiled_kinds() == 2 and len(tracing) <= 4
    for reach in range(5, 17):
        buckets = loom.scores.t5_buckets(8, max_distance=reach)
        attend(loom.causal, 33 + reach, score_mod=loom.scores.relative_bias(learned(H, 8), buckets=buckets))
    assert compiled.compiled_kinds() == 3 and len(tracing) <= 6


def test_each_cap_and_each_composition_is_a_kind_of_its_own(tracing):
    for cap in range(1, 13):
        attend(loom.causal, 33, score_mod=loom.scores.softcap(cap))
    assert compiled.compiled_kinds() == len(tracing) == 12
    attend(loom.causal, 33, score_mod=loom.scores.compose(loom.scores.alibi(H), loom.scores.softcap(3)))
    attend(loom.causal, 33, score_mod=loom.scores.compose(loom.scores.softcap(3), loom.scores.alibi(H)))
    assert compiled.compiled_kinds() == len(tracing) == 14


def test_numbers_belong_to_the_kind_where_the_backend_takes_no_dynamic_number(tracing):
    flash = {"BACKEND": "FLASH"}
    for back in range(2, 13):
        for q_len in (33, 40, 47):
            attend(loom.window(back=back), q_len, options=flash)
    assert compiled.compiled_kinds() == 11
    assert len(tracing) <= 2 * 11  # the second length makes sizes dynamic
    for graph in tracing:
        assert "window" not in str(graph.graph)  # the mask itself left no object behind
    attend(loom.causal & loom.lengths(LENS), 33, options=flash)
    attend(loom.causal & loom.lengths(LENS), 40, options=flash)
    assert compiled.compiled_kinds() == 12


def test_a_forced_eager_stance_is_an_error(tracing):
    with torch.compiler.set_stance("force_eager"), pytest.raises(loom.FallbackError, match="was not compiled"):
        attend(loom.causal, 33)


def test_a_broken_compiler_is_an_error(tracing, monkeypatch):
    def breaks(graph, inputs):
        raise ArithmeticError("no registers left")

    monkeypatch.setattr(compiled, "_COMPILER", breaks)
    with pytest.raises(loom.FallbackError, match=r"could not be compiled \(BackendCompilerFailed.*no registers left"):
        attend(loom.causal, 33)


def test_a_mask_that_cannot_be_traced_is_an_error(tracing):
    def asks(b, h, q_idx, kv_idx):
        torch._dynamo.graph_break()
        return q_idx >= kv_idx

    with pytest.raises(loom.FallbackError, match="could not be compiled"):
        attend(asks, 33)


LEAST = [0]  # an entry of a global list is a constant of the graph: each value needs a graph of its own


def reads_a_global(b, h, q_idx, kv_idx):
    return (q_idx >= kv_idx) & (kv_idx >= LEAST[0])


def test_an_exhausted_recompile_limit_is_an_error(tracing):
    def use_up():
        for least in range(2, torch._dynamo.config.recompile_limit + 4):
            LEAST[0] = least
            attend(reads_a_global, 33)

    torch._dynamo.config.specialize_int, before = True, torch._dynamo.config.specialize_int
    try:
        with pytest.raises(loom.FallbackError, match="recompile_limit"):
            use_up()
    finally:
        torch._dynamo.config.specialize_int = before


def test_inside_an_outer_compile_there_is_one_graph(tracing):
    blocks = loom.block_mask(loom.causal & loom.lengths(LENS), 33, 33)
    query = torch.randn(B, H, 33, D)

    @torch.compile(backend="eager", fullgraph=True)
    def model(query, blocks):
        return compiled.fused_attention(
            query * 2, query, query, blocks, score_mod=None, scale=None, wants_lse=False, kernel_options=None
        )[0]

    expected, _ = reference(query * 2, query, query, loom.causal & loom.lengths(LENS))
    torch.testing.assert_close(model(query, blocks), expected)
    assert compiled.compiled_kinds() == 0


def test_the_cpu_kernel_itself():
    torch._dynamo.reset()
    attend((loom.window(back=9) | loom.sinks(3)) & loom.lengths(LENS), 50)


def test_small_heads_are_widened(tracing):
    generator = torch.Generator().manual_seed(0)
    query, value = torch.randn(B, H, 33, 8, generator=generator), torch.randn(B, H, 33, 5, generator=generator)
    mask = loom.causal & loom.lengths(LENS)
    expected, _ = reference(query, query, value, mask)
    for _ in range(2):
        with torch.no_grad():
            out, _ = run(Triton(), Request(query, query.clone(), value, mask))
        torch.testing.assert_close(out, expected)
    assert len(tracing) == 1


def test_floats_that_a_score_mod_captures_are_constants(tracing):
    def tapered(rate, floor=-2.5):
        return lambda score, b, h, q, k: (score - rate * (q - k)).clamp(min=floor)

    for rate in (0.5, 0.25, 0.5):
        attend(loom.causal, 33, score_mod=tapered(rate))
        attend(loom.causal, 40, score_mod=tapered(rate))
    assert compiled.compiled_kinds() == 2
    assert len(tracing) <= 4


def test_the_cpu_kernel_with_a_captured_float():
    torch._dynamo.reset()
    rate = 0.5
    attend(loom.causal, 50, score_mod=lambda score, b, h, q, k: score - rate * (q - k))


@pytest.mark.parametrize("name", NO_SCORES)
def test_a_score_mod_that_gives_no_score_is_an_error(tracing, name):
    score_mod, words = NO_SCORES[name]
    for given in (
        score_mod,
        loom.scores.shifted_score(score_mod, q_offset=2),
        loom.scores.compose(loom.scores.softcap(5.0), score_mod),
    ):
        query = torch.randn(B, H, 7, D)
        with pytest.raises(TypeError, match=words) as error:
            run(Triton(), Request(query, query, query, None, given))
        assert "\n" not in str(error.value)
    assert not tracing


def test_what_a_score_mod_raises_comes_through(tracing):
    def wrong(score, b, h, q_idx, kv_idx):
        raise ZeroDivisionError("mine is wrong")

    with pytest.raises(ZeroDivisionError, match="mine is wrong"):
        attend(loom.causal, 37, score_mod=wrong)


def test_the_check_of_a_score_is_no_part_of_the_graph(tracing, monkeypatch):
    table = torch.randn(H, requires_grad=True)

    def operations(score_mod):
        torch._dynamo.reset()
        compiled._pool.clear()
        tracing.clear()
        attend(loom.causal, 37, score_mod=score_mod)
        nodes = [node for module in tracing[0].modules() for node in module.graph.nodes]
        return [node.op if node.op == "placeholder" else (node.op, node.target) for node in nodes]

    for score_mod in (lambda score, b, h, q_idx, kv_idx: score + table[h] * q_idx, loom.scores.alibi(H)):
        checked = operations(score_mod)
        with monkeypatch.context() as patched:
            patched.setattr(compiled, "answering", lambda score_mod: score_mod)
            assert operations(score_mod) == checked


def test_objects_that_a_closure_holds_are_one_kind(tracing):
    class Settings:
        def __init__(self, lens):
            self.lens = lens

    def made_of(settings):
        return lambda b, h, q_idx, kv_idx: kv_idx < settings.lens[b]

    for add in range(12):  # more than the recompile limit
        attend(made_of(Settings(LENS + add)), 33)
    assert compiled.compiled_kinds() == 1
    assert len(tracing) <= 2


def test_max_autotune_is_a_kind_of_its_own(monkeypatch):
    """What torch is told of tuning when attend is called is what it compiles by, whatever was compiled before."""
    from torch._inductor import config

    seen = []
    monkeypatch.setattr(compiled, "_COMPILER", lambda graph, _: seen.append(config.max_autotune) or graph.forward)
    monkeypatch.setattr(compiled, "_pool", LRU(256))
    for wanted in (False, True, False, True):
        with config.patch(max_autotune=wanted):
            attend(loom.causal, 33)
    assert seen == [False, True] and compiled.compiled_kinds() == 2


def test_a_scale_that_changes_is_two_kinds(tracing):
    """The first is a constant of its graph, all others are a tensor in one more."""
    query = torch.randn(B, H, 40, D, generator=torch.Generator().manual_seed(1))
    blocks = loom.block_mask(loom.causal, 40, 40, block_size=16)
    options = {"score_mod": loom.scores.alibi(H), "wants_lse": False, "kernel_options": None}
    for scale in (0.5, 0.1, 0.25, 0.5, 0.7, None):
        with torch.no_grad():
            out, _ = compiled.fused_attention(query, query.clone(), query.clone(), blocks, scale=scale, **options)
        expected, _ = reference(query, query, query, loom.causal, scale=scale, score_mod=options["score_mod"])
        torch.testing.assert_close(out, expected)
    assert len(tracing) == compiled.compiled_kinds() == 2


def test_the_pool_has_a_bound(tracing, monkeypatch):
    monkeypatch.setattr(compiled._pool, "most", 2)
    for dim in (16, 32, 48, 64):
        query = torch.randn(1, H, 20, dim)
        blocks = loom.block_mask(loom.causal, 20, 20, block_size=16)
        with torch.no_grad():
            compiled.fused_attention(
                query,
                query.clone(),
                query.clone(),
                blocks,
                score_mod=None,
                scale=None,
                wants_lse=False,
                kernel_options=None,
            )
    assert compiled.compiled_kinds() == 2 and len(tracing) == 4
