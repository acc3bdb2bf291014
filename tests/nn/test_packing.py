"""Packing inside the module: the same results as with padding, where the host knows how much is real; fewer rows computed."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.source import TensorPropertySource
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import and_masks
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from maskloom.blocks.tile_states import SKIPPED, tile_states
from maskloom.core import host_count
from maskloom.masks.packed_form import packed_form
from maskloom.nn import multihead, packing
from maskloom.nn.packing import NOT_PACKED, is_large, packing_of, pays

B, L, K, D, D_CONTEXT = 3, 11, 13, 7, 5
LENS, KV_LENS = [7, 0, 9], [13, 4, 2]
PADS = torch.zeros(B, L, dtype=torch.bool)
PADS[0, :3] = PADS[1, 5:7] = PADS[2, 9:] = True
IDS = torch.where(PADS, -1, PADS.cumsum(1))  # a document ends where padding begins
KV_PADS = torch.arange(B * K).view(B, K) % 3 == 1

MASKS = {
    "lengths": lambda: loom.causal & loom.lengths(LENS),
    "block mask": lambda: loom.block_mask(loom.causal & loom.lengths(torch.tensor(LENS)), L, L),
    "padding": lambda: loom.padding(PADS) & (loom.window(back=4) | loom.sinks(1)),
    "real": lambda: loom.real(~PADS) & loom.causal,
    "documents": lambda: loom.causal & loom.documents(IDS),
    "inside documents": lambda: loom.masks.within(loom.documents(IDS), loom.causal | loom.masks.prefix(2)),
    "a function": lambda: loom.lengths(LENS) & (lambda b, h, q, k: q >= k - 1),
}
CROSS = {
    "lengths": lambda: loom.lengths(LENS, KV_LENS),
    "padding": lambda: loom.padding(PADS, KV_PADS),
    "keys alone": lambda: loom.key_padding(KV_PADS),
    "block mask": lambda: loom.block_mask(loom.lengths(LENS, KV_LENS), L, K),
}
MODULES = {
    "plain": {},
    "bias": {"bias": True},
    "no bias": {"out_bias": False, "rotary": loom.nn.Rotary(6)},
    "all": {
        "bias": True, "n_kv_heads": 2, "qk_norm": True, "gate": True, "sinks": True, "softcap": 3.0,
        "rotary": loom.nn.Rotary(6, scaling={"rope_type": "dynamic", "factor": 2.0, "max_position_embeddings": 5}),
    },
}  # fmt: skip
CALLS = {
    "plain": {},
    "weights": {"need_weights": True},
    "clean padding": {"clean_padding": True},
    "dropout": {"dropout": 0.5, "dropout_seed": 3},
    "score_mod": {"score_mod": loom.scores.alibi(4)},
    "first positions": {"q_offset": 0},
}


@pytest.fixture
def always(monkeypatch):
    """Packing pays from the first position on."""
    monkeypatch.setitem(packing.LEAST, "cpu", 1)


def made(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return loom.MultiheadFlexAttention(D, 10, 4, d_head=6, dtype=torch.float64, **options)


def inputs(length=L, width=D):
    return torch.randn(B, length, width, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


def results(module, mask, context=None, **call):
    """All that a call gives, and all gradients, of a loss of all that it gives, queries and keys at padding too."""
    module.zero_grad()
    x = inputs().requires_grad_()
    context = None if context is None else context.clone().requires_grad_()
    found = module(x, mask, context=context, **call)
    generator = torch.Generator().manual_seed(5)
    sum((one * torch.randn(one.shape, dtype=one.dtype, generator=generator)).sum() for one in found).backward()
    leaves = [x, *module.parameters(), *([] if context is None else [context])]
    return [*found, *(leaf.grad for leaf in leaves)]


def compare(monkeypatch, module, make, context=None, **call):
    """Packed and padded give the same; packed it is where a count is known."""
    expected = results(module, make(), context, **call)
    monkeypatch.setitem(packing.LEAST, "cpu", 1)
    mask = make()
    assert packing_of(inputs(), context, mask) != NOT_PACKED
    for one, other in zip(results(module, mask, context, **call), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.fixture
def in_row(always, monkeypatch):
    """Attention may work on the packed row, whatever is real."""
    monkeypatch.setitem(packing.IN_ROW, "cpu", (torch.float64,))
    monkeypatch.setattr(packing, "_MOST_REAL_IN_ROW", 1.0)
    for module in (packing, host_count):
        monkeypatch.setattr(module, "TILE", 4)


SAME_IN_ROW = {
    **{name: MASKS[name] for name in ("lengths", "block mask", "real")},
    "padding": lambda: loom.padding(PADS) & loom.masks.anticausal,
    "padding alone": lambda: loom.padding(PADS),
    "a window": lambda: loom.window(back=2, ahead=1) & loom.lengths(LENS),
    "combined": lambda: loom.lengths(LENS) & (loom.causal | loom.window(back=1, ahead=3)) & ~loom.window(back=0),
    "torch's and": lambda: and_masks(loom.causal, loom.lengths(LENS)),
    "torch's names": lambda: loom.create_block_mask(loom.causal & loom.real(~PADS), B, None, L, L),
}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
@pytest.mark.parametrize("where", ["in the row", "in the batch"])
def test_lengths_of_narrow_dtypes(dtype, where, monkeypatch):
    """Numbers of tiles and of all tokens have no room in them."""
    monkeypatch.setitem(packing.IN_ROW, "cpu", (torch.float64,) if where == "in the row" else ())
    module, x = loom.MultiheadFlexAttention(6, 6, 2, dtype=torch.float64), torch.randn(4, 200, 6, dtype=torch.float64)
    lens = torch.tensor([100, 3, 120, 127])
    found, expected = (module(x, loom.causal & loom.lengths(one)).out for one in (lens.to(dtype), lens))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("options", [name for name in MODULES if name != "all"])
@pytest.mark.parametrize("mask", SAME_IN_ROW)
def test_attention_over_the_packed_row(in_row, monkeypatch, mask, options):
    monkeypatch.setitem(packing.IN_ROW, "cpu", ())
    module = made(**MODULES[options])
    expected = results(module, SAME_IN_ROW[mask]())
    monkeypatch.setitem(packing.IN_ROW, "cpu", (torch.float64,))
    given, seen = SAME_IN_ROW[mask](), []
    monkeypatch.setattr(
        multihead, "attend", lambda q, *rest, **how: seen.append(q.shape) or loom.attend(q, *rest, **how)
    )
    for one, other in zip(results(module, given), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    tokens = packing_of(inputs(), None, given, in_row=packed_form).queries
    rows = len(tokens.layout.places)
    assert seen == [(1, 4, rows, 6)]
    real = rows - len(tokens.layout.others)
    assert real in (sum(LENS), int((~PADS).sum())) and rows % 4 == 0
    assert real + 1 <= rows <= real + 3 * B + 4


NOT_IN_ROW = {
    "holes and distances": lambda: loom.real(~PADS) & loom.window(back=2),
    "places": lambda: loom.lengths(LENS) & (loom.causal | loom.sinks(1)),
    "a table": lambda: loom.lengths(LENS) & loom.masks.from_dense(torch.rand(L, L) < 0.5),
    "a function": MASKS["a function"],
    "documents": MASKS["documents"],
    "one side": lambda: loom.causal & loom.lengths(torch.tensor(LENS), torch.tensor(LENS)),
}


@pytest.mark.parametrize("mask", NOT_IN_ROW)
def test_masks_that_say_something_else_of_the_row(in_row, mask):
    assert packing_of(inputs(), None, NOT_IN_ROW[mask](), in_row=packed_form).mask is None


def test_a_block_mask_counts_only_as_it_was_made(in_row):
    def made_now():
        return loom.block_mask(loom.causal & loom.lengths(torch.tensor(LENS)), L, L)

    def attends_in_row(blocks):
        return packing_of(inputs(), None, blocks, in_row=packed_form).mask is not None

    blocks = made_now()
    assert attends_in_row(blocks)
    assert attends_in_row(loom.blocks.to_device(blocks, "cpu"))
    blocks.kv_num_blocks.zero_()  # now it hides all
    assert not attends_in_row(blocks)
    blocks = made_now()
    blocks.kv_indices = blocks.kv_indices.clone()
    assert not attends_in_row(blocks)
    blocks = made_now()
    blocks.mask_mod = loom.causal & loom.lengths(torch.tensor(LENS))
    assert not attends_in_row(blocks)
    assert attends_in_row(copy.copy(made_now()))  # it has the same tables
    assert not attends_in_row(copy.deepcopy(made_now()))
    assert not attends_in_row(pickle.loads(pickle.dumps(made_now())))


def has_other_tables(blocks):
    blocks.kv_indices = blocks.kv_indices.clone()


def has_another_mask(blocks):
    blocks.mask_mod = loom.causal & loom.lengths(torch.tensor(LENS))


def is_a_deep_copy(blocks):
    vars(blocks).update(vars(copy.deepcopy(blocks)))


@pytest.mark.parametrize("change", [has_other_tables, has_another_mask, is_a_deep_copy])
@pytest.mark.parametrize("before", [False, True], ids=["at first", "after others"])
def test_a_graph_counts_on_a_block_mask_only_as_it_was_made(in_row, monkeypatch, change, before):
    """Also where it was compiled for one as it was made."""
    shapes = []
    monkeypatch.setattr(
        multihead, "attend", lambda q, *rest, **how: shapes.append(q.shape[0]) or loom.attend(q, *rest, **how)
    )
    torch._dynamo.reset()
    module = made()
    compiled = torch.compile(module, fullgraph=True, backend="eager")

    def attends_in_row(blocks):
        shapes.clear()
        torch.testing.assert_close(compiled(inputs(), blocks).out, module(inputs(), blocks).out)
        return (
            shapes[-2] == 1 if len(shapes) > 1 else None
        )  # None: a graph that was there ran; the last is that of the module

    def blocks_of(lens):
        return loom.block_mask(loom.causal & loom.lengths(torch.tensor(lens)), L, L)

    if before:
        assert attends_in_row(blocks_of(LENS))
    changed = blocks_of(LENS)
    change(changed)
    assert attends_in_row(changed) is False


@pytest.mark.parametrize("workers", [0, 1])
def test_attention_over_the_row_of_a_block_mask_that_a_worker_made(in_row, workers):
    sequences = [torch.arange(length) for length in (7, 3, 9)]
    loader = torch.utils.data.DataLoader(
        sequences, 3, collate_fn=loom.batches.Collator(loom.causal), num_workers=workers
    )
    (batch,) = loader
    x = torch.randn(*batch.inputs.shape, D, dtype=torch.float64)
    found = packing_of(x, None, batch.to("cpu").blocks, in_row=packed_form)
    assert found.mask is not None and len(found.queries.layout.others) == len(found.queries.layout.places) - 19


@pytest.mark.parametrize(
    "call",
    [
        {"dropout": 0.5, "dropout_seed": 3},
        {"score_mod": loom.scores.alibi(4)},
        {"need_weights": True},
        {"backend": "sdpa"},
        {"kernel_options": {"BACKEND": "TRITON"}},
    ],
)
def test_options_that_keep_attention_over_the_batch(in_row, monkeypatch, call):
    seen = []
    monkeypatch.setattr(
        multihead, "attend", lambda q, *rest, **how: seen.append(q.shape) or loom.attend(q, *rest, **how)
    )
    made()(inputs(), loom.causal & loom.lengths(LENS), **call)
    assert seen == [(B, 4, L, 6)]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("mask", [name for name in SAME_IN_ROW if name != "torch's and"])
def test_what_one_row_holds_reaches_no_other_through_the_packed_row(in_row, monkeypatch, bad, mask):
    """Each begins with a tile of its own, as a kernel visits them: what stands in others is not computed with."""
    monkeypatch.setattr(multihead, "attend", by_tiles)
    module, given = made(), SAME_IN_ROW[mask]()
    weights = torch.randn(B, L, 10, dtype=torch.float64) * module(inputs(), given).out.bool()

    def run(x, change=1.0):
        x = x.clone().requires_grad_()
        out = module(x, given).out
        out.backward(weights * change)
        return out.detach(), x.grad

    clean = inputs()
    out, gradient = run(clean)
    poisoned = clean.clone()
    poisoned[0, 4] = bad
    for found, expected in zip(run(poisoned), (out, gradient), strict=True):
        assert torch.equal(found[1:], expected[1:]) and not found[0].isfinite().all()
    change = torch.ones(B, L, 1, dtype=torch.float64)
    change[0, 4] = bad
    assert torch.equal(run(clean, change)[1][1:], gradient[1:])


def by_tiles(query, key, value, mask, **options):
    """Attention as kernels compute it: of each tile of queries, with the keys of the tiles that are not skipped."""
    rows = query.shape[2]
    shown = tile_states(loom.block_mask(mask, rows, rows, block_size=4, device="cpu"))[0, 0] != SKIPPED
    table = mask.dense(rows, rows)[0, 0]
    outs = []
    for tile, keys in enumerate(shown.repeat_interleave(4, 1)):
        own = slice(4 * tile, 4 * tile + 4)
        if not keys.any():
            outs.append(torch.zeros_like(value[:, :, own]))
            continue
        scores = query[:, :, own] @ key[:, :, keys].mT / query.shape[-1] ** 0.5
        allowed = table[own][:, keys]
        scores = scores.masked_fill(~allowed, -torch.inf)
        shares = torch.where(allowed.any(-1, keepdim=True), scores.softmax(-1), 0.0)
        outs.append(shares @ value[:, :, keys])
    return torch.cat(outs, 2)


def test_rows_of_close_totals_have_one_size(in_row):
    sizes = {
        packing_of(
            inputs(), None, loom.causal & loom.lengths([last, 5, 3]), in_row=packed_form
        ).queries.layout.places.shape[0]
        for last in range(8)
    }
    assert sizes == {16, 20, 24}


def test_no_gradient_and_no_value_of_padding_comes_through_the_row(in_row):
    module, x = made(bias=True), inputs()
    mask = loom.causal & loom.lengths(LENS)
    expected = module(x, mask)
    x = torch.where(loom.batches.pads_from_lengths(torch.tensor(LENS), L)[..., None], torch.nan, x).requires_grad_()
    found = module(x, mask, clean_padding=True)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    gradient = torch.where(torch.isnan(x.detach()[..., :1]), torch.nan, 1.0).expand_as(found.out)
    found.out.backward(gradient)
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in module.parameters())


@pytest.mark.parametrize("options", MODULES)
@pytest.mark.parametrize("mask", MASKS)
def test_packed_equals_padded(monkeypatch, mask, options):
    compare(monkeypatch, made(**MODULES[options]), MASKS[mask])


@pytest.mark.parametrize("mask", ["lengths", "block mask", "padding"])
@pytest.mark.parametrize("call", CALLS)
def test_options_mean_the_same(monkeypatch, call, mask):
    compare(monkeypatch, made(gate=True), MASKS[mask], **CALLS[call])


@pytest.mark.parametrize(
    "positions", [torch.arange(L) * 2 - 4, torch.arange(B * L).view(B, L) - 5], ids=["all", "rows"]
)
@pytest.mark.parametrize("options", ["no bias", "all"])
def test_positions_are_those_of_tokens(monkeypatch, options, positions):
    compare(monkeypatch, made(**MODULES[options]), MASKS["padding"], positions=positions)


@pytest.mark.parametrize("offset", [2, -1, torch.tensor(1), torch.tensor([0, 2, 1])], ids=str)
def test_under_an_offset_padding_is_elsewhere(monkeypatch, offset):
    module = made(rotary=loom.nn.Rotary(6))
    call = {"q_offset": offset, "h_offset": 0}
    expected = results(module, loom.causal & loom.lengths(LENS), **call)
    monkeypatch.setitem(packing.LEAST, "cpu", 1)
    for one, other in zip(results(module, loom.causal & loom.lengths(LENS), **call), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_a_projection_that_was_replaced(monkeypatch):
    """What it makes of padding is found by it, not by its bias."""

    class Adapted(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base, self.added = base, torch.nn.Linear(base.in_features, base.out_features, dtype=torch.float64)

        def forward(self, x):
            return self.base(x) + self.added(x)

    module = made(rotary=loom.nn.Rotary(6), out_bias=False)
    module.in_proj, module.out_proj = Adapted(module.in_proj), Adapted(module.out_proj)
    compare(monkeypatch, module, MASKS["padding"])


@pytest.mark.parametrize("options", MODULES)
@pytest.mark.parametrize("mask", CROSS)
def test_both_sides_of_cross_attention(monkeypatch, mask, options):
    compare(monkeypatch, made(d_context=D_CONTEXT, **MODULES[options]), CROSS[mask], inputs(K, D_CONTEXT))
    packed = packing_of(inputs(), inputs(K), CROSS[mask]())
    assert (packed.queries is None) == (mask == "keys alone")
    assert packed.keys is not None


def test_a_context_through_the_fused_projection(monkeypatch):
    compare(monkeypatch, made(bias=True), CROSS["lengths"], inputs(K))


@pytest.mark.parametrize("mask", MASKS)
def test_nothing_leaks_from_padding(always, mask):
    module, pads = made(bias=True, gate=True), PADS
    if mask in ("lengths", "block mask", "a function"):
        pads = loom.batches.pads_from_lengths(LENS, L)
    found = []
    for filling in (0.0, torch.nan):
        module.zero_grad()
        x = inputs().masked_fill(pads[..., None], filling).requires_grad_()
        out = module(x, MASKS[mask](), clean_padding=True).out
        out.backward(torch.ones_like(out).masked_fill(pads[..., None], filling))
        found.append([out, x.grad, *(parameter.grad for parameter in module.parameters())])
    assert all(map(torch.equal, *found))
    assert not found[0][1][pads].any()
    torch.testing.assert_close(found[0][0][pads], module.out_proj.bias.expand(int(pads.sum()), -1))


def test_projections_work_on_tokens_alone(always):
    seen = []
    module = made(gate=True)
    for layer in (module.in_proj, module.gate_proj, module.out_proj):
        layer.register_forward_hook(lambda layer, given, out: seen.append(tuple(given[0].shape[:2])))
    module(inputs(), loom.causal & loom.lengths(LENS))
    assert seen == [(1, sum(LENS) + 1)] * 3  # one more row stands for padding
    seen.clear()
    module(
        inputs(), loom.causal & loom.lengths(torch.tensor(LENS)) & loom.padding(PADS)
    )  # two parts say what is padding
    assert seen == [(B, L)] * 3


def test_all_layers_share_what_is_made_of_a_mask(always):
    mask = loom.causal & loom.lengths(LENS)
    first, second = (packing_of(inputs(width=width), None, mask) for width in (D, 5))
    assert first.queries is first.keys is second.queries


@pytest.mark.parametrize(("packed", "side"), [(False, "right"), (False, "left"), (True, "right")])
def test_what_a_collator_makes_is_counted(monkeypatch, packed, side):
    collate = loom.batches.Collator(loom.causal, packed=packed, side=side, length=13)
    sequences = [torch.arange(length) for length in (7, 2, 12)]
    (batch,) = torch.utils.data.DataLoader(sequences, 3, collate_fn=collate, num_workers=1)
    monkeypatch.setitem(packing.LEAST, "cpu", 1)
    x = torch.randn(*batch.inputs.shape, D)
    for mask in (batch.mask, batch.blocks):
        assert len(packing_of(x, None, mask).queries.layout.places) == 21 + 1


def test_nan_in_padding_through_a_model(always):
    layers = [made() for _ in range(3)]
    back = [torch.nn.Linear(10, D, dtype=torch.float64) for _ in layers]
    mask = loom.block_mask(MASKS["padding"](), L, L)
    found = []
    for filling in (0.0, torch.nan):
        x = inputs().masked_fill(PADS[..., None], filling)
        for layer, linear in zip(layers, back, strict=True):
            x = x + linear(layer(torch.nn.functional.layer_norm(x, (D,)), mask, clean_padding=True).out)
        for layer in layers:
            layer.zero_grad()
        x[~PADS].square().sum().backward()
        found.append([x[~PADS], *(parameter.grad for layer in layers for parameter in layer.parameters())])
    assert all(map(torch.equal, *found))


def test_the_rule():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert pays(960, 2, 512, cpu)
    assert not pays(961, 2, 512, cpu)  # nearly all is real
    assert not pays(0, 2, 512, cpu)
    assert not pays(700, 2, 512, gpu)  # taking rows costs a GPU more
    assert pays(600, 2, 512, gpu)
    assert pays(3328, 2, 2048, gpu, in_row=True)
    assert not pays(3329, 2, 2048, gpu, in_row=True)
    assert not pays(2048, 2, 1024, gpu, in_row=True)
    assert is_large((8, 64, 3), cpu)
    assert not is_large((7, 64, 3000), cpu)
    assert is_large((8, 4096, 2048), gpu)
    assert not is_large((8, 4096, 1024), gpu)  # the host needs longer


def counted(mask):
    return packing_of(inputs(), None, mask).queries is not None


def test_writes_make_a_count_void(always):
    for table, make in ((torch.tensor(LENS), loom.lengths), (PADS.clone(), loom.padding), (~PADS, loom.real)):
        mask = loom.causal & make(table)
        assert counted(mask)
        copies = [copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))]
        assert all(map(counted, copies))
        table[0] = table[1]
        assert not counted(mask)
        assert not counted(copy.deepcopy(mask)) and not counted(pickle.loads(pickle.dumps(mask)))
        assert all(map(counted, copies))
        assert counted(loom.causal & make(table))


def test_what_is_moved_keeps_its_count_until_a_write(always):
    lens = torch.tensor(LENS)
    mask = loom.causal & loom.lengths(lens)
    moved = copied(mask)
    assert counted(moved)
    moved.parts[1].q_lens.add_(1)
    assert not counted(moved) and counted(mask)
    later = copied(mask)
    lens.add_(1)
    assert not counted(mask)
    assert not counted(later)  # the host's numbers are gone; its own are right, but nobody knows


def copied(mask):
    """The mask with its tensors elsewhere, as `to` puts them on a GPU."""
    from maskloom.core import captures

    return captures.copied(mask, torch.Tensor.clone)


def test_tensors_that_get_other_values_are_not_counted(always):
    mask = loom.causal & loom.lengths(LENS)
    assert not counted(loom.nn.Holder(mask)())
    assert not counted(loom.blocks.updatable(loom.block_mask(mask, L, L)))
    with torch.inference_mode():
        assert not counted(loom.lengths(torch.tensor(LENS)))  # nobody counts writes into it
        assert counted(loom.lengths(LENS))


def test_counts_change_nothing_else():
    known, unknown = loom.lengths(LENS), loom.nn.Holder(loom.lengths(LENS))()
    assert known == unknown and hash(known) == hash(unknown) and repr(known) == repr(unknown) == "lengths(int64[3])"
    keys = loom.key_padding(PADS)
    assert repr(keys) == "key_padding(bool[3, 11])"


def hides_all(blocks):
    blocks.kv_num_blocks.zero_()


def shows_others(blocks):
    blocks.mask_mod.parts[1].lens.copy_(torch.tensor(LENS[1:] + LENS[:1]))  # as many as before


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("write", [hides_all, shows_others])
@pytest.mark.parametrize("before", [False, True], ids=["at first", "after others"])
def test_a_graph_of_the_packed_row_refuses_what_was_written_to(in_row, write, backend, before):
    torch._dynamo.reset()
    module = made()
    compiled = torch.compile(module, fullgraph=True, backend=backend)

    def blocks_of():
        return loom.block_mask(loom.causal & loom.lengths(torch.tensor(LENS)), L, L)

    if before:
        compiled(inputs(), blocks_of())
    written = blocks_of()
    write(written)
    for blocks in (written, copy.copy(written)):
        with pytest.raises(RuntimeError, match=r"written to after maskloom made it.*build it again"):
            compiled(inputs(), blocks)
    for blocks in (copy.deepcopy(written), blocks_of()):
        torch.testing.assert_close(compiled(inputs(), blocks).out, module(inputs(), blocks).out)


def test_counts_take_no_part_in_what_is_the_default(in_row):
    """Masks made under another default dtype, or device, share a graph."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(made(), fullgraph=True, backend=counter)
    for at, dtype in enumerate([torch.float32, torch.float64, torch.bfloat16, torch.float16]):
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device("meta"):
                mask = loom.causal & loom.lengths(torch.tensor([7, at, 9], device="cpu"))
        finally:
            torch.set_default_dtype(before)
        compiled(inputs(), mask)
    assert counter.frame_count <= 2


