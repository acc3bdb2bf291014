"""What of a score_mod FlexAttention's Triton kernel cannot do, found before anything is launched.

It reads before a table at a negative constant, ``table[-1, kv_idx]`` (torch 2.11, H200).

The backward of the kernel adds to a learned tensor's gradient at the one place where score_mod reads it (torch 2.11 to 2.15,
``_inductor/kernel/flex``: `zeros_and_scatter_lowering`, `validate_joint_graph`). A tensor that is read twice, read by one
index after the other, or computed with as a whole, and an index into a value that was computed, end in an InductorError there.
"""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.cache import LRU
from maskloom.program.getitem import GETITEM, IndexByScalars, places_of
from maskloom.program.program import leaves
from maskloom.scores.alibi import Alibi
from maskloom.scores.base import ScoreMod
from maskloom.scores.compose import Composed
from maskloom.scores.relative_bias import RelativeBias
from maskloom.scores.shift import ShiftedScore
from maskloom.scores.softcap import SoftCap

_found: LRU[Hashable, list[str]] = LRU(
    1024
)  # by structure of a score_mod, and by which of its tensors learn: no reason, or one


def no_backward(score_mod: ScoreMod, device: torch.device) -> str | None:
    """Why Triton's kernel has no backward for a score_mod; None where it has one, and where that is not known.

    It is called once on scalars, for each structure, unless it is made of maskloom's own alone.
    """
    if _reads_once(score_mod):
        return None
    learns = tuple(tensor.requires_grad for tensor in captures.tensors(score_mod))
    return _kept(("backward", captures.structure(score_mod, numbers=False), learns), score_mod, _Watch(), device)


def no_forward(score_mod: ScoreMod, device: torch.device) -> str | None:
    """Why the kernel computes something else than a score_mod; None where it does not, and where that is not known."""
    if _reads_once(score_mod):
        return None
    return _kept(("forward", captures.structure(score_mod, numbers=True)), score_mod, _WatchOfPlaces(), device)


def _kept(key: Hashable, score_mod: ScoreMod, watch: "_Watch | _WatchOfPlaces", device: torch.device) -> str | None:
    found = _found.get(key)
    if found is None:
        reason = _watched(score_mod, watch, device)
        found = [] if reason is None else [reason]
        _found.put(key, found)
    return found[0] if found else None


def _reads_once(score_mod: ScoreMod) -> bool:
    """Whether it is made of maskloom's own alone, which read a tensor once each, and no two the same."""
    tensors = captures.tensors
    if isinstance(score_mod, Composed):
        held = [id(tensor) for part in score_mod.parts for tensor in tensors(part) if tensor.requires_grad]
        return len(set(held)) == len(held) and all(map(_reads_once, score_mod.parts))
    if isinstance(score_mod, ShiftedScore):
        return _reads_once(score_mod.score_mod)
    return type(score_mod) in (Alibi, SoftCap, RelativeBias)


def _watched(score_mod: ScoreMod, watch: "_Watch | _WatchOfPlaces", device: torch.device) -> str | None:
    index = torch.zeros((), dtype=torch.int64, device=device)
    with torch.enable_grad():
        score = torch.zeros((), device=device, requires_grad=True)
        if isinstance(watch, _Watch):
            watch.made[id(score)] = score
        try:
            with watch:
                score_mod(score, index, index, index, index)
        except Exception:  # the kernel's compiler will say more, or `answering`
            return None
    return watch.reason


class _Watch(IndexByScalars):
    """Notes the first operation that has no backward in the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}  # by identity: what was computed since
        self.read: dict[int, Tensor] = {}  # learned tensors that were read
        self.reason: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", None) == "__get__" and func not in _VIEWS:  # shape, dtype, device: no computation
            return super().__torch_function__(func, types, args, kwargs)
        for tensor in _learning((args, *(kwargs or {}).values())):
            self.reason = self.reason or self._obstacle(func, tensor, args)
        made = super().__torch_function__(func, types, args, kwargs)
        self.made |= {id(tensor): tensor for tensor in (made if isinstance(made, (tuple, list)) else (made,))}
        return made

    def _obstacle(self, func: Any, tensor: Tensor, args: tuple[Any, ...]) -> str | None:
        """What stands against a backward where an operation gets a tensor that learns."""
        if id(tensor) in self.made:
            return "score_mod indexes what it computed itself" if func is Tensor.__getitem__ else None
        if func in (Tensor.detach, Tensor.size, Tensor.dim):
            return None
        what = f"a learned tensor of shape {tuple(tensor.shape)}"
        if not (func is Tensor.__getitem__ and args[0] is tensor and _is_one_entry(tensor, args[1])):
            return f"score_mod does more with {what} than to read one entry by one index, as in table[h, q_idx]"
        if id(tensor) in self.read:
            return f"score_mod reads {what} more than once; give it a clone of that for each"
        self.read[id(tensor)] = tensor
        return None


class _WatchOfPlaces(IndexByScalars):
    """Notes the first table that is read at a negative number and at an index."""

    reason: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in GETITEM and self.reason is None:
            places = places_of(args[1])
            negative = [place for place in places if type(place) is int and place < 0]
            if negative and any(isinstance(place, Tensor) for place in places):
                self.reason = (
                    f"score_mod reads a table at {negative[0]}, which its kernel does not count from the end: write "
                    f"table.shape[{places.index(negative[0])}] - {-negative[0]}"
                )
        return super().__torch_function__(func, types, args, kwargs)


_VIEWS = [getattr(Tensor, name).__get__ for name in ("T", "mT", "H", "mH")]


def _learning(arguments: Any) -> list[Tensor]:
    """The tensors among arguments that get a gradient, those in lists too."""
    return [tensor for tensor in leaves(arguments, Tensor) if tensor.requires_grad]


def _is_one_entry(table: Tensor, index: Any) -> bool:
    """Whether an index has a number, or a scalar, for each dimension of a table."""
    places = places_of(index)
    scalar = [type(place) is int or (isinstance(place, Tensor) and not place.ndim) for place in places]
    return len(places) == table.ndim and all(scalar)
