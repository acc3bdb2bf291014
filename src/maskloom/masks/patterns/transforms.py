"""Masks made from masks: one for each head or batch row, one for several heads, query and key swapped."""

import functools
import operator
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.checks import count
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, as_mask, mask_dataclass
from maskloom.masks.signed import Signed
from maskloom.program.answers import ask
from maskloom.program.mask_program import dependence_on
from maskloom.program.program import MaskMod

__all__ = ["transposed", "per_head", "per_batch", "repeat_heads"]


class _Chosen(Mask):
    """One of several masks, chosen by an index; equal masks are evaluated once.

    ``parts`` are the distinct masks of ``masks``; ``which`` (B,) or (H,) is the number of the part for each index.
    """

    masks: tuple[Mask, ...]
    parts: tuple[Mask, ...]
    which: Tensor

    def __repr__(self) -> str:
        return f"{self.name}([{', '.join(map(repr, self.masks))}])"


@mask_dataclass
class PerHead(_Chosen):
    """See `per_head`."""

    runs_in_flash = True

    masks: tuple[Mask, ...]
    parts: tuple[Mask, ...]
    which: Tensor
    name = "per_head"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return choice(self.which[h], [ask(part, b, h, q_idx, kv_idx) for part in self.parts])

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return choice(self.which[h], [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])


@mask_dataclass
class PerBatch(_Chosen):
    """See `per_batch`."""

    masks: tuple[Mask, ...]
    parts: tuple[Mask, ...]
    which: Tensor
    name = "per_batch"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return choice(self.which[b], [ask(part, b, h, q_idx, kv_idx) for part in self.parts])

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return choice(self.which[b], [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])


def per_head(masks: Sequence[MaskMod]) -> PerHead:
    """Head h has the mask ``masks[h]``.

    ::

        per_head([causal, window(back=0)])   head 0   k0 k1 k2        head 1   k0 k1 k2
                                                  q0   x                   q0   x
                                                  q1   x  x                q1      x
                                                  q2   x  x  x             q2         x

    Give one mask for each query head; building for another number of heads raises an error. Heads with equal masks
    share the work. It holds a table (H,): for a GPU, move it with ``.to``. Source: the heads of Sparse Transformer,
    Child et al. 2019, section 4.2; local and global heads of one layer.

    Args:
        masks: H Masks or mask_mods. Each is called with the head's number in all heads.

    Raises:
        TypeError: not a list, or an item that is not a mask. ValueError: an empty list.
    """
    return PerHead(*chosen("per_head", "head", masks))


def per_batch(masks: Sequence[MaskMod]) -> PerBatch:
    """Batch row b has the mask ``masks[b]``.

    ::

        per_batch([causal, window(back=0)])   row 0   k0 k1 k2        row 1   k0 k1 k2
                                                  q0   x                  q0   x
                                                  q1   x  x               q1      x
                                                  q2   x  x  x            q2         x

    Give one mask for each batch row; building for another number of rows raises an error. Rows with equal masks share
    the work. It holds a table (B,): for a GPU, move it with ``.to``. Source: batches of mixed tasks, as in UniLM, Dong
    et al. 2019.

    Args:
        masks: B Masks or mask_mods. Each is called with the row's number in the batch: a table in it has B rows too.

    Raises:
        TypeError: not a list, or an item that is not a mask. ValueError: an empty list.
    """
    return PerBatch(*chosen("per_batch", "batch row", masks))


@mask_dataclass
class Transposed(Mask):
    """See `transposed`."""

    runs_in_flash = True

    mask: Mask
    name = "transposed"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.mask(b, h, kv_idx, q_idx)

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return self.mask.signed(b, h, kv_idx, q_idx, Signed(signed.kv, signed.q))


