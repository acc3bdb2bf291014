"""Checkpoints by torch.distributed.checkpoint: a folder for each, whole or not there at all.

A checkpoint is written into ``step-00000100.part`` and renamed when all of it is on the disk. So a run that is killed at any
moment leaves the last whole checkpoint as it was.
"""

import contextlib
import json
import os
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_state_dict, set_state_dict
from torch.optim import Optimizer

META = "meta.json"
_SHARDS = ".metadata or a .distcp file"
Meta = dict[str, Any]


def latest(out: Path) -> Path | None:
    """The newest whole checkpoint in a folder; None without any, or where the folder is not there yet."""
    if out.exists() and not out.is_dir():
        raise SystemExit(f"--out is a folder for checkpoints and metrics.csv; {out} is a file")
    newest = max((path for path in out.glob("step-[0-9]*") if path.is_dir() and path.suffix != ".part"), default=None)
    if newest is not None and not (newest / META).exists():  # it had one when it got its name
        raise _unreadable(newest, META, FileNotFoundError("it is not there"))
    return newest


def read_meta(checkpoint: Path, **needed: type) -> Meta:
    """What the checkpoint says of itself: the step, and all that `save` was given; with entries of the types that are needed."""
    with reading(checkpoint, META):
        meta = json.loads((checkpoint / META).read_text())
        if not isinstance(meta, dict):
            raise ValueError(f"it holds no entries, but {_brief(meta)}")
        for name, kind in {"step": int, **needed}.items():
            if not isinstance(meta.get(name), kind):
                raise ValueError(f"its {name!r} is {_brief(meta.get(name))}")
    return meta


@contextlib.contextmanager
def reading(checkpoint: Path, file: str) -> Iterator[None]:
    """What fails in here fails because of a file of the checkpoint: say which, and what can be done."""
    try:
        yield
    except (Exception, CheckpointException) as error:  # a pickle that is damaged raises anything
        raise _unreadable(checkpoint, file, error) from error


def save(out: Path, step: int, model: nn.Module, optimizer: Optimizer, meta: Meta, *, keep: int = 2) -> None:
    """Write a checkpoint, by all ranks together, and remove all but the newest ``keep``."""
    final = out / f"step-{step:08d}"
    part = final.with_suffix(".part")
    if (final / META).exists():
        return
    if _rank() == 0:
        for old in out.glob("step-*.part"):  # of a run that was killed
            shutil.rmtree(old)
        part.mkdir(parents=True)
    _barrier()
    try:
        _quietly(dcp.save, _state(model, optimizer), checkpoint_id=part)
        if _rank() == 0:
            _write(part / META, json.dumps({"step": step, **meta}))
            os.rename(part, final)
            _sync(out)
    except (OSError, CheckpointException) as error:
        raise SystemExit(_failed(out, part, step, error)) from error
    _barrier()
    if _rank() == 0:
        for old in sorted(path.parent for path in out.glob(f"step-*/{META}"))[:-keep]:
            shutil.rmtree(old)


def load(checkpoint: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Set model, optimiser and the generators of this rank to what they were.

    A run that moves to a GPU finds the generator of the CPU alone.
    """
    state, generators, there = _state(model, optimizer), f"generators-{_rank()}", _names(checkpoint)
    state[generators] = {name: kept for name, kept in state[generators].items() if f"{generators}.{name}" in there}
    _read(state, checkpoint)
    with reading(checkpoint, _SHARDS):
        set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
        _set_generators(state[generators])


def load_model(checkpoint: Path, model: nn.Module) -> None:
    """Load the weights alone, whatever number of ranks wrote them."""
    state = {"model": get_model_state_dict(model)}
    _names(checkpoint)
    _read(state, checkpoint)


def refuse_other(checkpoint: Path, theirs: Meta, ours: Meta) -> None:
    """Raise for a checkpoint of another model, corpus or number of processes."""
    there = _flat(theirs)
    for name, value in _flat(ours).items():
        if there.get(name) != value:
            shown = f"{name} is {_brief(there.get(name))} there, and {_brief(value)} here"
            raise SystemExit(f"{checkpoint} is of another run: {shown}")


def _flat(meta: Meta, prefix: str = "") -> Meta:
    """With ``model.d_model`` for what is inside of ``model``."""
    found: Meta = {}
    for name, value in meta.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _brief(value: object) -> str:
    return str(value) if len(str(value)) < 60 else f"{str(value)[:60]}..."


def _state(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    weights, moments = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": moments, f"generators-{_rank()}": _generators()}


def _generators() -> dict[str, Tensor]:
    found = {"cpu": torch.get_rng_state()}
    return found | ({"cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_generators(states: dict[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def _failed(out: Path, part: Path, step: int, error: BaseException) -> str:
    shutil.rmtree(part, ignore_errors=True)
    free = shutil.disk_usage(out).free >> 20
    return (
        f"the checkpoint of step {step} could not be written to {out}, where {free} MiB are free: "
        f"{str(error).splitlines()[-1]}; the last whole one is {latest(out) or 'none'}"
    )


def _names(checkpoint: Path) -> set[str]:
    """The names of what the checkpoint holds, as its .metadata says."""
    with reading(checkpoint, ".metadata"):
        return set(dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata)


def _read(state: dict[str, Any], checkpoint: Path) -> None:
    with reading(checkpoint, _SHARDS):
        _quietly(dcp.load, state, checkpoint_id=checkpoint)


def _unreadable(checkpoint: Path, file: str, error: BaseException) -> SystemExit:
    """What is wrong with a file of a checkpoint, and what can be done. Nothing is removed, and nothing written."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    why = f"{file}: {type(error).__name__}: {(str(error).strip().splitlines() or ['no more is known'])[0]}"
    is_gone = isinstance(error, (FileNotFoundError, IsADirectoryError, NotADirectoryError))
    if isinstance(error, (OSError, torch.OutOfMemoryError)) and not is_gone:
        return SystemExit(f"{checkpoint} cannot be read: {why}")
    older = [path.parent for path in checkpoint.parent.glob(f"step-*/{META}") if path.parent.name < checkpoint.name]
    what = f"--resume goes on from {max(older).name}" if older else "training begins anew, for there is none before it"
    return SystemExit(f"{checkpoint} is damaged, and if it is moved away {what}: {why}")


def _write(path: Path, text: str) -> None:
    with path.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    number = os.open(folder, os.O_RDONLY)
    os.fsync(number)
    os.close(number)


def _quietly(call: Any, state: dict[str, Any], **options: Any) -> None:
    with warnings.catch_warnings(action="ignore"):  # that one process is one process
        call(state, no_dist=not dist.is_initialized(), **options)


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _barrier() -> None:
    if dist.is_initialized():
        dist.barrier()
