"""Masks of distances and blocks: the factorised patterns of the Sparse Transformer, and chunks."""

from collections.abc import Sequence

from torch import Tensor

from maskloom.core.checks import as_int, count, integers, is_number, is_zero, readable
from maskloom.core.symbols import as_tensor, known
from maskloom.core.words import brief
from maskloom.masks.algebra import Mask, mask_dataclass, shown
from maskloom.masks.lookups import of_head

__all__ = ["strided", "fixed", "chunked"]


class _Factored(Mask):
    """A causal mask that can be split into two factors, near keys and far keys; a head sees one factor, or both."""

    factor: int | None

    def _of_factor(self, near: Tensor, far: Tensor) -> Tensor:
        return near | far if self.factor is None else (near, far)[self.factor - 1]

    def _shown(self, parameters: str) -> str:
        return f"{self.name}({parameters}{'' if self.factor is None else f', factor={self.factor}'})"


@mask_dataclass
class Strided(_Factored):
    """See `strided`."""

    stride: int | Tensor
    factor: int | None
    name = "strided"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        behind = q_idx - kv_idx
        return (behind >= 0) & self._of_factor(behind <= self.stride, behind % self.stride == 0)

    def __repr__(self) -> str:
        return self._shown(f"{self.stride}")


def strided(stride: int, *, factor: int | None = None) -> Strided:
    """A query sees its own key, the ``stride`` keys before it, and farther back every ``stride``-th key, counted from its own.

    ::

        strided(2)      k0 k1 k2 k3 k4 k5      strided(2, factor=2)   k0 k1 k2 k3 k4 k5
                    q0   x                                        q0   x
                    q1   x  x                                     q1      x
                    q2   x  x  x                                  q2   x     x
                    q3      x  x  x                               q3      x     x
                    q4   x     x  x  x                            q4   x     x     x
                    q5      x     x  x  x                         q5      x     x     x

    ``per_head([strided(n, factor=1), strided(n, factor=2)])`` gives each head one of the two. For data with a period, such
    as rows of an image. Source: Sparse Transformer, Child et al. 2019, section 4.3 (strided attention).

    The paper and its code count the near keys in two ways. In the paper, as here, they are ``stride`` keys before the
    own key. In its code (``local`` with ``local_attn_ctx=stride``) they are ``stride`` keys including the own key:
    write ``window_counting_itself(stride)`` in place of factor 1. Both factors together are the same mask in both ways.

    Args:
        stride: in positions, at least 1.
        factor: 1 for the near keys alone, 2 for every ``stride``-th key alone; by default both.

    Raises:
        TypeError: not an int. ValueError: a stride below 1, another factor.
    """
    return Strided(count("stride", stride, least=1), _checked_factor(factor))


@mask_dataclass
class Fixed(_Factored):
    """See `fixed`."""

    stride: int | Tensor
    summary: int | Tensor
    factor: int | None
    part: int | Tensor
    name = "fixed"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        near = q_idx // self.stride == kv_idx // self.stride
        place, end = kv_idx % self.stride, self.stride - of_head(self.part, h) * self.summary
        far = (place >= end - self.summary) & (place < end)
        return (q_idx >= kv_idx) & self._of_factor(near, far)

    def __repr__(self) -> str:
        part = "" if is_zero(self.part) else f", part={shown(self.part)}"
        return self._shown(f"{self.stride}, summary={self.summary}{part}")