def transposed(mask: MaskMod) -> Mask:
    """Query and key swapped: query i sees key j where in ``mask`` query j sees key i.

    ::

        prefix(1)       k0 k1 k2        transposed(prefix(1))   k0 k1 k2
                    q0   x                                  q0   x  x  x
                    q1   x                                  q1
                    q2   x                                  q2

    ``mask | transposed(mask)`` is symmetric.

    Args:
        mask: a Mask or a mask_mod.

    Raises:
        TypeError: not a mask.
    """
    inner = as_mask(mask)
    return inner.mask if isinstance(inner, Transposed) else Transposed(inner)


@mask_dataclass
class RepeatedHeads(Mask):
    """See `repeat_heads`. ``source`` (H,) is the head of the mask for each head."""

    mask: Mask
    times: int
    heads: int
    source: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.mask(b, self.source[h], q_idx, kv_idx)

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return self.mask.signed(b, self.source[h], q_idx, kv_idx, signed)

    def __repr__(self) -> str:
        return f"repeat_heads({self.mask!r}, {self.times}, heads={self.heads})"


def repeat_heads(mask: MaskMod, times: int, *, heads: int | None = None) -> Mask:
    """Each head of a mask, ``times`` times in a row: head h uses head ``h // times`` of the mask.

    ::

        repeat_heads(per_head([causal, window(back=0)]), 2)   heads 0, 1   k0 k1        heads 2, 3   k0 k1
                                                                       q0   x                    q0   x
                                                                       q1   x  x                 q1      x

    For grouped queries: a mask for each key head becomes a mask for each query head, as ``key.repeat_interleave(times,
    dim=1)`` does with keys. One key head for all (``heads=1``, multi-query attention) works the same way. A mask that
    reads nothing by head is returned unchanged. Source: grouped-query attention, Ainslie et al. 2023, section 2.2;
    multi-query attention, Shazeer 2019.

    Args:
        mask: a Mask or a mask_mod for ``heads`` heads.
        times: number of query heads for each key head, at least 1.
        heads: number of heads of the mask; by default the number in its tables.

    Raises:
        TypeError, ValueError: a number that is not an int or below 1; ``heads`` that differs from the tables, or is
            missing although no table has it.
    """
    inner, times = as_mask(mask), count("times", times, least=1, of="heads")
    device = captures.device_of(inner) or torch.device("cpu")
    dependence = dependence_on(inner, device)
    held = dependence.sizes["h"]
    if "h" not in dependence.marks and not held:
        return inner
    heads = dependence.size("h", min(held) if heads is None and held else heads)
    return RepeatedHeads(inner, times, heads, torch.arange(heads, device=device).repeat_interleave(times))


def choice(which: Tensor, answers: Iterable[Tensor]) -> Tensor:
    """The answer of one of several masks: the one with the number ``which``."""
    return functools.reduce(operator.or_, [(which == i) & answer for i, answer in enumerate(answers)])


def chosen(name: str, item: str, given: Sequence[MaskMod]) -> tuple[tuple[Mask, ...], tuple[Mask, ...], Tensor]:
    """All masks, the distinct masks among them, and the number of the distinct mask for each."""
    if not isinstance(given, (list, tuple)):
        raise TypeError(f"{name} takes a list with one mask for each {item}; got {brief(given)}")
    if not given:
        raise ValueError(f"{name} takes one mask for each {item}; got none")
    masks = tuple(map(as_mask, given))
    parts: list[Mask] = []
    which: list[int] = []
    for mask in masks:
        which.append(next((i for i, part in enumerate(parts) if _known_equal(mask, part)), len(parts)))
        if which[-1] == len(parts):
            parts.append(mask)
    return masks, tuple(parts), torch.tensor(which, device=captures.device_of(masks))


def _known_equal(mask: Mask, other: Mask) -> bool:
    """Whether two masks are known to be equal without reading tensors. Functions are not compared while torch traces: 2.11 cannot."""
    if torch.compiler.is_dynamo_compiling() and captures.holds_code(mask):
        return mask is other
    return mask is other or (not captures.tensors(mask) and mask == other)
