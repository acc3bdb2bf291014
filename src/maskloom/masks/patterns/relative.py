"""Masks of the distance between query and key."""

from abc import abstractmethod

from torch import Tensor

from maskloom.core.checks import count, integer
from maskloom.core.symbols import known
from maskloom.masks.algebra import Mask, mask_dataclass

__all__ = [
    "causal",
    "anticausal",
    "causal_lower_right",
    "window",
    "window_counting_itself",
    "window_reaching_back",
    "window_both_ways",
    "band",
    "dilated",
]


class _Order(Mask):
    """A mask of which comes first, query or key. It has no parameters, and there is one instance of it."""

    runs_in_flash = True

    def __call__(
        self,
        b: Tensor | None = None,
        h: Tensor | None = None,
        q_idx: Tensor | None = None,
        kv_idx: Tensor | None = None,
    ) -> Tensor:
        if q_idx is None or kv_idx is None:
            raise TypeError(
                f"{self.name} is itself a mask, not a function that makes one: write {self.name}, without brackets"
            )
        return self.sees(q_idx, kv_idx)

    @abstractmethod
    def sees(self, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """Whether the query sees the key."""

    def __repr__(self) -> str:
        return self.name


@mask_dataclass
class Causal(_Order):
    """A query sees the keys up to its own position. Use the one instance, `causal`.

    ::

                k0 k1 k2 k3
            q0   x
            q1   x  x
            q2   x  x  x
            q3   x  x  x  x

    Positions are absolute: for Q ≠ KV query i has position i (plus ``q_offset``), as in torch's FlexAttention.
    `causal_lower_right` aligns the ends instead.
    """

    name = "causal"

    def sees(self, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx >= kv_idx


@mask_dataclass
class Anticausal(_Order):
    """A query sees the keys from its own position on: the upper triangle. Use the one instance, `anticausal`.

    ::

                k0 k1 k2 k3
            q0   x  x  x  x
            q1      x  x  x
            q2         x  x
            q3            x

    It is ``transposed(causal)``. Source: the backward half of bidirectional language models (ELMo, Peters et al. 2018,
    section 3.1).
    """

    name = "anticausal"

    def sees(self, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return q_idx <= kv_idx


causal = Causal()
anticausal = Anticausal()


@mask_dataclass
class Window(Mask):
    """See `window`."""

    runs_in_flash = True

    back: int | Tensor
    ahead: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx >= q_idx - self.back) & (kv_idx <= q_idx + self.ahead)

    def __repr__(self) -> str:
        return f"window(back={self.back}, ahead={self.ahead})"


def window(*, back: int, ahead: int = 0) -> Window:
    """A query sees its own key, ``back`` keys before it and ``ahead`` keys after it.

    ::

        window(back=1)  k0 k1 k2 k3        window(back=1, ahead=2)  k0 k1 k2 k3
                    q0   x                                      q0   x  x  x
                    q1   x  x                                   q1   x  x  x  x
                    q2      x  x                                q2      x  x  x
                    q3         x  x                             q3         x  x

    There is no plain window size, because libraries count three different things by it. Each has a name here:
    `window_counting_itself`, `window_reaching_back` and `window_both_ways`.

    Args:
        back: keys visible before the query's position, at least 0.
        ahead: keys visible after it, at least 0.

    Raises:
        ValueError: a negative number. TypeError: not an int.
    """
    return Window(count("back", back), count("ahead", ahead))


def window_counting_itself(size: int) -> Window:
    """A query sees ``size`` keys: its own and the ``size - 1`` before it. It is ``window(back=size - 1)``.

    ::

        window_counting_itself(2)   k0 k1 k2 k3
                                q0   x
                                q1   x  x
                                q2      x  x
                                q3         x  x

    ``sliding_window`` in Hugging Face's transformers counts this way.

    Args:
        size: keys visible, at least 1.

    Raises:
        TypeError: not an int. ValueError: below 1.
    """
    return Window(count("size", size, least=1) - 1, 0)


def window_reaching_back(size: int) -> Window:
    """A query sees its own key and ``size`` keys before it, ``size + 1`` in all. It is ``window(back=size)``.

    ::

        window_reaching_back(2)   k0 k1 k2 k3
                              q0   x
                              q1   x  x
                              q2   x  x  x
                              q3      x  x  x

    This is FlashAttention's ``window_size=(size, 0)`` and attention-gym's ``generate_sliding_window(size)``.

    Args:
        size: keys visible before the query's position, at least 0.

    Raises:
        TypeError: not an int. ValueError: negative.
    """
    return Window(count("size", size), 0)


def window_both_ways(size: int) -> Window:
    """A query sees ``size`` keys on either side of its own, ``2 * size + 1`` in all. It is ``window(back=size, ahead=size)``.

    ::

        window_both_ways(1)   k0 k1 k2 k3
                          q0   x  x
                          q1   x  x  x
                          q2      x  x  x
                          q3         x  x

    Hugging Face counts this way for bidirectional models (``attention_window`` of Longformer is twice ``size``).
    Source: Longformer, Beltagy et al. 2020, section 3.1.

    Args:
        size: keys visible on each side, at least 0.

    Raises:
        TypeError: not an int. ValueError: negative.
    """
    size = count("size", size)
    return Window(size, size)


@mask_dataclass
class Band(Mask):
    """See `band`."""

    runs_in_flash = True

    low: int | Tensor
    high: int | Tensor
    name = "band"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return (kv_idx >= q_idx + self.low) & (kv_idx <= q_idx + self.high)


def band(low: int, high: int) -> Band:
    """A query sees the keys at distances ``low`` to ``high`` from its position: ``low <= kv_idx - q_idx <= high``.

    ::

        band(-2, -1)    k0 k1 k2 k3        band(1, 2)      k0 k1 k2 k3
                    q0                                 q0      x  x
                    q1   x                             q1         x  x
                    q2   x  x                          q2            x
                    q3      x  x                       q3

    Unlike `window` it need not contain the query's own position. Source: banded matrices; ``numpy.tri`` and LAPACK's
    band storage count diagonals this way.

    Args:
        low, high: distances in positions, both included; negative is before the query.

    Raises:
        ValueError: low above high. TypeError: not an int.
    """
    low, high = (integer(name, end, "a distance in positions") for name, end in (("low", low), ("high", high)))
    if known(low > high):
        raise ValueError(f"a band reaches from low up to high; got low={low} and high={high}")
    return Band(low, high)


@mask_dataclass
class Dilated(Mask):
    """See `dilated`."""

    back: int | Tensor
    ahead: int | Tensor
    step: int | Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        behind = q_idx - kv_idx
        return (behind <= self.back) & (behind >= -self.ahead) & (behind % self.step == 0)

    def __repr__(self) -> str:
        return f"dilated(back={self.back}, ahead={self.ahead}, step={self.step})"


def dilated(*, back: int, ahead: int = 0, step: int) -> Dilated:
    """A query sees every ``step``-th key of ``window(back=back, ahead=ahead)``, counted from its own position.

    ::

        dilated(back=4, step=2)   k0 k1 k2 k3 k4 k5
                              q0   x
                              q1      x
                              q2   x     x
                              q3      x     x
                              q4   x     x     x
                              q5      x     x     x

    ``back`` and ``ahead`` are positions, not steps. Source: Longformer, Beltagy et al. 2020, section 3.1.

    ``causal | dilated(back=0, ahead=kv_len, step=q_len)`` is the training mask of EAGLE-3 (Li et al. 2025): the keys
    are those of the sequence, and after them the same number for each later step; a query sees in each step the key at
    its own place.

    Args:
        back: how far it reaches before the query, in positions, at least 0.
        ahead: how far it reaches after it, in positions, at least 0.
        step: distance between visible keys, in positions, at least 1.

    Raises:
        TypeError: not an int. ValueError: a negative reach, a step below 1.
    """
    return Dilated(count("back", back), count("ahead", ahead), count("step", step, least=1))


@mask_dataclass
class CausalLowerRight(Mask):
    """See `causal_lower_right`."""

    runs_in_flash = True

    q_len: int | Tensor
    kv_len: int | Tensor
    name = "causal_lower_right"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx <= q_idx + (self.kv_len - self.q_len)


def causal_lower_right(q_len: int, kv_len: int) -> CausalLowerRight:
    """Causal, with the last query at the last key: query i has position ``i + kv_len - q_len``.

    ::

        causal_lower_right(2, 4)   k0 k1 k2 k3        causal_lower_right(4, 2)   k0 k1
                               q0   x  x  x                                  q0
                               q1   x  x  x  x                               q1
                                                                             q2   x
                                                                             q3   x  x

    For new queries after a cache of keys. It is ``shifted(causal, q_offset=kv_len - q_len)``, which also accepts an
    offset for each batch row. With more queries than keys the first queries see nothing. Source:
    ``torch.nn.attention.bias.causal_lower_right``, and FlashAttention from version 2.1 on.

    Args:
        q_len, kv_len: Q and K, in positions, at least 1.

    Raises:
        TypeError: not an int. ValueError: below 1.
    """
    return CausalLowerRight(count("q_len", q_len, least=1), count("kv_len", kv_len, least=1))
