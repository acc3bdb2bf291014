"""Masks of the distance between query and key."""

import inspect

from torch import Tensor

from maskloom.masks.algebra import Mask, mask_value
from maskloom.masks.checks import count


@mask_value
class Causal(Mask):
    """A query sees the keys up to its own position. Use the one instance, `causal`.

    ::

                k0 k1 k2 k3
            q0   x
            q1   x  x
            q2   x  x  x
            q3   x  x  x  x

    Positions are absolute: for Q ≠ KV query i stands at position i (plus ``q_offset``), as in torch's FlexAttention.
    """

    def __call__(
        self,
        b: Tensor | None = None,
        h: Tensor | None = None,
        q_idx: Tensor | None = None,
        kv_idx: Tensor | None = None,
    ) -> Tensor:
        if q_idx is None or kv_idx is None:
            raise TypeError("causal is itself a mask, not a function that makes one: write causal, without brackets")
        return q_idx >= kv_idx

    def __repr__(self) -> str:
        return "causal"


# torch counts the arguments without a default to tell a mask_mod from a score_mod
_indices = [parameter for parameter in inspect.signature(Mask.__call__).parameters.values() if parameter.name != "self"]
Causal.__signature__ = inspect.Signature(_indices)  # type: ignore[attr-defined]
causal = Causal()


@mask_value
class Window(Mask):
    """See `window`."""

    back: int
    ahead: int

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx >= q_idx - self.back) & (kv_idx <= q_idx + self.ahead)

    def __repr__(self) -> str:
        return f"window(back={self.back}, ahead={self.ahead})"


def window(*, back: int, ahead: int = 0) -> Window:
    """A query sees ``back`` keys before its own position, its own, and ``ahead`` keys behind it.

    ::

        window(back=1)  k0 k1 k2 k3        window(back=1, ahead=2)  k0 k1 k2 k3
                    q0   x                                      q0   x  x  x
                    q1   x  x                                   q1   x  x  x  x
                    q2      x  x                                q2      x  x  x
                    q3         x  x                             q3         x  x

    There is no bare window size, because in the wild it counts three different things: W keys with the own one
    (Hugging Face's ``sliding_window``) is ``back=W - 1``; W keys and the own one (FlashAttention's
    ``window_size=(W, 0)``) is ``back=W``; W on either side is ``back=W, ahead=W``.

    Args:
        back: keys visible before the query's position, at least 0.
        ahead: keys visible after it, at least 0.

    Raises:
        ValueError: a negative number. TypeError: not an int.
    """
    return Window(count("back", back), count("ahead", ahead))
