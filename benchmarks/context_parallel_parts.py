"""The attention that each of two ranks would run of one sequence, one after the other on one GPU, without any exchange.

    python benchmarks/context_parallel_parts.py --lengths 65536

Forward and backward in bfloat16, heads 32/8 of 128; medians over rounds, by the GPU's clock. ``whole`` is `maskloom.attend` of all,
and ``mesh of one`` a plan on a mesh of one rank. ``tiles`` (times heads) and ``received`` (bytes of a forward pass) are those of the plan.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from context_parallel import HEAD_DIM, HEADS, KV_HEADS, between, mark, mask_of, medians
from rows import append
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

import maskloom as loom
from maskloom.distributed.asking import checked, weighed
from maskloom.distributed.part import Part, Place, part_of
from maskloom.distributed.sharing.layout import layout_of

STRATEGIES = ("heads", "gather", "needed")
Row = dict[str, object]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[65536])
    parser.add_argument(
        "--masks", nargs="+", choices=["causal", "documents", "window"], default=["causal", "documents", "window"]
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeats", type=int, default=10, help="rounds")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/context_parallel_parts.csv"))
    arguments = parser.parse_args()
    store = Path(tempfile.mkdtemp()) / "store"
    dist.init_process_group(
        "gloo" if arguments.device == "cpu" else None, init_method=f"file://{store}", rank=0, world_size=1
    )
    for length in arguments.lengths:
        for name in arguments.masks:
            for row in rows(name, length, arguments.device, arguments.repeats):
                append(arguments.out, row)
                print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)
    dist.destroy_process_group()


def rows(name: str, length: int, device: str, repeats: int) -> Iterator[Row]:
    mask = mask_of(name, length)
    held, mesh = mask.to(device), init_device_mesh(device, (1,))
    plan = loom.distributed.plan(mask, length, mesh, heads=(HEADS, KV_HEADS), strategy="heads")
    alone = {"whole": lambda *qkv: loom.attend(*qkv, held), "mesh of one": plan.attend}
    sizes = (HEADS, length), (KV_HEADS, length)
    for strategy, times in in_turns(alone, [sizes] * 2, device, repeats).items():
        yield described(length, name, strategy, 0, "", 0, sizes) | times
    for strategy in STRATEGIES:
        for rank in range(2):
            part, load, received = part_for(mask, length, strategy, rank, torch.empty(0, device=device).device)
            sizes = sizes_of(part)
            first = rank * sizes[0][0] if strategy == "heads" else None
            own = part.masks(1, None, first).plain
            times = in_turns(
                {strategy: lambda *qkv, own=own: loom.attend(*qkv, own, q_offset=0)}, [sizes], device, repeats
            )
            yield described(length, name, strategy, rank, load, received, sizes) | times[strategy]


def part_for(mask: loom.Mask, length: int, strategy: str, rank: int, device: torch.device) -> tuple[Part, int, int]:
    """What a rank of two does, its tiles times heads, and the bytes that it receives."""
    asked = checked(mask, length, [2], heads=(HEADS, KV_HEADS), strategy=strategy, head_dim=HEAD_DIM)
    tiles, _, (scheme,) = weighed(asked, [2])
    layout = layout_of(scheme.assignment, length, tiles.unit, scheme.rows, scheme.parts)
    place = Place(0, rank, None, None) if strategy == "heads" else Place(rank, 0, None, None)
    part = part_of(asked.mask, tiles.marks, scheme, layout, place, q_offset=0, unit=tiles.unit, device=device)
    return part, scheme.loads[rank], scheme.received[rank]


def sizes_of(part: Part) -> tuple[tuple[int, int], tuple[int, int]]:
    """Heads and positions of the queries, and of the keys, that it attends with."""
    return (HEADS // part.parts, part.queries), (KV_HEADS // part.parts, part.keys)


def described(
    length: int, mask: str, strategy: str, rank: int, load: int | str, received: int, sizes: tuple[tuple[int, int], ...]
) -> Row:
    (heads, queries), (kv_heads, keys) = sizes
    return {
        "length": length, "mask": mask, "strategy": strategy, "rank": rank, "tiles": load, "received": received,
        "heads": f"{heads}/{kv_heads}", "queries": queries, "keys": keys,
    }  # fmt: skip


def in_turns(
    ways: dict[str, Callable[..., Tensor]], sizes: list[Any], device: str, repeats: int
) -> dict[str, dict[str, str]]:
    """Median milliseconds of each way: forward, backward and both, taken in turns."""
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    leaves = [inputs(*own, device, dtype) for own in sizes]
    found: dict[str, list[Tensor]] = {name: [] for name in ways}
    for at in range(repeats + 2):
        for (name, attend), tensors in zip(ways.items(), leaves, strict=True):
            times = once(attend, tensors, device)
            if at >= 2:  # the first ones compile
                found[name].append(times)
    return {name: {key: f"{value:.3f}" for key, value in medians(times).items()} for name, times in found.items()}


def inputs(queries: tuple[int, int], keys: tuple[int, int], device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and incoming gradient."""
    shapes = queries, keys, keys, queries
    made = [torch.randn(1, *shape, HEAD_DIM, device=device, dtype=dtype) for shape in shapes]
    return [*(one.requires_grad_() for one in made[:3]), made[3]]


def once(attend: Callable[..., Tensor], tensors: list[Tensor], device: str) -> Tensor:
    *leaves, grad = tensors
    marks = [mark(device)]
    out = attend(*leaves)
    marks.append(mark(device))
    torch.autograd.grad(out, leaves, grad)
    marks.append(mark(device))
    if device == "cuda":
        torch.cuda.synchronize()
    return torch.tensor([between(*pair) for pair in itertools.pairwise(marks)])


if __name__ == "__main__":
    main()
