"""Masks of the key's own position."""

from collections.abc import Sequence
from typing import SupportsIndex

from torch import Tensor

from maskloom.masks.algebra import Mask, mask_value
from maskloom.masks.checks import count, length_table


@mask_value
class Prefix(Mask):
    """See `prefix`."""

    n: int | Tensor
    name = "prefix"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        n = self.n[b] if isinstance(self.n, Tensor) else self.n
        return kv_idx < n


@mask_value
class Sinks(Mask):
    """See `sinks`."""

    n: int
    name = "sinks"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx < self.n) & (kv_idx <= q_idx)


def prefix(n: int | Tensor | Sequence[int]) -> Prefix:
    """Every query sees the first ``n`` keys, also those ahead of it. ``causal | prefix(n)`` is the prefix-LM mask.

    ::

        prefix(2)       k0 k1 k2 k3        causal | prefix(2)       k0 k1 k2 k3
                    q0   x  x                                   q0   x  x
                    q1   x  x                                   q1   x  x
                    q2   x  x                                   q2   x  x  x
                    q3   x  x                                   q3   x  x  x  x

    Source: prefix LM, Raffel et al. 2020 (T5), section 3.2.1.

    Args:
        n: keys in the prefix, at least 0: one int for all, or integers (B,), one for each batch row.
    """
    return Prefix(count("n", n) if isinstance(n, SupportsIndex) and not isinstance(n, Tensor) else length_table("n", n))


def sinks(n: int) -> Sinks:
    """A query sees the first ``n`` keys, as far as they are not ahead of it. ``window(back=...) | sinks(n)`` streams.

    ::

        sinks(2)        k0 k1 k2 k3        window(back=1) | sinks(1)   k0 k1 k2 k3
                    q0   x                                         q0   x
                    q1   x  x                                      q1   x  x
                    q2   x  x                                      q2   x  x  x
                    q3   x  x                                      q3   x     x  x

    Nothing ahead of the query becomes visible, so a causal window stays causal with it; `prefix` is the other kind.
    Source: attention sinks, Xiao et al. 2023 (StreamingLLM), section 3.

    Args:
        n: number of sink keys, at least 0.
    """
    return Sinks(count("n", n))
