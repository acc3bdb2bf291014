"""What processes are told whose tensors are of different kinds."""

from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

import maskloom as loom
from maskloom.distributed import agreement
from tests.distributed.cases import LSE, STRATEGIES, D, E, made, mesh_of, said

LENGTH = 37
HEADS = (6, 2)


def tensors(
    rows: int, *, batch: int = 2, heads: tuple[int, int] = HEADS, dims: tuple[int, int] = (D, E)
) -> list[Tensor]:
    shapes = (batch, heads[0], rows, dims[0]), (batch, heads[1], rows, dims[0]), (batch, heads[1], rows, dims[1])
    return [torch.randn(shape, dtype=torch.float64) for shape in shapes]


def disagreements() -> dict[str, dict[str, str]]:
    """By strategy the words for each kind of difference, of which rank 1 is the cause; after them a call of one kind is right."""
    mesh = mesh_of()
    found = {strategy: _words(mesh, strategy) for strategy in STRATEGIES}
    whole = made(2, HEADS, LENGTH)[:3]
    plan = loom.distributed.plan(loom.causal, LENGTH, mesh, heads=HEADS, strategy="gather")
    out = plan.unshard(plan.attend(*(plan.shard(one, 2) for one in whole)), 2)
    torch.testing.assert_close(out, loom.attend(*whole, loom.causal))
    return found


def _words(mesh: DeviceMesh, strategy: Any) -> dict[str, str]:
    plan = loom.distributed.plan(loom.causal, LENGTH, mesh, heads=HEADS, strategy=strategy)
    second, alike = dist.get_rank() == 1, tensors(plan.rows)
    others = {
        "dtype": [one.float() for one in alike],
        "batch": tensors(plan.rows, batch=3),
        "key heads": tensors(plan.rows, heads=(6, 3)),
        "head dim": tensors(plan.rows, dims=(7, E)),
        "value dim": tensors(plan.rows, dims=(D, 7)),
        "refused": [one[:, :, 1:] for one in alike],
    }
    found = {
        name: said(lambda other=other: plan.attend(*(other if second else alike))) for name, other in others.items()
    }
    options = {
        "dropout": {"dropout": 1.5}, "seed": {"dropout": 0.5, "dropout_seed": 0.5}, "scale": {"scale": "0.5"},
        "backend": {"backend": "fast"}, "this backend": {"backend": "flash"}, "flag": {"deterministic": 1},
        "score mod": {"score_mod": _raising},
    }  # fmt: skip
    for name, option in options.items():
        found[name] = said(lambda option=option: plan.attend(*alike, **(option if second else {})))
    two, four = (tensors(plan.rows, heads=(heads, 2)) for heads in (2, 4))
    found["heads"] = said(lambda: plan.attend(*(four if second else two), h_offset=0))
    found["h_offset"] = said(lambda: plan.attend(*two, h_offset=2 if second else 0))
    with torch.autocast("cpu", torch.bfloat16, enabled=second):
        found["autocast"] = said(lambda: plan.attend(*(one.float() for one in alike)))
    if strategy == "heads":
        found["lse"] = said(lambda: plan.attend(*alike, return_aux=LSE if second else None))
    return found


def _raising(score: Tensor, *indices: Tensor) -> Tensor:
    raise ValueError("no such score")


def transformed() -> dict[str, str]:
    """What is said to who lets a transform of torch.func follow an exchange."""
    plan = loom.distributed.plan(loom.causal, LENGTH, mesh_of(), heads=HEADS, strategy="gather")
    qkv = tensors(plan.rows)
    summed = lambda query: plan.attend(query, *qkv[1:]).sum()  # noqa: E731
    return {
        "grad": said(lambda: torch.func.grad(summed)(qkv[0])),
        "vmap": said(lambda: torch.vmap(lambda query: plan.attend(query, *qkv[1:]))(qkv[0][None])),
        "jvp": said(lambda: torch.func.jvp(summed, (qkv[0],), (qkv[0],))),
        "unshard": said(lambda: torch.func.grad(lambda rows: plan.unshard(rows, 2).sum())(qkv[0])),
    }


def comparisons() -> None:
    """One for what was asked, whichever plans were kept on which rank; none of another call, or of another mask."""
    mesh, rank = mesh_of(), dist.get_rank()
    function = lambda b, h, q_idx, kv_idx: q_idx >= kv_idx  # noqa: E731
    causal = function if rank else loom.causal  # on rank 1 a new plan each time

    def compared(mask: Any, length: int, **options: Any) -> int:
        plan = loom.distributed.plan(mask, length, mesh, strategy="gather", **({"heads": HEADS} | options))
        with patch.object(agreement, "all_facts", wraps=agreement.all_facts) as counted:
            plan.attend(*tensors(plan.rows))
            plan.attend(*(one.float() for one in tensors(plan.rows)))
        return counted.call_count

    assert compared(causal, LENGTH) == 1
    assert compared(causal, LENGTH) == 0
    assert compared(loom.documents(torch.arange(53) // 11), 53) == 0
    assert compared(loom.causal, LENGTH, batch=2) == 1
    assert compared(causal, LENGTH, head_dim=D) == 1
