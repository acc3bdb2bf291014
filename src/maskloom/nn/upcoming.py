"""The next tokens of a cache: which of them are real, and where they go."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maskloom.core.checks import flags, length_table, readable
from maskloom.core.torch_state import autocast_to, is_tracing
from maskloom.core.words import brief


class Upcoming(NamedTuple):
    """Where the next tokens go, known before their keys are.

    Attributes:
        positions: int64 (B, L), the position of each token in its row, -1 for padding.
        is_padded: whether any may be padding.
        longest: the longest row that there can be after them, as far as the host knows.
        behind: int64 (B,) on the CPU, by how many tokens each row is then shorter than that; None: as before.
        before: the longest row that there can be before them.
    """

    positions: Tensor
    is_padded: bool
    longest: int
    behind: Tensor | None = None
    before: int = 0


class Counted(NamedTuple):
    """What the host knows of a cache's rows: the longest there can be, by how many each is shorter, and whether none is written."""

    longest: int
    behind: Tensor | None
    is_fresh: bool


class Prompt(NamedTuple):
    """The real tokens of each row among the first ones, padded on the right.

    Attributes:
        lengths: integers (B,), on the cache's device.
        counts: the same on the CPU, and longest: the largest of them, where the host knows them.
    """

    lengths: Tensor
    counts: Tensor | None
    longest: int | None

    @classmethod
    def of(cls, lengths: Tensor | Sequence[int], batch: int, device: torch.device) -> "Prompt":
        """From what a user gave, which may be written to later."""
        table = length_table("lengths", lengths)
        if len(table) != batch:
            raise ValueError(f"lengths has one for each of {batch} batch rows; got {len(table)}")
        on_device = table.to(device, copy=True)
        return cls(on_device, table.long().clone(), int(table.max())) if readable(table) else cls(on_device, None, None)


def real_tokens(
    prompt: Prompt | None, pads: Tensor | None, shape: tuple[int, int], device: torch.device
) -> tuple[Tensor | None, Tensor | None, int]:
    """Which of the next tokens (B, L) are real, None for all; how many in each row, None where the host does not know it; and at
    most in one row, as far as it knows."""
    length = shape[1]
    if pads is not None:
        if prompt is not None:
            raise ValueError("the cache was made with the lengths of its first tokens: give pads or lengths, not both")
        real = ~_checked_pads(pads, shape)
        return real.to(device), real.sum(1) if readable(real) else None, length
    if prompt is None:
        return None, None, length
    if prompt.longest is not None and prompt.longest > length:
        raise ValueError(
            f"lengths go up to {prompt.longest}, and the first append has {length} tokens; "
            "a prompt in chunks is given pads with each, and no lengths"
        )
    real = torch.arange(length, device=device) < prompt.lengths[:, None]
    counts = None if is_tracing() else prompt.counts  # a graph cannot read them
    return real, counts, length if prompt.longest is None else prompt.longest


def _checked_pads(pads: Tensor, shape: tuple[int, int]) -> Tensor:
    table = flags("pads", pads, true_means="padding")
    if tuple(table.shape) != shape:
        raise ValueError(f"pads has shape (B, L) = {shape} here, True = padding; got {tuple(table.shape)}")
    return table


def longest_of(counts: Tensor) -> tuple[int, Tensor]:
    """The largest of the tokens in each row, and by how many each row has fewer."""
    longest = int(counts.max())
    return longest, longest - counts


def check_taken_back(most: Tensor, counts: Tensor, kept: Tensor, size: int, window: int, length: int | Tensor) -> None:
    """Raise a ValueError if a rolling cache has overwritten keys which would be seen again.

    Args:
        most, counts, kept: integers (B,) on the CPU, the tokens that each row has had at most, that it has, and that it keeps.
        length: what was asked for.
    """
    taken = torch.where((most > size) & (kept < counts), most - kept, 0)
    row = int(taken.argmax())
    if int(taken[row]) > size - window:
        raise ValueError(
            f"a rolling cache can take back size - window = {size - window} tokens; "
            f"length={brief(length)} of rows that had {int(most[row])} takes back {int(taken[row])}"
        )


def check_appended(keys: Tensor, values: Tensor, stored_keys: Tensor, stored_values: Tensor) -> None:
    """Raise a TypeError or ValueError if new keys and values do not fit those of a cache; warn of lost gradients."""
    for name, tensor, stored in (("keys", keys, stored_keys), ("values", values, stored_values)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a tensor (B, Hkv, L, D); got {type(tensor).__name__}")
        batch, heads, _, width = stored.shape
        if tensor.ndim != 4 or tensor.shape[:2] != (batch, heads) or tensor.shape[3] != width or not tensor.shape[2]:
            raise ValueError(f"{name} of this cache are ({batch}, {heads}, L, {width}); got {tuple(tensor.shape)}")
        if tensor.device != stored.device:
            raise ValueError(f"the cache is on {stored.device} and {name} on {tensor.device}; make it with device=")
        if tensor.dtype != stored.dtype and autocast_to(stored.device) is None:
            raise ValueError(f"the cache is {stored.dtype} and {name} {tensor.dtype}; make it with dtype=")
    if keys.shape[2] != values.shape[2]:
        raise ValueError(f"keys and values are of as many tokens; got {keys.shape[2]} and {values.shape[2]}")
    if torch.is_grad_enabled() and (keys.requires_grad or values.requires_grad) and not torch.compiler.is_compiling():
        warnings.warn(
            "a KVCache is for inference: no gradient passes through the keys and values in it; use torch.no_grad()",
            UserWarning,
            stacklevel=3,
        )
