"""What the processes of the tests of models run: layers by a plan beside layers of one process."""

import copy
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint

import maskloom as loom
from tests.distributed.cases import STRATEGIES, mesh_of, summed

LENGTH, D, HEADS, KV_HEADS, D_HEAD, WORDS = 37, 12, 6, 2, 4, 11


class Layer(nn.Module):
    """Attention with all that a module has, and a residual; it takes a mask or a plan, and ids, as inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(D, dtype=torch.float64)
        self.attention = loom.MultiheadFlexAttention(
            D, D, HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, qk_norm=True, sinks=True, gate=True, softcap=9.0,
            rotary=loom.nn.Rotary(D_HEAD), dtype=torch.float64,
        )  # fmt: skip

    def forward(self, x: Tensor, mask: Any, positions: Tensor | None = None) -> Tensor:
        return x + self.attention(self.norm(x), mask, positions=positions).out


class Model(nn.Module):
    """A small language model."""

    def __init__(self, recomputes: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(WORDS, D, dtype=torch.float64)
        self.layers = nn.ModuleList(Layer() for _ in range(2))
        self.head = nn.Linear(D, WORDS, dtype=torch.float64)
        self.recomputes = recomputes

    def forward(self, tokens: Tensor, mask: Any, positions: Tensor | None = None) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.layers:
            x = (
                checkpoint(layer, x, mask, positions, use_reentrant=False)
                if self.recomputes
                else layer(x, mask, positions)
            )
        return self.head(x)


def tokens() -> tuple[Tensor, Tensor]:
    """Tokens, and the labels of the whole, shifted before they are sharded: (2, LENGTH) each."""
    found = torch.randint(WORDS, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    return found, torch.cat([found[:, 1:], found.new_full((2, 1), -100)], 1)


def loss_of(scores: Tensor, labels: Tensor, count: Tensor) -> Tensor:
    """The sum over this rank's labels, over the number of all labels."""
    return (
        nn.functional.cross_entropy(scores.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum") / count
    )


def gradients(
    model: nn.Module, ids: Tensor, labels: Tensor, mask: Any, positions: Tensor | None = None
) -> list[Tensor]:
    count = (tokens()[1] != -100).sum()
    model.zero_grad()
    loss_of(model(ids, mask, positions), labels, count).backward()
    return [_whole(parameter.grad) for parameter in model.parameters()]


def _whole(grad: Any) -> Tensor:
    return grad.full_tensor() if isinstance(grad, DTensor) else grad


def masks() -> dict[str, loom.Mask]:
    return {
        "documents": loom.causal & loom.documents(torch.arange(LENGTH) // 11),
        "lengths": loom.causal & loom.lengths([LENGTH, 23]),
    }


def model_by_plan() -> None:
    """Losses and gradients of a model by a plan, with recomputation too, equal those of one process."""
    ids, labels = tokens()
    for mask in masks().values():
        expected = gradients(Model(), ids, labels, mask)
        for strategy in STRATEGIES:
            plan = loom.distributed.plan(mask, LENGTH, mesh_of(), heads=(HEADS, KV_HEADS), strategy=strategy, batch=2)
            local = plan.shard(ids, 1), plan.shard(labels, 1, fill=-100)
            for recomputes in (False, True):
                for found, right in zip(summed(gradients(Model(recomputes), *local, plan)), expected, strict=True):
                    torch.testing.assert_close(found, right)


def own_positions() -> None:
    """Positions that begin anew in each document."""
    ids, labels = tokens()
    mask, inside = masks()["documents"], torch.arange(LENGTH) % 11
    expected = gradients(Model(), ids, labels, mask, inside)
    plan = loom.distributed.plan(mask, LENGTH, mesh_of(), heads=(HEADS, KV_HEADS), strategy="gather")
    found = gradients(Model(), plan.shard(ids, 1), plan.shard(labels, 1, fill=-100), plan, plan.shard(inside, 0))
    for one, right in zip(summed(found), expected, strict=True):
        torch.testing.assert_close(one, right)


def wrapped() -> None:
    """DistributedDataParallel and fully_shard average gradients over ranks: a loss times the ranks gives the whole."""
    ids, labels = tokens()
    mask, world = masks()["lengths"], dist.get_world_size()
    expected = gradients(Model(), ids, labels, mask)
    mesh = mesh_of()
    plan = loom.distributed.plan(mask, LENGTH, mesh, heads=(HEADS, KV_HEADS), strategy="gather", batch=2)
    local = plan.shard(ids, 1), plan.shard(labels, 1, fill=-100)
    sharded = copy.deepcopy(Model())
    for layer in sharded.layers:
        fully_shard(layer, mesh=mesh)
    for model in (nn.parallel.DistributedDataParallel(Model()), fully_shard(sharded, mesh=mesh)):
        for found, right in zip(gradients(model, *local, plan), expected, strict=True):
            torch.testing.assert_close(found * world, right)


def masks_as_inputs() -> None:
    """A BlockMask, a mask and ids go through wrappers as inputs, also where these cast inputs."""
    from torch.distributed.fsdp import MixedPrecisionPolicy

    ids, labels = tokens()
    mask = masks()["documents"]
    blocks = loom.block_mask(mask, LENGTH, LENGTH, device="cpu")
    expected = gradients(Model(), ids, labels, mask, torch.arange(LENGTH))
    policy = MixedPrecisionPolicy(param_dtype=torch.float64, cast_forward_inputs=True)
    for given in (blocks, mask):
        for model in (
            nn.parallel.DistributedDataParallel(Model()), fully_shard(Model(), mesh=mesh_of(), mp_policy=policy),
        ):  # fmt: skip
            found = gradients(model, ids, labels, given, torch.arange(LENGTH))
            for one, right in zip(found, expected, strict=True):
                torch.testing.assert_close(one, right)


def errors() -> dict[str, str]:
    """The words of what a module refuses beside a plan."""
    plan = loom.distributed.plan(loom.causal, LENGTH, mesh_of(), heads=(HEADS, KV_HEADS), strategy="gather")
    layer, x = Layer().attention, torch.randn(2, plan.rows, D, dtype=torch.float64)
    calls = {
        "context": lambda: layer(x, plan, context=x),
        "weights": lambda: layer(x, plan, need_weights=True),
        "offset": lambda: layer(x, plan, q_offset=3),
        "length": lambda: layer(torch.randn(2, LENGTH, D, dtype=torch.float64), plan),
        "pair": lambda: layer(x, plan, positions=(plan.positions, None)),
    }
    return {name: said(call) for name, call in calls.items()}


def said(call: Any) -> str:
    try:
        call()
    except (TypeError, ValueError) as error:
        return str(error)
    return "nothing"


def compiled() -> list[int]:
    """A layer compiled around a plan: the graph breaks at `plan.attend`, and a plan for new documents compiles nothing anew."""
    import torch._dynamo.utils

    layer, mesh, counts = Layer(), mesh_of(), list[int]()
    fast = torch.compile(layer, backend="eager")
    x = torch.randn(2, LENGTH, D, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    for width in (11, 7, 5):
        mask = loom.causal & loom.documents(torch.arange(LENGTH) // width)
        plan = loom.distributed.plan(mask, LENGTH, mesh, heads=(HEADS, KV_HEADS), strategy="gather")
        torch.testing.assert_close(plan.unshard(fast(plan.shard(x, 1), plan), 1), layer(x, mask))
        counts.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    return counts


def all_of(*names: str) -> None:
    """Several of these, one after another: what takes longest is to begin processes."""
    for name in names:
        globals()[name]()
