"""Plans on a GPU: a mesh of one is `attend`; the parts of two ranks run on FLASH where the whole does, and are its rows."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import maskloom as loom
from maskloom.attention.backends.compiled import compiled_kinds
from maskloom.attention.backends.flash import has_flash
from maskloom.distributed.asking import checked, weighed
from maskloom.distributed.part import Place, part_of
from maskloom.distributed.sharing.layout import layout_of
from tests.distributed.positions import everywhere

LENGTH, HEADS, KV_HEADS, D = 4096 + 77, 8, 2, 128
DEVICE = torch.device("cuda", 0)
MASKS = {
    "causal": loom.causal,
    "documents": loom.causal & loom.documents(offsets=[0, 700, 2500, 2501, LENGTH]),
    "ids": loom.causal & loom.documents(torch.arange(LENGTH) // 900),
    "window": loom.window(back=511),
    "by head": loom.masks.per_head([loom.causal, loom.window(back=99)] * 4),
    "lengths": loom.causal & loom.lengths([LENGTH - 300]),
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    store = tmp_path_factory.mktemp("one") / "store"
    dist.init_process_group(init_method=f"file://{store}", rank=0, world_size=1)
    yield init_device_mesh("cuda", (1,), mesh_dim_names=("cp",))
    dist.destroy_process_group()


def made(dtype=torch.bfloat16):
    generator = torch.Generator(DEVICE).manual_seed(0)
    shapes = [(1, heads, LENGTH, D) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS)]
    return [torch.randn(shape, generator=generator, device=DEVICE).to(dtype) for shape in shapes]


@pytest.mark.parametrize("name", MASKS)
def test_a_mesh_of_one_is_attend(name, mesh):
    *qkv, grad = made()
    plan = loom.distributed.plan(MASKS[name], LENGTH, mesh["cp"], heads=(HEADS, KV_HEADS))
    found = []
    for attend in (plan.attend, lambda *qkv: loom.attend(*qkv, MASKS[name].to(DEVICE))):
        leaves = [one.detach().requires_grad_() for one in qkv]
        out = attend(*leaves)
        found.append([out, *torch.autograd.grad(out, leaves, grad)])
    for one, right in zip(*found, strict=True):
        assert float((one - right).float().norm() / right.float().norm()) < 5e-3


def test_a_steady_call_waits_for_nothing(mesh):
    query, key, value, _ = made()
    plan = loom.distributed.plan(MASKS["documents"], LENGTH, mesh["cp"], heads=(HEADS, KV_HEADS))
    for _ in range(2):
        plan.attend(query, key, value)
    torch.cuda.set_sync_debug_mode("error")
    try:
        plan.attend(query, key, value)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("strategy", ["heads", "gather", "needed"])
@pytest.mark.parametrize("name", MASKS)
def test_parts_of_two_ranks_are_rows_and_heads_of_the_whole(name, strategy):
    mask, (query, key, value, _) = MASKS[name], made()
    whole = loom.attend(query, key, value, mask.to(DEVICE))
    asked = checked(mask, LENGTH, [2], heads=(HEADS, KV_HEADS), strategy=strategy)
    tiles, _, (scheme,) = weighed(asked, [2])
    layout = layout_of(scheme.assignment, LENGTH, tiles.unit, scheme.rows, scheme.parts)
    for rank in range(2):
        place = Place(0, rank, None, None) if strategy == "heads" else Place(rank, 0, None, None)
        part = part_of(asked.mask, tiles.marks, scheme, layout, place, q_offset=0, unit=tiles.unit, device=DEVICE)
        if strategy == "heads":
            own, kv = slice(rank * HEADS // 2, (rank + 1) * HEADS // 2), slice(rank, rank + 1)
            tensors, expected = (query[:, own], key[:, kv], value[:, kv]), whole[:, own]
        else:
            rows = layout.positions[rank].to(DEVICE)
            keys = everywhere(part)[1].to(DEVICE)
            tensors = query[:, :, rows], key[:, :, keys], value[:, :, keys]
            expected = whole[:, :, rows]
        held = part.masks(len(query), None, rank * HEADS // 2 if strategy == "heads" else None).plain
        found = loom.attend(*tensors, held, q_offset=0)
        assert float((found - expected).float().norm() / expected.float().norm()) < 5e-3
        if has_flash():
            given = loom.explain(query, key, value, mask.to(DEVICE), backend="flash")
            assert loom.explain(*tensors, held, q_offset=0, backend="flash").backend == given.backend


def parts_of(mask, length):
    """The two ranks' parts by "needed", with the positions of their queries and keys."""
    asked = checked(mask, length, [2], heads=(HEADS, KV_HEADS), strategy="needed")
    tiles, _, (scheme,) = weighed(asked, [2])
    layout = layout_of(scheme.assignment, length, tiles.unit, scheme.rows, scheme.parts)
    for rank in range(2):
        place = Place(rank, 0, None, None)
        part = part_of(asked.mask, tiles.marks, scheme, layout, place, q_offset=0, unit=tiles.unit, device=DEVICE)
        yield part, *(held.to(DEVICE) for held in everywhere(part))


def test_two_runs_have_the_gradients_of_the_whole_and_one_kernel():
    """Documents with which a rank holds a head and a tail, one run, and others; on the backend of the whole."""
    *qkv, grad = made()
    kinds, forms = [], set()
    for starts in ([700, 2500, 2501], [150, 300, 450], [3900], [512 * at for at in range(1, 8)], []):
        mask = loom.causal & loom.documents(offsets=[0, *starts, LENGTH])
        leaves = [one.detach().requires_grad_() for one in qkv]
        whole = loom.attend(*leaves, mask.to(DEVICE))
        expected = torch.autograd.grad(whole, leaves, grad)
        out, found = torch.empty_like(whole), [torch.zeros_like(one, dtype=torch.float32) for one in qkv]
        for part, queries, keys in parts_of(mask, LENGTH):
            forms.add((part.positions[0].is_one, part.positions[1].is_one))
            own = [one[:, :, at].detach().requires_grad_() for one, at in zip(qkv, (queries, keys, keys), strict=True)]
            held = part.masks(1, None, None).plain
            rows = loom.attend(*own, held, q_offset=0)
            out[:, :, queries] = rows.detach()
            grads = torch.autograd.grad(rows, own, grad[:, :, queries])
            for total, at, one in zip(found, (queries, keys, keys), grads, strict=True):
                total.index_add_(2, at, one.float())
            if has_flash():
                given = loom.explain(*qkv, mask.to(DEVICE), backend="flash").backend
                assert loom.explain(*own, held, q_offset=0, backend="flash").backend == given
        kinds.append(compiled_kinds())
        for one, right in zip([out, *found], [whole, *expected], strict=True):
            assert float((one - right).float().norm() / right.float().norm()) < 5e-3
    assert len(forms) > 1
    assert kinds[1] == kinds[0], (
        kinds
    )  # other documents compile nothing; a rank that gets no keys has as many as queries,
    assert kinds[-1] <= kinds[0] + 2, kinds  # which is a kernel of its own


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_equal_one(tmp_path):
    """The benchmark compares every strategy with the reference, and with one GPU, before it times anything."""
    script = Path(__file__).parent.parent.parent / "benchmarks" / "context_parallel.py"
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    command = ["--standalone", "--nproc-per-node", "2", str(script), "--lengths", "8192", "--repeats", "1"]
    run = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command, "--out", str(tmp_path / "rows.csv")],
        env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
