"""What the processes of the tests run: attention by a plan beside attention by one process.

Every function is called on all processes, and raises where they differ from one.
"""

import copy
import os
import pickle
import random
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.attention.flex_attention import AuxRequest

import maskloom as loom
from maskloom.distributed.sharing import scheme
from tests.catalog import EVERY
from tests.distributed.counting import counted

STRATEGIES = ("heads", "gather", "needed")
LSE = AuxRequest(lse=True)
D, E = 3, 5


def mesh_of(*sizes: int) -> DeviceMesh:
    names = ("cp",) if len(sizes) < 2 else ("outer", "inner")
    return init_device_mesh("cpu", sizes or (dist.get_world_size(),), mesh_dim_names=names)


def made(batch: int, heads: tuple[int, int], length: int) -> list[Tensor]:
    """Query, key, value and the incoming gradients of output and log-sum-exp, the same on every process."""
    generator = torch.Generator().manual_seed(length)
    shapes = (
        (heads[0], length, D),
        (heads[1], length, D),
        (heads[1], length, E),
        (heads[0], length, E),
        (heads[0], length),
    )
    return [torch.randn(batch, *shape, generator=generator, dtype=torch.float64) for shape in shapes]


def summed(grads: Any) -> list[Tensor]:
    """Gradients of all processes."""
    found = [grad.clone() for grad in grads]
    for grad in found:
        dist.all_reduce(grad)
    return found


def whole(mask: Any, tensors: list[Tensor], shared: tuple[Tensor, ...] = (), **options: Any) -> list[Tensor]:
    """Output, log-sum-exp and all gradients of one process."""
    *qkv, of_out, of_lse = tensors
    leaves = [one.clone().requires_grad_() for one in qkv]
    out, aux = loom.attend(*leaves, mask, return_aux=LSE, q_offset=0, **options)
    return [out, aux.lse, *_gradients(out, aux.lse, of_out, of_lse, [*leaves, *shared])]


def by_plan(plan: Any, tensors: list[Tensor], shared: tuple[Tensor, ...] = (), **options: Any) -> list[Tensor]:
    """The same of all processes, by a plan; gradients go through `shard` to the whole."""
    *qkv, of_out, of_lse = tensors
    leaves = [one.clone().requires_grad_() for one in qkv]
    out, aux = plan.attend(*(plan.shard(one, 2) for one in leaves), return_aux=LSE, **options)
    assert out.shape[2] == aux.lse.shape[2] == plan.rows
    assert not out[:, :, plan.pads].any()
    given = plan.shard(of_out, 2, fill=torch.nan), plan.shard(of_lse, 2)
    grads = _gradients(out, aux.lse, given[0].nan_to_num(), given[1], [*leaves, *shared])
    return [plan.unshard(out, 2), plan.unshard(aux.lse, -1), *summed(grads)]


