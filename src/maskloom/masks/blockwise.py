"""Masks of distance and block together: the factorised patterns of the Sparse Transformer, and chunks."""

from torch import Tensor

from maskloom.masks.algebra import Mask, mask_value
from maskloom.masks.checks import count


class _Factored(Mask):
    """A causal mask that is split into two: one head sees what is near, another what is far; or one head sees both."""

    factor: int | None

    def _of_factor(self, near: Tensor, far: Tensor) -> Tensor:
        return near | far if self.factor is None else (near, far)[self.factor - 1]

    def _shown(self, parameters: str) -> str:
        return f"{self.name}({parameters}{'' if self.factor is None else f', factor={self.factor}'})"


@mask_value
class Strided(_Factored):
    """See `strided`."""

    stride: int
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

    Args:
        stride: in positions, at least 1.
        factor: 1 for the near keys alone, 2 for every ``stride``-th alone; by default both.

    Raises:
        TypeError: not an int. ValueError: a stride below 1, another factor.
    """
    return Strided(count("stride", stride, least=1), _checked_factor(factor))


@mask_value
class Fixed(_Factored):
    """See `fixed`."""

    stride: int
    summary: int
    factor: int | None
    name = "fixed"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        near = q_idx // self.stride == kv_idx // self.stride
        far = kv_idx % self.stride >= self.stride - self.summary
        return (q_idx >= kv_idx) & self._of_factor(near, far)

    def __repr__(self) -> str:
        return self._shown(f"{self.stride}, summary={self.summary}")


def fixed(stride: int, *, summary: int = 1, factor: int | None = None) -> Fixed:
    """A query sees the keys of its own block of ``stride``, up to itself, and the last ``summary`` keys of each block before.

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

    Args:
        stride: positions of a block, at least 1.
        summary: positions at the end of each block that all later queries see, 1 to ``stride``.
        factor: 1 for the own block alone, 2 for the ends of blocks alone; by default both.

    Raises:
        TypeError: not an int. ValueError: a stride or summary below 1, a summary above the stride, another factor.
    """
    stride, summary = count("stride", stride, least=1), count("summary", summary, least=1)
    if summary > stride:
        raise ValueError(f"summary is a part of a block of stride={stride} positions; got {summary}")
    return Fixed(stride, summary, _checked_factor(factor))


def _checked_factor(factor: int | None) -> int | None:
    if factor not in (None, 1, 2) or isinstance(factor, bool):
        raise ValueError(f"factor is 1 for the near keys, 2 for the far ones, or None for both; got {factor!r}")
    return factor


@mask_value
class Chunked(Mask):
    """See `chunked`."""

    size: int
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

    Source: Llama 4's ``attention_chunk_size``, and the local attention of Liu et al. 2018 (arXiv 1801.10198).

    Args:
        size: positions of a chunk, at least 1.

    Raises:
        TypeError: not an int. ValueError: below 1.
    """
    return Chunked(count("size", size, least=1))
