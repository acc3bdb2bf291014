"""One sequence over several GPUs, forward and backward in bfloat16: each strategy against one GPU of the same machine.

    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --lengths 32768 65536 131072
    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --masks window documents --lengths 1048576 --repeats 3
    torchrun --nproc-per-node 2 benchmarks/context_parallel.py --tiny --device cpu

Every rank has the whole sequence once, for ``attend`` on its GPU alone, and then its rows of it. Before a strategy is timed, its
output and gradients are compared with those of one GPU; ``error`` is the largest relative error (norms) of the four. Of 1,009 positions both are
compared with the float64 reference first, over the masks of `checked_masks`. Contenders take turns in rounds, in an
order of each round; a time is the median over rounds of the slowest rank. ``received`` is counted at the collectives, ``planned`` is what the plan said: bytes of
a forward pass. ``torch`` is torch's own context parallel around scaled_dot_product_attention, where it applies.
"""

import argparse
import itertools
import os
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from clocks import HEAD_START
from rows import append
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the tests are no package that is installed

import maskloom as loom
from maskloom.distributed import planning
from tests.distributed.counting import counted

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128
QUEUED = 3  # steps
WINDOW = 1024
STRATEGIES = ("heads", "gather", "needed", "auto")
Run = Callable[[], Tensor]
"""A forward pass; its output has a gradient."""


def main() -> None:
    arguments = parsed()
    mesh = begin(arguments.device)
    first = mesh.get_local_rank() == 0
    check_all(mesh, arguments)
    for length in [] if arguments.only_check else arguments.lengths:
        for name in arguments.masks:
            for row in measure(mesh, name, length, arguments):
                if first:
                    write(arguments, row)
    dist.destroy_process_group()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32768, 65536, 131072])
    parser.add_argument("--masks", nargs="+", choices=["causal", "documents", "window"], default=None)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--repeats", type=int, default=10, help="rounds")
    parser.add_argument("--no-check", action="store_true", help="no comparison with the reference at 1,009 positions")
    parser.add_argument("--only-check", action="store_true", help="nothing but that comparison")
    parser.add_argument("--tiny", action="store_true", help="few positions: does everything run?")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/context_parallel.csv"))
    arguments = parser.parse_args()
    if arguments.tiny:
        arguments.lengths, arguments.repeats = [300], 2
    arguments.masks = arguments.masks or ["causal", "documents", "window"]
    return arguments


def write(arguments: argparse.Namespace, row: dict[str, object]) -> None:
    append(arguments.out, row)
    print(" ".join(f"{key}={value}" for key, value in row.items()), flush=True)


def begin(device: str) -> DeviceMesh:
    world = int(os.environ["WORLD_SIZE"])
    if device == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo")
    return init_device_mesh(device, (world,), mesh_dim_names=("cp",))


# -- what is attended to -----------------------------------------------------------------------------------------------