def _gradients(out: Tensor, lse: Tensor, of_out: Tensor, of_lse: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    seen = torch.where(lse == -torch.inf, 0.0, lse)
    return torch.autograd.grad((out * of_out).sum() + (seen * of_lse).sum(), leaves)


def check(
    mask: Any, tensors: list[Tensor], plan: Any, shared: tuple[Tensor, ...] = (), what: str = "", **options: Any
) -> None:
    expected = whole(mask, tensors, shared, **options)
    for at, (found, right) in enumerate(zip(by_plan(plan, tensors, shared, **options), expected, strict=True)):
        torch.testing.assert_close(found, right, msg=lambda said, at=at: f"{what} {plan.strategy} {at}: {said}")


# -- every mask --------------------------------------------------------------------------------------------------------


def catalogue() -> int:
    """Every mask of the catalogue, by one strategy after another: 13 positions, which no number of ranks divides."""
    mesh, done = mesh_of(), 0
    for name, (make, q_len, kv_len) in sorted(EVERY.items()):
        if q_len > 40 or not fits(make(), min(q_len, kv_len)):
            continue
        mask, length = make(), min(q_len, kv_len)
        strategy = STRATEGIES[done % 3]
        plan = loom.distributed.plan(mask, length, mesh, heads=(2, 1), strategy=strategy, batch=3, q_offset=0)
        check(mask, made(3, (2, 1), length), plan, what=name)
        done += 1
    return done


def fits(mask: Any, length: int) -> bool:
    """Whether it can be a mask of as many queries as keys."""
    try:
        loom.attend(*made(3, (2, 1), length)[:3], mask, q_offset=0)
    except ValueError:
        return False
    return True


def compositions(count: int) -> None:
    """Random masks of the catalogue's parts, over 1,009 positions, some of batch rows and of heads."""
    mesh, rng, length, heads = mesh_of(), random.Random(dist.get_world_size()), 1009, (6, 2)
    tensors = made(2, heads, length)
    for at in range(count):
        mask = composed(rng, length, heads[0])
        strategies = [*STRATEGIES, "auto"] if heads[0] % dist.get_world_size() == 0 else ["gather", "needed", "auto"]
        strategy = strategies[at % len(strategies)]
        plan = loom.distributed.plan(mask, length, mesh, heads=heads, strategy=strategy, batch=2)
        check(mask, tensors, plan, what=repr(mask))


def composed(rng: random.Random, length: int, heads: int) -> loom.Mask:
    parts = [
        loom.causal,
        loom.window(back=rng.randint(0, 200), ahead=rng.randint(0, 60)),
        loom.documents(offsets=sorted({0, length, *(rng.randint(1, length) for _ in range(7))})),
        loom.documents(torch.arange(length) // rng.randint(20, 400)),
        loom.lengths([rng.randint(1, length), rng.randint(1, length)]),
        loom.prefix(rng.randint(1, length)),
        loom.masks.chunked(rng.randint(30, 300)),
        loom.masks.strided(rng.randint(2, 90)),
        loom.masks.per_head([loom.causal, loom.window(back=rng.randint(1, 90))] * (heads // 2)),
        lambda b, h, q_idx, kv_idx: (q_idx // 7 + kv_idx // 11 + h) % 3 != b,
        loom.masks.from_dense(
            torch.rand(length, length, generator=torch.Generator().manual_seed(rng.randint(0, 99))) < 0.1
        ),
    ]
    first, second, third = (loom.as_mask(part) for part in rng.sample(parts, 3))
    return first & second | third if rng.random() < 0.5 else first & ~second


# -- options -----------------------------------------------------------------------------------------------------------


def relative(length: int) -> Any:
    """A plain score_mod that depends on all four indices, learns, and says something else of tables of indices than of scalars."""
    generator = torch.Generator().manual_seed(3)
    table = torch.randn(7, dtype=torch.float64, generator=generator).requires_grad_()
    near = torch.randn(length, 3, dtype=torch.float64, generator=generator)

    def score_mod(score, b, h, q_idx, kv_idx):
        alike = (near[q_idx % length] * near[kv_idx % length]).sum()
        return score * (1 + 0.1 * b) + table[(q_idx + 2 * kv_idx + h) % 7] + alike

    return score_mod, table


def functions() -> None:
    """A plain mask_mod is asked at planning and for its block mask, and not at every call."""
    mesh, length, calls = mesh_of(), 37, []

    def mask_mod(b, h, q_idx, kv_idx):
        calls.append(1)
        return (q_idx >= kv_idx) & ((q_idx + h) % 3 != b)

    query, key, value, *_ = made(2, (6, 2), length)
    for strategy in STRATEGIES:
        plan = loom.distributed.plan(mask_mod, length, mesh, heads=(6, 2), strategy=strategy, batch=2)
        local = [plan.shard(one, 2) for one in (query, key, value)]
        expected = loom.attend(query, key, value, mask_mod, score_mod=loom.scores.alibi(6))
        torch.testing.assert_close(plan.unshard(plan.attend(*local, score_mod=loom.scores.alibi(6)), 2), expected)
        held = len(plan.part._blocks)
        plan.attend(*local)
        plan.attend(*local)
        assert len(plan.part._blocks) == held == 1


def options(*names: str) -> None:
    """Score mods, sinks, dropout, padding that is cleaned, heads 32/8 and MQA, scale, deterministic."""
    mesh, length = mesh_of(), 101
    ids = torch.arange(length) // 23
    world = dist.get_world_size()
    masks = {
        "documents": loom.causal & loom.documents(ids),
        "by row": loom.causal & loom.lengths([97, 31]),
        "by head": loom.masks.per_head([loom.causal, loom.window(back=9)] * 6),
    }
    for name in names or masks:
        mask = masks[name]
        for strategy in STRATEGIES:
            plan = loom.distributed.plan(mask, length, mesh, heads=(12, 4), strategy=strategy, batch=2)
            tensors, what = made(2, (12, 4), length), f"{name}, {world} ranks"
            sinks = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
            score_mod, table = relative(length)
            check(mask, tensors, plan, (sinks, table), what, sinks=sinks, score_mod=score_mod)
            check(mask, tensors, plan, what=what, score_mod=loom.scores.alibi(12), scale=0.3, deterministic=True)
            check(mask, tensors, plan, what=what, dropout=0.3, dropout_seed=7)
    for heads in ((12, 1), (32, 8)):
        tensors = made(1, heads, 37)
        for strategy in ("auto", *(STRATEGIES if heads[0] % world == 0 else STRATEGIES[1:])):
            plan = loom.distributed.plan(loom.causal, 37, mesh, heads=heads, strategy=strategy)
            check(loom.causal, tensors, plan, what=f"heads {heads}")


def runs() -> None:
    """Ranks that hold two runs, and get what lies before, between and behind: results, bytes, rows."""
    with patch.object(scheme, "_BYTES", 1e18):  # of so few positions bytes would decide
        check_runs(mesh_of(), 211)


def check_runs(mesh: DeviceMesh, length: int) -> None:
    two = 0
    masks = {
        "causal": loom.causal,
        "documents": loom.causal & loom.documents(offsets=[0, 3, 29, 31, 90, 211]),
        "both ways": loom.documents(offsets=[0, 20, 50, 211]),
        "by row": loom.causal & loom.lengths([211, 97]),
        "ahead": loom.window(back=0, ahead=150),
    }
    tensors = made(2, (6, 2), length)
    sinks = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    score_mod, table = relative(length)
    for name, mask in masks.items():
        plan = loom.distributed.plan(
            mask, length, mesh, heads=(6, 2), strategy="needed", batch=2, head_dim=(D + E) // 2, dtype=torch.float64
        )
        assert "positions, runs from both ends" in str(plan), name
        check(mask, tensors, plan, (sinks, table), name, sinks=sinks, score_mod=score_mod)
        check(mask, tensors, plan, what=name, dropout=0.3, dropout_seed=7)
        check(mask, tensors, plan, what=name, score_mod=loom.scores.alibi(6))
        with counted() as moved, torch.no_grad():
            plan.attend(*(plan.shard(one, 2) for one in tensors[:3]))
        received = torch.tensor(moved.bytes)
        dist.all_reduce(received, dist.ReduceOp.MAX)
        assert (int(received), moved.calls) == (plan.bytes, 1), name
        positions = plan.positions[~plan.pads]
        assert torch.equal(plan.shard(torch.arange(length), 0)[~plan.pads], positions)
        two += int((positions.diff() != 1).sum())
    everyones = torch.tensor(two)
    dist.all_reduce(everyones)
    assert everyones >= len(masks)


def padding() -> None:
    """NaN in padded positions and in rows that fill up reaches nothing."""
    mesh, length = mesh_of(), 37
    mask, pads = loom.causal & loom.lengths([31, 5]), torch.arange(37) >= torch.tensor([[31], [5]])
    for strategy in STRATEGIES:
        plan = loom.distributed.plan(mask, length, mesh, heads=(6, 2), strategy=strategy)
        tensors = made(2, (6, 2), length)
        *qkv, of_out, _ = tensors
        expected = whole(mask, tensors)[0]
        leaves = [one.masked_fill(pads[:, None, :, None], torch.nan).requires_grad_() for one in qkv]
        out = plan.attend(*(plan.shard(one, 2, fill=torch.nan) for one in leaves), clean_padding=True)
        torch.testing.assert_close(plan.unshard(out, 2), expected)
        grads = torch.autograd.grad((out * plan.shard(of_out, 2)).sum(), leaves)
        assert all(grad.isfinite().all() for grad in grads)
        leaves = [one.clone().requires_grad_() for one in qkv]
        local = [plan.shard(one, 2, fill=torch.nan) for one in leaves]
        out = plan.attend(*local)
        torch.testing.assert_close(plan.unshard(out, 2), expected)
        grads = torch.autograd.grad((out * plan.shard(of_out, 2)).sum(), local)
        assert not any(grad[:, :, plan.pads].any() for grad in grads)


def documents_apart() -> None:
    """The output of document 1 stays, bit for bit, whatever document 0 holds."""
    mesh, length = mesh_of(), 211
    mask = loom.causal & loom.documents(offsets=[0, 83, 211])
    query, key, value, *_ = made(1, (6, 2), length)
    for strategy in STRATEGIES if 6 % dist.get_world_size() == 0 else STRATEGIES[1:]:
        plan = loom.distributed.plan(mask, length, mesh, heads=(6, 2), strategy=strategy)
        found = []
        for change in (0.0, 3.0):
            moved = [torch.cat([one[:, :, :83] + change, one[:, :, 83:]], 2) for one in (query, key, value)]
            out = plan.unshard(plan.attend(*(plan.shard(one, 2) for one in moved)), 2)
            found.append(out)
        assert torch.equal(found[0][:, :, 83:], found[1][:, :, 83:])
        assert not torch.equal(found[0][:, :, :83], found[1][:, :, :83])


def counts() -> None:
    """Bytes that move are those that the plan says; two collectives with heads, one with rows."""
    mesh, length = mesh_of(), 1009
    masks = loom.causal, loom.window(back=63), loom.causal & loom.documents(torch.arange(length) // 97)
    for mask in masks:
        for strategy in STRATEGIES if 6 % dist.get_world_size() == 0 else STRATEGIES[1:]:
            plan = loom.distributed.plan(
                mask, length, mesh, heads=(6, 2), strategy=strategy, batch=2, head_dim=3, dtype=torch.float64
            )
            query, key, _, *_ = made(2, (6, 2), length)
            local = [plan.shard(one, 2) for one in (query, key, key)]
            with counted() as moved:
                plan.attend(*local)
            received = torch.tensor(moved.bytes)
            dist.all_reduce(received, dist.ReduceOp.MAX)
            assert int(received) == plan.bytes, (plan.strategy, int(received), plan.bytes)
            assert moved.calls == (2 if strategy == "heads" else 1)


# -- rows --------------------------------------------------------------------------------------------------------------


def rows() -> None:
    """shard and unshard are inverse in every dimension, dtype and length; and how their gradients count."""
    mesh, world = mesh_of(), dist.get_world_size()
    for length in (1, 2, 7, 37, 130):
        for strategy in ("gather", "needed") + (("heads",) if 6 % world == 0 else ()):
            plan = loom.distributed.plan(loom.causal, length, mesh, heads=6, strategy=strategy)
            assert plan.rows >= -(-length // world)
            for dim, x in (
                (0, torch.arange(length)),
                (1, torch.randn(3, length, 2)),
                (-1, torch.rand(5, length) > 0.5),
            ):
                local = plan.shard(x, dim)
                assert local.shape[dim] == plan.rows
                assert torch.equal(plan.unshard(local, dim), x)
            labels = plan.shard(torch.arange(length) + 5, 0, fill=-100)
            assert torch.equal(labels == -100, plan.pads)
            assert torch.equal(labels[~plan.pads], plan.positions[~plan.pads] + 5)
            assert (plan.positions[plan.pads] == -1).all()
            gradients_of_rows(plan, length)
            if length == 7:
                every_dtype(plan)


def every_dtype(plan: Any) -> None:
    """Also those that torch does not index or fill, and that gloo does not send; and lazy conjugates."""
    names = ["bool", "uint8", "int8", "bfloat16", "float16", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"]
    names += [f"{sign}int{bits}" for sign in ("", "u") for bits in (16, 32, 64)]
    for dtype in (getattr(torch, name) for name in names):
        x = torch.arange(14).remainder(5).view(2, 7).to(dtype)
        local = plan.shard(x, 1, fill=1)
        assert local.dtype == dtype
        assert (local.to(torch.complex64)[:, plan.pads] == 1).all()
        for given, right in ((local, x), (local.conj(), x.conj())):
            whole_ = plan.unshard(given, 1)
            assert whole_.dtype == dtype
            assert torch.equal(whole_.to(torch.complex64), right.to(torch.complex64))
    turned = torch.arange(7) * (1 + 1j)
    assert torch.equal(plan.unshard(plan.shard(turned, 0).conj().imag, 0), -torch.arange(7.0))


def gradients_of_rows(plan: Any, length: int) -> None:
    x, weight = torch.arange(1.0, length + 1, requires_grad=True), torch.arange(length) - 3.0
    same = torch.autograd.grad((plan.unshard(plan.shard(x, 0) ** 2, 0) * weight).sum(), x)
    torch.testing.assert_close(summed(same)[0], 2 * x.detach() * weight)  # counts once, though every rank computes it
    share = weight * (torch.arange(length) % dist.get_world_size() == dist.get_rank())
    parts = torch.autograd.grad((plan.unshard(plan.shard(x, 0) ** 2, 0, grads="sum") * share).sum(), x)
    torch.testing.assert_close(summed(parts)[0], 2 * x.detach() * weight)


# -- two dimensions ----------------------------------------------------------------------------------------------------


def hybrid() -> None:
    """Heads and rows on a mesh with two dimensions, in both orders."""
    mesh, length = mesh_of(2, 2), 211
    masks = {
        "by head": loom.masks.per_head([loom.causal, loom.window(back=9), loom.everything] * 2),
        "by row": loom.causal & loom.documents(torch.arange(length) // 29) & loom.lengths([211, 50]),
    }
    for name, mask in masks.items():
        for strategy in (("heads", "gather"), ("gather", "heads"), ("heads", "needed"), ("needed", "heads"), "auto"):
            plan = loom.distributed.plan(mask, length, mesh, heads=(6, 2), strategy=strategy, batch=2)
            assert strategy in ("auto", plan.strategy)
            tensors = made(2, (6, 2), length)
            sinks = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
            check(mask, tensors, plan, (sinks,), name, sinks=sinks, score_mod=loom.scores.alibi(6))
            check(mask, tensors, plan, what=name, dropout=0.2, dropout_seed=3)
            x = torch.arange(211)
            assert torch.equal(plan.unshard(plan.shard(x, 0), 0), x)


def offset() -> None:
    """Queries that do not begin at 0: for mask, score_mod and dropout alike."""
    mesh, length = mesh_of(), 37
    mask = loom.causal & loom.window(back=30)
    for strategy in STRATEGIES:
        plan = loom.distributed.plan(mask, length, mesh, heads=(6, 2), strategy=strategy, q_offset=11)
        check_offset(plan, mask, made(1, (6, 2), length), 11)


def check_offset(plan: Any, mask: Any, tensors: list[Tensor], q_offset: int) -> None:
    options: dict[str, Any] = {"score_mod": loom.scores.alibi(6), "dropout": 0.25, "dropout_seed": 5}
    expected = loom.attend(*tensors[:3], mask, q_offset=q_offset, **options)
    out = plan.attend(*(plan.shard(one, 2) for one in tensors[:3]), **options)
    torch.testing.assert_close(plan.unshard(out, 2), expected)


def overlap() -> None:
    """Keys that come in while own ones are attended to: the same results, with every option; bytes as counted."""
    mesh, length = mesh_of(), 101
    mask = loom.causal & loom.documents(torch.arange(length) // 37) & loom.lengths([101, 60])
    tensors = made(2, (6, 2), length)
    sinks = torch.randn(6, dtype=torch.float64, generator=torch.Generator().manual_seed(5)).requires_grad_()
    score_mod, table = relative(length)
    for asked in (True, False):
        plan = loom.distributed.plan(mask, length, mesh, heads=(6, 2), strategy="gather", overlap=asked)
        assert ("while own ones" in str(plan)) == asked
        check(mask, tensors, plan, (sinks, table), sinks=sinks, score_mod=score_mod)
        check(mask, tensors, plan, what="dropout", dropout=0.3, dropout_seed=7)
        local = [plan.shard(one, 2) for one in tensors[:3]]
        with counted() as moved:
            plan.attend(*local)
        assert moved.calls == 1
        short = loom.distributed.plan(loom.causal, 1, mesh, heads=(6, 2), strategy="gather", overlap=asked)
        check(loom.causal, made(1, (6, 2), 1), short)


def some_heads() -> None:
    """Tensors of some of the heads, as tensor parallel ranks have them."""
    mesh, length = mesh_of(), 37
    mask = loom.masks.per_head([loom.causal, loom.window(back=9), loom.everything, loom.window(back=2)] * 2)
    query, key, value, *_ = made(1, (8, 4), length)
    expected = loom.attend(query, key, value, mask, score_mod=loom.scores.alibi(8))
    for strategy in STRATEGIES:
        plan = loom.distributed.plan(mask, length, mesh, heads=(8, 4), strategy=strategy)
        parts = [query[:, 4:], key[:, 2:], value[:, 2:]]
        local = [plan.shard(one, 2) for one in parts]
        out = plan.attend(*local, score_mod=loom.scores.alibi(8), h_offset=4)
        torch.testing.assert_close(plan.unshard(out, 2), expected[:, 4:])


def all_of(*names: Any) -> None:
    """Several of these, one after another: what takes longest is to begin processes."""
    for name, *arguments in names:
        globals()[name](*arguments)


# -- DTensors ----------------------------------------------------------------------------------------------------------


def dtensors() -> dict[str, str]:
    """DTensors that share heads or batch rows over another dimension of the mesh; and the words for others."""
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh, length = init_device_mesh("cpu", (2, 2), mesh_dim_names=("tp", "cp")), 37
    masks = {
        "by head": loom.masks.per_head([loom.causal, loom.window(back=9)] * 4),
        "by row": loom.causal & loom.lengths([37, 11]),
    }
    *qkv, of_out, _ = made(2, (8, 4), length)
    sinks = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    for name, mask in masks.items():
        options = {"score_mod": loom.scores.alibi(8), "dropout": 0.2, "dropout_seed": 3, "sinks": sinks}
        leaves = [one.clone().requires_grad_() for one in qkv]
        expected = loom.attend(*leaves, mask, **options)
        grads = torch.autograd.grad(expected, leaves, of_out)
        for strategy in STRATEGIES:
            plan = loom.distributed.plan(mask, length, mesh["cp"], heads=(8, 4), strategy=strategy, batch=2)
            for placement in (Shard(0), Shard(1), Replicate()):
                rank, size = mesh.get_local_rank("tp"), 2
                mine = [plan.shard(one, 2) for one in qkv]
                if not placement.is_replicate():
                    mine = [one.chunk(size, placement.dim)[rank] for one in mine]
                parts = [DTensor.from_local(one.requires_grad_(), mesh["tp"], [placement]) for one in mine]
                out, aux = plan.attend(*parts, return_aux=LSE, **options)
                assert out.placements == aux.lse.placements == parts[0].placements, name
                torch.testing.assert_close(plan.unshard(out.full_tensor(), 2), expected)
                again = plan.unshard(out, 2)
                assert again.placements == out.placements
                torch.testing.assert_close(again.full_tensor(), expected)
                torch.testing.assert_close(plan.shard(again, 2).to_local(), out.to_local())
                out.backward(DTensor.from_local(_part(plan.shard(of_out, 2), placement, rank), mesh["tp"], [placement]))
                for one, grad in zip(mine, grads, strict=True):
                    torch.testing.assert_close(one.grad, _part(plan.shard(grad, 2), placement, rank))
    local = [plan.shard(one, 2) for one in qkv]
    whole_ = [DTensor.from_local(one, mesh["tp"], [Replicate()]) for one in local]
    by_rows = [DTensor.from_local(one, mesh["tp"], [Shard(2)]) for one in local]
    by_heads = [DTensor.from_local(one, mesh["tp"], [Shard(1)]) for one in local]
    calls = {
        "one": lambda: plan.attend(whole_[0], local[1], local[2]),
        "rows": lambda: plan.attend(*by_rows),
        "unlike": lambda: plan.attend(whole_[0], by_heads[1], by_heads[2]),
        "offset": lambda: plan.attend(*whole_, h_offset=0),
        "sinks": lambda: plan.attend(*by_heads, sinks=torch.zeros(9, dtype=torch.float64)),
        "score_mod": lambda: plan.attend(*by_heads, score_mod=loom.scores.alibi(4)),
        "positions": lambda: plan.unshard(by_rows[0], 2),
    }
    by_heads = [
        DTensor.from_local(_part(one, Shard(1), mesh.get_local_rank("tp")), mesh["tp"], [Shard(1)]) for one in local
    ]
    all_sinks = DTensor.from_local(sinks, mesh["tp"], [Replicate()])
    torch.testing.assert_close(
        plan.attend(*by_heads, sinks=all_sinks).to_local(), plan.attend(*by_heads, sinks=sinks).to_local()
    )
    return {name: said(call) for name, call in calls.items()}


def _part(tensor: Tensor, placement: Any, rank: int) -> Tensor:
    return tensor if placement.is_replicate() else tensor.chunk(2, placement.dim)[rank]


def said(call: Any) -> str:
    """The words of an error."""
    try:
        call()
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def disagreements() -> dict[str, str]:
    """What each process is told where they ask for different plans."""
    mesh, rank = mesh_of(), dist.get_rank()
    offsets = [0, 11, 37] if rank < 2 else [0, 12, 37]
    asked: dict[str, dict[str, Any]] = {
        "length": {"length": 37 + (rank == 1)},
        "heads": {"heads": (6, 2) if rank else (6, 3)},
        "strategy": {"strategy": "gather" if rank < 2 else "needed"},
        "program": {"mask": loom.causal if rank < 2 else loom.window(back=3)},
        "tensors": {"mask": loom.documents(offsets=offsets)},
        "refused": {"heads": (6, 2) if rank < 2 else (7, 2)},
        "everyone": {"heads": (5, 1), "strategy": "heads"},
        "long rows": {"mask": loom.lengths([41])},
    }
    alike = {"mask": loom.causal, "length": 37, "heads": (6, 2), "strategy": "gather"}

    def plan(mask: Any, length: int, **options: Any) -> Any:
        return loom.distributed.plan(mask, length, mesh, **options)

    found = {name: said(lambda other=other: plan(**(alike | other))) for name, other in asked.items()}
    functions = {"mask": (lambda b, h, q_idx, kv_idx: q_idx >= kv_idx)}
    plan(**(alike | functions))  # two functions that do the same are the same
    return found


def alike() -> None:
    """Masks that do the same on each rank, of another class or under another name, are one plan."""
    mesh, rank, length = mesh_of(dist.get_world_size()), dist.get_rank(), 211
    masks = {
        "causal": [loom.causal, lambda b, h, q_idx, kv_idx: q_idx >= kv_idx],
        "window": [loom.window(back=9), lambda *indices: loom.window(back=9)(*indices)],
    }
    for name, (ours, function) in masks.items():
        tensors = made(1, (6, 3), length)
        expected = whole(ours, tensors)
        for strategy in ("auto", "needed"):
            plan = loom.distributed.plan(
                function if rank == 1 else ours, length, mesh, heads=[6, 3] if rank == 1 else (6, 3), strategy=strategy
            )
            for found, right in zip(by_plan(plan, tensors), expected, strict=True):
                torch.testing.assert_close(found, right, msg=name)


def refusals() -> dict[str, str]:
    """What `plan` and `Plan` refuse."""
    mesh, two = mesh_of(), mesh_of(1, 2)
    plan = loom.distributed.plan(loom.causal, 37, mesh, heads=(6, 2), strategy="heads")
    by_row = loom.distributed.plan(loom.causal & loom.lengths([37, 5]), 37, mesh, heads=(6, 2), strategy="gather")
    query, key, value = (torch.randn(2, heads, plan.rows, D) for heads in (6, 2, 2))
    whole_, alike = torch.randn(37), {"heads": (6, 2)}
    calls = {
        "mask": lambda: loom.distributed.plan(3, 37, mesh, **alike),
        "mesh": lambda: loom.distributed.plan(loom.causal, 37, "cp", **alike),
        "length 0": lambda: loom.distributed.plan(loom.causal, 0, mesh, **alike),
        "word": lambda: loom.distributed.plan(loom.causal, 37, mesh, strategy="ring", **alike),
        "one name for two": lambda: loom.distributed.plan(loom.causal, 37, two, strategy="heads", **alike),
        "two rows": lambda: loom.distributed.plan(loom.causal, 37, two, strategy=("gather", "needed"), **alike),
        "ratio": lambda: loom.distributed.plan(loom.causal, 37, mesh, heads=(6, 4)),
        "table": lambda: loom.distributed.plan(loom.documents(torch.arange(9)), 37, mesh, **alike),
        "dtype": lambda: loom.distributed.plan(loom.causal, 37, mesh, dtype="bf16", **alike),
        "dtype of ints": lambda: loom.distributed.plan(loom.causal, 37, mesh, dtype=torch.int64, **alike),
        "overlap": lambda: loom.distributed.plan(loom.causal, 37, mesh, strategy="heads", overlap=True, **alike),
        "rows": lambda: plan.attend(query[:, :, 1:], key, value),
        "heads": lambda: plan.attend(query[:, :4], key, value),
        "heads beyond": lambda: plan.attend(query[:, :4], key, value, h_offset=3),
        "share": lambda: plan.attend(query[:, :3], key[:, :1], value[:, :1], h_offset=3),
        "batch": lambda: by_row.attend(query[:1, :, :20], key[:1, :, :20], value[:1, :, :20]),
        "padding": lambda: plan.attend(query, key, value, clean_padding=True),
        "score_mod": lambda: plan.attend(query, key, value, score_mod=loom.scores.alibi(4)),
        "sinks": lambda: plan.attend(query, key, value, sinks=torch.zeros(3)),
        "shard": lambda: plan.shard(whole_[1:], 0),
        "shard dim": lambda: plan.shard(whole_, 0.0),
        "fill of bytes": lambda: plan.shard(whole_.to(torch.uint8), 0, fill=-100),
        "fill of flags": lambda: plan.shard(whole_ > 0, 0, fill=-100),
        "fill of labels": lambda: plan.shard(whole_.long(), 0, fill=0.5),
        "fill nan": lambda: plan.shard(whole_.long(), 0, fill=torch.nan),
        "fill of half": lambda: plan.shard(whole_.half(), 0, fill=1e6),
        "fill text": lambda: plan.shard(whole_, 0, fill="x"),
        "unshard": lambda: plan.unshard(whole_, 0),
        "grads": lambda: plan.unshard(plan.shard(whole_, 0), 0, grads="mean"),
    }
    found = {name: said(call) for name, call in calls.items()}
    for strategy in STRATEGIES:
        plan = loom.distributed.plan(loom.causal, 37, mesh, heads=(6, 2), strategy=strategy)
        leaves = [one.clone().requires_grad_() for one in (query, key, value)]
        loss = plan.attend(*leaves).sum()
        found[f"second {strategy}"] = _runtime_error(lambda: torch.autograd.grad(loss, leaves, create_graph=True))
    return found


def dying(alone: int) -> str:
    """One process dies in the middle of a step; the words that the others get."""
    mesh, length = mesh_of(), 37
    plan = loom.distributed.plan(loom.causal, length, mesh, heads=(6, 2), strategy="gather")
    query, key, value, *_ = made(1, (6, 2), length)
    local = [plan.shard(one, 2).requires_grad_() for one in (query, key, value)]
    out = plan.attend(*local)
    if dist.get_rank() == alone:
        os._exit(3)
    return _runtime_error(lambda: out.sum().backward())


def absent() -> str:
    """One process never plans; the words that the others get when the time is over."""
    store = dist.distributed_c10d._get_default_store()
    mesh = mesh_of()
    if dist.get_rank() == 1:
        store.wait(["over"], timedelta(seconds=60))
        return ""
    found = _runtime_error(lambda: loom.distributed.plan(loom.causal, 37, mesh, heads=6))
    store.set("over", "yes")
    return found


def _runtime_error(call: Any) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return "nothing"


def kept() -> None:
    """One plan for masks that do the same; another one for other values, sizes and strategies; none for functions."""
    mesh = mesh_of()

    def plan(offsets: list[int], **options: Any) -> Any:
        alike = {"heads": (6, 2), "strategy": "gather"}
        mask = loom.causal & loom.documents(offsets=offsets)
        return loom.distributed.plan(mask, 37, mesh, **(alike | options))

    first = plan([0, 11, 37])
    assert plan([0, 11, 37]) is first
    others = [
        plan([0, 12, 37]), plan([0, 11, 37], strategy="needed"), plan([0, 11, 37], heads=(6, 3)), plan([0, 11, 37], batch=3),
        plan([0, 11, 37], head_dim=64), plan([0, 11, 37], q_offset=0),
    ]  # fmt: skip
    assert [one is first for one in others] == [False] * 5 + [True]
    offsets = torch.tensor([0, 11, 37])
    ids = torch.arange(37) // 11
    held = loom.distributed.plan(loom.documents(ids), 37, mesh, heads=6, strategy="gather")
    ids += 1  # the same mask object, with other values
    ids[0] = 0
    assert loom.distributed.plan(loom.documents(ids), 37, mesh, heads=6, strategy="gather") is not held
    function = lambda b, h, q_idx, kv_idx: q_idx >= offsets[0] + kv_idx  # noqa: E731
    assert loom.distributed.plan(function, 37, mesh, heads=6) is not loom.distributed.plan(function, 37, mesh, heads=6)


def alone() -> None:
    """A mesh of one: nothing moves, the mask is the user's, and no row fills up."""
    mesh, length = mesh_of(), 37
    for strategy in (*STRATEGIES, "auto"):
        plan = loom.distributed.plan(loom.causal, length, mesh, heads=(6, 2), strategy=strategy)
        assert plan.rows == length
        assert not plan.pads.any()
        assert plan.bytes == 0
        assert plan.balance == 1.0
        assert plan.part.masks(1, None, None).plain is loom.causal
        assert copy.deepcopy({"plan": plan})["plan"] is plan is copy.copy(plan)
        assert said(lambda plan=plan: pickle.dumps(plan)).startswith(
            "TypeError: cannot pickle a plan, whose groups are"
        )
        with counted() as moved:
            check(loom.causal, made(2, (6, 2), length), plan, score_mod=loom.scores.alibi(6))
        assert moved.calls == 0