SHAPES = [LENS, [3, 5, 2], [11, 2, 6], [4, 4, 8]]


@pytest.mark.parametrize("options", ["plain", "no bias"])
@pytest.mark.parametrize("of_mask", [False, True], ids=["block mask", "mask"])
def test_one_graph_of_the_packed_row_for_all_lengths(in_row, of_mask, options):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = made(**MODULES[options])
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for lens in SHAPES:
        mask = loom.causal & loom.lengths(lens)
        mask = mask if of_mask else loom.block_mask(mask, L, L)
        for one, other in zip(results(compiled, mask), results(module, mask), strict=True):
            torch.testing.assert_close(one, other)
    assert counter.frame_count <= 2
    assert {query.shape[0] for query in queries_of(counter.graphs)} == {1}


def queries_of(graphs):
    """The queries that attention gets in each graph."""
    nodes = [node for graph in graphs for node in graph.graph.nodes if "scaled_dot_product" in str(node.target)]
    return [node.args[0].meta["example_value"] for node in nodes]


def test_a_row_whose_size_changes_is_no_number_to_a_graph(in_row):
    """FLASH takes tables of which the sizes follow from those of tensors, and none where they follow from numbers (torch 2.11 to 2.13)."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(made(), fullgraph=True, backend=counter)
    for lens in SHAPES:
        compiled(inputs(), loom.block_mask(loom.causal & loom.lengths(lens), L, L))
    rows = [query.shape[2] for query in queries_of(counter.graphs)]
    sizes = [size for size in rows if isinstance(size, torch.SymInt)]
    assert sizes
    for size in sizes:
        sources = size.node.shape_env.var_to_sources
        for symbol in size.node.expr.free_symbols:
            assert any(isinstance(source, TensorPropertySource) for source in sources[symbol])


@pytest.mark.parametrize("options", ["plain", "all"])
def test_one_graph_for_all_lengths(always, options):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    module = made(**MODULES[options])
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for lens in SHAPES:
        mask = loom.block_mask(loom.causal & loom.lengths(lens), L, L)
        for one, other in zip(results(compiled, mask), results(module, mask), strict=True):
            torch.testing.assert_close(one, other)
    assert counter.frame_count <= 2
    assert all("repeat_interleave" in str(graph.graph) for graph in counter.graphs)


@torch.no_grad()
def test_a_graph_that_packs_nothing_is_tied_to_no_count():
    torch._dynamo.reset()
    module = made()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    for lens in (LENS, [3, 5, 2]):
        mask = loom.causal & loom.lengths(lens)
        torch.testing.assert_close(compiled(inputs(), mask).out, module(inputs(), mask).out)
    assert counter.frame_count == 1


def test_writes_into_a_mask_that_a_graph_knows_are_an_error(always):
    torch._dynamo.reset()
    lens = torch.tensor(LENS)
    mask = loom.block_mask(loom.causal & loom.lengths(lens), L, L)
    compiled = torch.compile(made(), fullgraph=True, backend="aot_eager")
    compiled(inputs(), mask)
    lens.sub_(2).clamp_(min=0)
    with pytest.raises(RuntimeError, match="were written to after it was made: make the mask anew"):
        compiled(inputs(), mask)


def test_under_autocast_and_checkpointing(monkeypatch):
    module, mask = made(bias=True).float(), loom.causal & loom.lengths(LENS)
    expected = module(inputs().float(), mask).out
    monkeypatch.setitem(packing.LEAST, "cpu", 1)
    x = inputs().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = checkpoint(lambda x: module(x, copy.copy(mask)).out, x, use_reentrant=False)
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).norm() / expected.norm() < 4 * torch.finfo(torch.bfloat16).eps
    out.sum().backward()
    assert x.grad.isfinite().all()
    assert module.in_proj.bias.grad.isfinite().all()


def test_gradients_of_gradients(always):
    module = made(bias=True)
    mask = loom.causal & loom.lengths(LENS)
    x = inputs().requires_grad_()
    call = lambda x: module(x, mask, backend="reference").out  # noqa: E731
    assert torch.autograd.gradcheck(call, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(call, x, fast_mode=True)


def test_nothing_is_packed_under_transforms(always):
    module, mask = made(), loom.causal & loom.lengths(LENS)
    gradient = torch.func.grad(lambda x: module(x, mask).out.square().sum())(inputs())
    x = inputs().requires_grad_()
    module(x, mask).out.square().sum().backward()
    torch.testing.assert_close(gradient, x.grad)


def test_longer_rows_and_other_batches_stay_padded(always):
    assert packing_of(inputs(5), None, loom.lengths(LENS)) == NOT_PACKED
    assert packing_of(inputs()[:2], None, loom.lengths(LENS)) == NOT_PACKED
    assert packing_of(inputs(), None, loom.masks.shifted(loom.lengths(LENS), q_offset=1)) == NOT_PACKED
    assert packing_of(inputs(), None, loom.lengths(LENS, LENS)) == NOT_PACKED  # no one table says that both are one
    assert packing_of(inputs(), None, None) == NOT_PACKED


def test_masks_of_one_kind_have_counts_of_their_own(always):
    """Block masks of one structure are built by one recipe, from the third on."""
    for lens in (LENS, [3, 5, 2], [11, 2, 6], [4, 4, 8], torch.tensor([1, 2, 3])):
        mask = loom.causal & loom.lengths(lens)
        for build in (loom.block_mask, lambda mask, q, k: loom.create_block_mask(mask, B, None, q, k)):
            built = build(mask, L, L)
            assert len(packing_of(inputs(), None, built).queries.layout.places) == int(sum(lens)) + 1
            loom.attend(*[torch.randn(B, 2, L, 6) for _ in "qkv"], mask)
        assert counted(mask)
    for lens, kv_lens in (
        (LENS, KV_LENS),
        ([3, 5, 2], [1, 7, 8]),
        (LENS, torch.tensor([1, 2, 3])),
        ([2, 2, 2], [3, 4, 5]),
    ):
        built = loom.block_mask(loom.lengths(lens, kv_lens), L, K)
        packed = packing_of(inputs(), inputs(K), built)
        assert len(packed.queries.layout.places) == sum(lens) + 1
        assert len(packed.keys.layout.places) == int(sum(kv_lens)) + 1


def test_tables_by_keys_that_were_written_into_are_seen_after_the_first_use(in_row):
    blocks = loom.block_mask(loom.causal & loom.lengths(torch.tensor(LENS)), L, L)
    assert packing_of(inputs(), None, blocks, in_row=packed_form).mask is not None
    blocks.q_num_blocks.zero_()  # which the backward of a kernel reads
    assert packing_of(inputs(), None, blocks, in_row=packed_form).mask is None


CHANGED = {
    "a hook before": lambda module: module.out_proj.register_forward_pre_hook(lambda layer, given: (given[0] + 1,)),
    "a hook behind": lambda module: module.in_proj.register_forward_hook(lambda layer, given, out: out + 1),
    "another forward": lambda module: setattr(
        module.out_proj, "forward", lambda x, layer=module.out_proj: nn.functional.linear(x + 1, layer.weight)
    ),
    "another norm": lambda module: setattr(module, "q_norm", other_norm()),
}


def other_norm():
    norm = nn.LayerNorm(6, dtype=torch.float64)
    nn.init.ones_(norm.bias)
    return norm


@pytest.mark.parametrize("change", CHANGED)
def test_layers_that_make_something_of_zeros(monkeypatch, change):
    module = made(out_bias=False, qk_norm=True, rotary=loom.nn.Rotary(6))
    CHANGED[change](module)
    compare(monkeypatch, module, MASKS["lengths"])


def test_hooks_of_all_modules_may_make_something_of_zeros(monkeypatch):
    def more(module, given, out):
        return out + 1 if isinstance(module, nn.Linear) else None

    with nn.modules.module.register_module_forward_hook(more):
        compare(monkeypatch, made(out_bias=False), MASKS["lengths"])


def test_a_count_of_tables_that_other_memory_took_the_place_of(always):
    lens = torch.tensor(LENS)
    mask = loom.causal & loom.lengths(lens)
    lens.data = torch.tensor([2, 3, 4]).share_memory_()
    for one in (mask, copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        tokens = packing_of(inputs(), None, one).queries
        assert tokens is None or len(tokens.layout.places) == 9 + 1
        made()(inputs(), one)
