"""The processes that train together, and the model that they share."""

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist
from lm.model import Decoder
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel


class Ranks(NamedTuple):
    """This process among the others, on a mesh of data × cp. Processes along ``cp`` share each row of tokens."""

    rank: int
    size: int
    device: torch.device
    mesh: DeviceMesh | None

    @property
    def data(self) -> tuple[int, int]:
        """Which rows this process has: the place of its group, and the number of groups."""
        return (0, 1) if self.mesh is None else (self.mesh["data"].get_local_rank(), self.mesh["data"].size())

    @property
    def cp(self) -> DeviceMesh:
        """The processes that share this one's rows."""
        assert self.mesh is not None
        return self.mesh["cp"]

    def sum(self, *numbers: float) -> list[float]:
        """Sums over all processes."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def most(self, number: int) -> int:
        """The largest over all processes."""
        return int(self._reduced([number], dist.ReduceOp.MAX)[0])

    def _reduced(self, numbers: "tuple[float, ...] | list[float]", operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(numbers)
        reduced = torch.tensor(numbers, dtype=torch.float64)  # by gloo, which waits for no GPU
        dist.all_reduce(reduced, operation)
        return reduced.tolist()


@contextlib.contextmanager
def processes(cp: int) -> Iterator[Ranks]:
    """The processes that torchrun started, or this one alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if not dist.is_torchelastic_launched():
        if cp > 1:
            raise SystemExit(f"--cp {cp} needs torchrun with a multiple of {cp} processes")
        yield Ranks(0, 1, device, None)
        return
    if device.type == "cuda":
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(
                1
            )  # as torchrun sets it; else it may change while torch.compile traces, which refuses that
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        size = dist.get_world_size()
        if size % cp:
            raise SystemExit(f"--cp {cp} does not divide {size}, the number of processes")
        mesh = init_device_mesh(device.type, (size // cp, cp), mesh_dim_names=("data", "cp"))
        yield Ranks(dist.get_rank(), size, device, mesh)
    finally:
        dist.destroy_process_group()


def shared_out(model: Decoder, ranks: Ranks, how: str, *, bf16: bool) -> nn.Module:
    """The model as processes share it: each has a copy ("ddp") or a part of each parameter ("fsdp"). Gradients are averaged."""
    if ranks.size == 1:
        return model
    if how == "ddp":
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if bf16 else MixedPrecisionPolicy()
    mesh = init_device_mesh(ranks.device.type, (ranks.size,))
    for module in (*model.blocks, model):
        fully_shard(module, mesh=mesh, mp_policy=policy)
    return model


@contextlib.contextmanager
def synchronised(model: nn.Module, now: bool) -> Iterator[None]:
    """Backwards in here average gradients over processes only if it is time."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)
    with model.no_sync() if isinstance(model, DistributedDataParallel) and not now else contextlib.nullcontext():
        yield


def clipped(model: nn.Module, most: float) -> float:
    """Scale gradients so that their norm is at most that; the norm before."""
    norm = nn.utils.clip_grad_norm_(model.parameters(), most)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
