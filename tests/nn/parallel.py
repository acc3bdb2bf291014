"""Trains a layer, and torch's encoder run by maskloom, on two processes, by DistributedDataParallel and by fully_shard, and
compares with one process.

``python -m tests.nn.parallel RANK FILE``; prints "same" at the end.
"""

import copy
import sys
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

import maskloom as loom
from maskloom.nn import packing

B, L, D, HEADS, KV_HEADS, D_HEAD = 2, 7, 12, 4, 2, 6
LENS = torch.tensor([[5, 7], [3, 2]])


def made() -> nn.Module:
    torch.manual_seed(0)
    return loom.MultiheadFlexAttention(
        D, D, HEADS, n_kv_heads=KV_HEADS, d_head=D_HEAD, qk_norm=True, sinks=True, gate=True, bias=True,
        rotary=loom.nn.Rotary(D_HEAD), dtype=torch.float64,
    )  # fmt: skip


def loss_of(module: nn.Module, rank: int) -> torch.Tensor:
    x = torch.randn(2, B, L, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[rank]
    pads = loom.batches.pads_from_lengths(LENS[rank], L)
    out = module(x.masked_fill(pads[..., None], torch.nan), loom.causal & loom.lengths(LENS[rank])).out
    return out[~pads].square().sum()


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(D, HEADS, 17, dropout=0.0, batch_first=True, dtype=torch.float64)
    return loom.nn.replace_attention(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False))


def loss_of_encoder(module: nn.Module, rank: int) -> torch.Tensor:
    x = torch.randn(2, B, L, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)[rank]
    pads = loom.batches.pads_from_lengths(LENS[rank], L)
    return module(x, src_key_padding_mask=pads)[~pads].square().sum()


Loss = Callable[[nn.Module, int], torch.Tensor]


def step(module: nn.Module, *ranks: int, loss: Loss = loss_of) -> dict[str, torch.Tensor]:
    """One step of SGD on the mean of the ranks' losses; the parameters after it."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.1)
    sum(loss(module, rank) / len(ranks) for rank in ranks).backward()
    optimiser.step()
    return {
        name.removeprefix("module."): value.full_tensor() if isinstance(value, DTensor) else value
        for name, value in module.state_dict().items()
    }


def main(rank: int, store: str) -> None:
    """One of the two processes."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    expected = step(made(), 0, 1)
    packing.LEAST["cpu"] = 1  # from here on tokens are packed
    mesh = init_device_mesh("cpu", (2,))
    sharded = fully_shard(made(), mesh=mesh)
    empty = made().to("meta")
    fully_shard(empty, mesh=mesh)
    empty.to_empty(device="cpu")
    with torch.no_grad():
        for one, other in zip(empty.parameters(), sharded.parameters(), strict=True):
            one.copy_(other)
    for module in (nn.parallel.DistributedDataParallel(copy.deepcopy(made())), sharded, empty):
        for name, value in step(module, rank).items():
            torch.testing.assert_close(value, expected[name])
    expected, whole = step(encoder(), 0, 1, loss=loss_of_encoder), encoder()
    for layer in whole.layers:
        fully_shard(layer, mesh=mesh)
    for module in (nn.parallel.DistributedDataParallel(encoder()), fully_shard(whole, mesh=mesh)):
        for name, value in step(module, rank, loss=loss_of_encoder).items():
            torch.testing.assert_close(value, expected[name])
    dist.destroy_process_group()
    print("same")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), sys.argv[2])