def mask_of(name: str, length: int) -> loom.Mask:
    if name == "documents":
        return loom.causal & loom.documents(offsets=document_offsets(length))
    window = min(WINDOW, max(2, length // 8))
    return loom.causal if name == "causal" else loom.window(back=window - 1)


def document_offsets(length: int) -> Tensor:
    """Documents of 1,024 to 8,192 positions in random order; shorter ones in a short row."""
    generator = torch.Generator().manual_seed(0)
    longest = min(8192, max(2, length // 4))
    lens = torch.randint(longest // 8 + 1, longest + 1, (length // (longest // 8 + 1) + 1,), generator=generator)
    ends = lens.cumsum(0)
    return torch.cat([torch.zeros(1, dtype=torch.int64), ends[ends < length], torch.tensor([length])])


def checked_masks(length: int) -> dict[str, loom.Mask]:
    ids = torch.arange(length) // 97
    patterns = (loom.causal, loom.window(back=31), loom.masks.chunked(64), loom.causal & loom.documents(ids))
    return {
        "causal": loom.causal,
        "everything": loom.masks.everything,
        "window and sinks": loom.causal & (loom.window(back=100) | loom.sinks(4)),
        "documents": loom.documents(ids),
        "prefix": loom.causal | loom.prefix(length // 3),
        "lengths": loom.causal & loom.lengths([length - 5]),
        "by head": loom.masks.per_head([patterns[head % 4] for head in range(HEADS)]),
    }


def made(length: int, device: str, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and incoming gradient of the whole, the same on every rank."""
    generator = torch.Generator(device).manual_seed(0)
    counts = (HEADS, KV_HEADS, KV_HEADS, HEADS)
    return [
        torch.randn(1, count, length, HEAD_DIM, generator=generator, device=device, dtype=dtype) for count in counts
    ]


# -- correct first -----------------------------------------------------------------------------------------------------


def check_all(mesh: DeviceMesh, arguments: argparse.Namespace) -> None:
    """Every strategy against the float64 reference, or an AssertionError."""
    if arguments.no_check:
        return
    length = 131 if arguments.tiny else 1009
    dtype = torch.bfloat16 if arguments.device == "cuda" else torch.float32
    tensors = made(length, arguments.device, dtype)
    for name, mask in checked_masks(length).items():
        here = mask.to(arguments.device)
        truth = results(lambda *qkv, held=here: loom.reference(*qkv, held)[0], [one.double() for one in tensors])
        alone = errors(results(lambda *qkv, held=here: loom.attend(*qkv, held), tensors), truth)
        for strategy in STRATEGIES:
            plan = plan_of(mask, length, mesh, strategy)
            error = errors(whole_results(plan, tensors), truth)
            if mesh.get_local_rank() == 0:
                print(f"1009 positions, {name}, {strategy}: error {error:.1e}, of one {alone:.1e}", flush=True)
            assert error < 1.3 * alone + 1e-5, f"{name}, {strategy}: {error:.1e}, on one GPU {alone:.1e}"


def results(attend: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of the whole."""
    *qkv, grad = tensors
    leaves = [one.detach().requires_grad_() for one in qkv]
    out = attend(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def whole_results(plan: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients of the whole, by a plan."""
    *qkv, grad = (plan.shard(one, 2) for one in tensors)
    return [plan.unshard(one, 2) for one in results(plan.attend, [*qkv, grad])]


def errors(found: list[Tensor], truth: list[Tensor]) -> float:
    """The largest relative error of output and gradients."""
    return max(float((one.double() - true).norm() / true.norm()) for one, true in zip(found, truth, strict=True))


def plan_of(mask: loom.Mask, length: int, mesh: DeviceMesh, strategy: str) -> Any:
    dtype = torch.bfloat16 if mesh.device_type == "cuda" else torch.float32
    return loom.distributed.plan(
        mask, length, mesh, heads=(HEADS, KV_HEADS), strategy=strategy, head_dim=HEAD_DIM, dtype=dtype
    )


# -- times -------------------------------------------------------------------------------------------------------------


def measure(mesh: DeviceMesh, name: str, length: int, arguments: argparse.Namespace) -> Iterator[dict[str, object]]:
    device = arguments.device
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    mask, tensors = mask_of(name, length), made(length, device, dtype)
    whole = mask.to(device)
    one = Contender("one GPU", lambda *qkv: loom.attend(*qkv, whole), tensors)
    truth = results(one.attend, tensors)
    contenders, rows = [one], {"one GPU": {"strategy": "", "error": 0.0}}
    for strategy in arguments.strategies:
        label = f"plan, {strategy}"
        rows[label], local, plan = planned(mask, length, mesh, strategy, tensors, truth)
        contenders.append(Contender(label, plan.attend, local))
    if name == "causal" and device == "cuda":
        theirs = TorchContender(mesh, tensors)
        with failing(theirs):
            theirs.check(truth[0])
        contenders.append(theirs)
        rows[theirs.name] = {"strategy": "", "note": "keys and values repeated for every query head"}
    del truth
    times = timed(contenders, mesh, arguments.repeats)
    alone = times["one GPU"]["step_ms"]
    for contender in contenders:
        found = times[contender.name]
        yield {
            "ranks": mesh.size(), "length": length, "mask": name, "contender": contender.name,
            **{key: rows[contender.name].get(key, "") for key in COLUMNS},
            **{key: f"{found[key]:.3f}" if key in found else "" for key in TIMES},
            "speedup": f"{alone / found['step_ms']:.3f}" if found.get("step_ms") else "",
            "note": contender.note or rows[contender.name].get("note", ""),
        }  # fmt: skip


TIMES = ("forward_ms", "backward_ms", "step_ms")
COLUMNS = ("strategy", "error", "planned", "received", "balance", "plan_ms", "kept_plan_ms")


def planned(
    mask: loom.Mask, length: int, mesh: DeviceMesh, strategy: str, tensors: list[Tensor], truth: list[Tensor]
) -> tuple[dict[str, object], list[Tensor], Any]:
    """What is known of a plan, this rank's tensors, and the plan."""
    plan_ms = {}
    for name in ("first", "plan_ms", "kept_plan_ms"):  # what torch loads and records once; a new plan; the same plan
        if name == "plan_ms":
            planning._plans.clear()
        wait(mesh)
        start = time.perf_counter()
        plan = plan_of(mask, length, mesh, strategy)
        plan_ms[name] = f"{1e3 * (time.perf_counter() - start):.1f}"
    local = [plan.shard(one, 2) for one in tensors]
    with counted() as moved, torch.no_grad():
        plan.attend(*local[:3])
    received = torch.tensor(moved.bytes)
    dist.all_reduce(received, dist.ReduceOp.MAX)
    error = max(
        itertools.starmap(apart, zip(results(plan.attend, local), (plan.shard(one, 2) for one in truth), strict=True))
    )
    assert error < 0.02, f"{strategy} at {length}: relative error {error:.1e} against one GPU"
    row: dict[str, object] = {
        "strategy": plan.scheme.said, "error": f"{error:.2e}", "planned": plan.bytes, "received": int(received),
        "balance": f"{plan.balance:.4f}", **plan_ms,
    }  # fmt: skip
    return row, local, plan


def apart(found: Tensor, truth: Tensor) -> float:
    """The relative error of what all ranks have together: each compares its rows, since of a long sequence nobody has room for more."""
    squares = torch.stack([(one.float() ** 2).sum().double() for one in (found - truth, truth)])
    dist.all_reduce(squares)
    return float((squares[0] / squares[1]).sqrt())


class Contender:
    """Something to time: attention, and its tensors on this rank."""

    def __init__(self, name: str, attend: Callable[..., Tensor], tensors: list[Tensor]) -> None:
        self.name, self.attend, self.note = name, attend, ""
        self.leaves, self.grad = [one.detach().requires_grad_() for one in tensors[:3]], tensors[3]

    @contextmanager
    def ready(self) -> Iterator[Run]:
        """A forward pass to run."""
        yield lambda: self.attend(*self.leaves)


class TorchContender(Contender):
    """torch's own context parallel: causal, by scaled_dot_product_attention."""

    def __init__(self, mesh: DeviceMesh, tensors: list[Tensor]) -> None:
        query, key, value, grad = tensors
        repeats = query.shape[1] // key.shape[1]
        own = [
            query,
            key.repeat_interleave(repeats, 1),
            value.repeat_interleave(repeats, 1),
            grad.chunk(mesh.size(), 2)[0],
        ]
        super().__init__("torch context_parallel", _sdpa, own)
        self.mesh = mesh

    @contextmanager
    def ready(self) -> Iterator[Run]:
        from torch.distributed.tensor.experimental import context_parallel
        from torch.nn.attention import SDPBackend, sdpa_kernel

        buffers = [one.detach().clone() for one in self.leaves]
        kernels = [SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]
        with context_parallel(self.mesh, buffers=buffers, buffer_seq_dims=[2] * 3), sdpa_kernel(kernels):
            self.local = [one.detach().requires_grad_() for one in buffers]  # the buffers are resized behind the block
            yield lambda: self.attend(*self.local, is_causal=True)

    def check(self, truth: Tensor) -> None:
        """Its rows lie in an order of its own; together they are as long as those of one GPU, which local attention's are not."""
        with self.ready() as forward:
            squares = (forward().detach().float() ** 2).sum().double()
        dist.all_reduce(squares)
        if not 0.99 < float(squares.sqrt()) / float(truth.float().norm()) < 1.01:
            self.note = "it attends to the rows of each rank alone"


def _sdpa(*tensors: Tensor, **options: Any) -> Tensor:
    """Whatever the function is now: torch replaces it where it shares a sequence."""
    return torch.nn.functional.scaled_dot_product_attention(*tensors, **options)


@contextmanager
def failing(contender: Contender) -> Iterator[None]:
    """An error of torch's own, where this torch or GPU has none, is said in its row."""
    try:
        yield
    except Exception as error:
        if not isinstance(contender, TorchContender):
            raise
        contender.note = f"{type(error).__name__}: {str(error).splitlines()[0]}"


def timed(contenders: list[Contender], mesh: DeviceMesh, repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of forward, backward and both, of the slowest rank."""
    rounds: dict[str, list[Tensor]] = {contender.name: [] for contender in contenders}
    for at in range(repeats + 2):
        for contender in random.Random(at).sample(contenders, len(contenders)):  # nobody always behind the same
            if contender.note:
                continue
            with failing(contender):
                found = once(contender, mesh)
                if at >= 2:  # the first ones compile
                    rounds[contender.name].append(found)
    return {name: medians(found) for name, found in rounds.items()}


def once(contender: Contender, mesh: DeviceMesh) -> Tensor:
    """Milliseconds of a forward and of its backward: float64 (2,), the largest of all ranks.

    Several steps are queued one behind another, as in training, behind some idle time of the GPU in which the host launches
    them; what the host takes for a step of a GPU that waits for it is not attention's.
    """
    with contender.ready() as forward:
        wait(mesh)
        dist.barrier()
        if mesh.device_type == "cuda":
            torch.cuda._sleep(HEAD_START)
        marks = [mark(mesh.device_type)]
        for _ in range(QUEUED):
            out = forward()
            marks.append(mark(mesh.device_type))
            out.backward(contender.grad)
            marks.append(mark(mesh.device_type))
            for leaf in contender.leaves:
                leaf.grad = None
        wait(mesh)
    times = torch.tensor([between(*pair) for pair in itertools.pairwise(marks)], dtype=torch.float64)
    found = times.unflatten(0, (QUEUED, 2)).mean(0)
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return found


def mark(device: str) -> Any:
    if device == "cpu":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def between(first: Any, second: Any) -> float:
    return 1e3 * (second - first) if isinstance(first, float) else first.elapsed_time(second)


def wait(mesh: DeviceMesh) -> None:
    if mesh.device_type == "cuda":
        torch.cuda.synchronize()


def medians(found: list[Tensor]) -> dict[str, float]:
    if not found:
        return {}
    forward, backward = (statistics.median(float(one[part]) for one in found) for part in range(2))
    step = statistics.median(float(one.sum()) for one in found)
    return {"forward_ms": forward, "backward_ms": backward, "step_ms": step}


if __name__ == "__main__":
    main()