def fixed(stride: int, *, summary: int = 1, factor: int | None = None, part: int | Tensor | Sequence[int] = 0) -> Fixed:
    """A query sees the keys of its own block of ``stride``, up to itself, and the last ``summary`` keys of earlier blocks.

    ::

        fixed(3)        k0 k1 k2 k3 k4 k5      fixed(3, factor=2)   k0 k1 k2 k3 k4 k5
                    q0   x                                      q0
                    q1   x  x                                   q1
                    q2   x  x  x                                q2         x
                    q3         x  x                             q3         x
                    q4         x  x  x                          q4         x
                    q5         x  x  x  x                       q5         x        x

    ``per_head([fixed(n, factor=1), fixed(n, factor=2)])`` gives each head one of the two. For data without a period, such as
    text. Source: Sparse Transformer, Child et al. 2019, section 4.3 (fixed attention; ``summary`` is its c).

    Several heads do better if each has its own part of the blocks, counted from the end: ``part=torch.arange(heads) %
    parts``, as in the paper's code (``num_verts``) and in DeepSpeed (``num_different_global_patterns``)::

        fixed(3, part=[0, 1])   head 0   k0 k1 k2 k3 k4 k5        head 1   k0 k1 k2 k3 k4 k5
                                     q0   x                            q0   x
                                     q1   x  x                         q1   x  x
                                     q2   x  x  x                      q2   x  x  x
                                     q3         x  x                   q3      x     x
                                     q4         x  x  x                q4      x     x  x
                                     q5         x  x  x  x             q5      x     x  x  x

    Args:
        stride: positions of a block, at least 1.
        summary: the number of positions at the end of each block that all later queries see, 1 to ``stride``.
        factor: 1 for the own block alone, 2 for the ends of blocks alone; by default both.
        part: which ``summary`` positions of a block all later queries see, counted from its end: 0 for the last ones, 1
            for the ones before those, and so on; an int, or integers (H,), one for each query head.

    Raises:
        TypeError: not an int. ValueError: a stride or summary below 1, a summary above the stride, another factor, a
            part that the block does not have (tensors are checked on the CPU only).
    """
    stride, summary = count("stride", stride, least=1), count("summary", summary, least=1)
    if known(summary > stride):
        raise ValueError(f"summary is a part of a block of stride={stride} positions; got {summary}")
    return Fixed(stride, summary, _checked_factor(factor), _checked_part(part, stride // summary))


def _checked_part(part: int | Tensor | Sequence[int], parts: int) -> int | Tensor:
    if is_number(part) or isinstance(part, (bool, float)):
        checked: int | Tensor = count("part", part, of="parts")
    else:
        checked = integers("part", part)
        if checked.ndim != 1 or checked.numel() == 0:
            raise ValueError(f"part is one number, or one for each head, (H,); got shape {tuple(checked.shape)}")
    table = as_tensor(checked)
    if readable(table) and not bool(((table >= 0) & (table < parts)).all()):
        raise ValueError(
            f"part is one of the {parts} parts of a block, 0 to {parts - 1}; got {int(table[(table < 0) | (table >= parts)][0])}"
        )
    return checked


def _checked_factor(factor: int | None) -> int | None:
    number = as_int(factor)
    if number not in (None, 1, 2) or isinstance(number, bool):
        raise ValueError(f"factor is 1 for the near keys, 2 for the far ones, or None for both; got {brief(factor)}")
    return number


@mask_dataclass
class Chunked(Mask):
    """See `chunked`."""

    size: int | Tensor
    name = "chunked"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx // self.size == kv_idx // self.size


def chunked(size: int) -> Chunked:
    """A query sees the keys of its own chunk of ``size`` positions. ``causal & chunked(n)`` is Llama 4's local attention.

    ::

        chunked(2)      k0 k1 k2 k3 k4        causal & chunked(2)   k0 k1 k2 k3 k4
                    q0   x  x                                   q0   x
                    q1   x  x                                   q1   x  x
                    q2         x  x                             q2         x
                    q3         x  x                             q3         x  x
                    q4               x                          q4               x

    ``causal | chunked(n)`` sees its own chunk and all chunks before it: video frames that are generated chunk by chunk
    (CausVid, Yin et al. 2025; Self-Forcing, Huang et al. 2025).

    Chunks are counted from position 0. So in rows with padding on the left, ``causal & chunked(n) & real(...)`` counts
    them from the start of the padding, and in packed rows from the first document. To count from the text, write
    ``shifted(causal & chunked(n), q_offset=-left, kv_offset=-left) & real(...)``, where ``left``, integers (B,), is the
    padding of each row, or ``within(documents(...), causal & chunked(n))``.

    Source: Llama 4's ``attention_chunk_size``, and the local attention of Liu et al. 2018 (arXiv 1801.10198).

    Args:
        size: positions of a chunk, at least 1.

    Raises:
        TypeError: not an int. ValueError: below 1.
    """
    return Chunked(count("size", size, least=1))
