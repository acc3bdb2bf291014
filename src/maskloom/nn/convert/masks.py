"""The masks of nn.MultiheadAttention, where True hides and floats are added to scores, as `attend` takes them."""

import math
from collections.abc import Callable, Hashable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from maskloom.core.cache import keep_beside
from maskloom.core.checks import readable
from maskloom.core.values import shown
from maskloom.masks.algebra import Mask
from maskloom.masks.patterns.from_tables import FromDense
from maskloom.masks.patterns.padding import KeyPadding
from maskloom.masks.patterns.relative import causal
from maskloom.scores.base import ScoreMod, ScoreValue, score_dataclass
from maskloom.scores.compose import compose

R = TypeVar("R")


class Masks(NamedTuple):
    """What hides keys, and what is added to scores.

    Attributes:
        mask, score_mod: as for `attend`; None where there is none.
        pads: bool (B, S), the keys that key_padding_mask hides; None without it.
    """

    mask: Mask | None = None
    score_mod: ScoreMod | None = None
    pads: Tensor | None = None


CAUSAL = Masks(causal)


def masks_of(attn_mask: Tensor | None, key_padding_mask: Tensor | None, *, heads: int, extra: int) -> Masks:
    """Both masks together. -inf in a float mask hides, so that a query that sees nothing has output 0.

    What is made of them is kept with these tensors until they are written to: the layers of a model share it.

    Args:
        attn_mask: bool or floating point, (L, S) or (B·H, L, S). key_padding_mask: (B, S).
        heads: H. extra: keys after the S, which no mask hides (bias_k and zeros).
    """
    added: list[ScoreMod] = []
    if attn_mask is not None and _adds(attn_mask):
        table = _extended(_by_heads(attn_mask, heads), extra, 0)
        added.append(AddedTable(table, "bhqk"[-table.ndim :]))
    if key_padding_mask is not None and _adds(key_padding_mask):
        added.append(AddedTable(_extended(key_padding_mask, extra, 0), "bk"))
    return Masks(
        _joined(attn_mask, key_padding_mask, heads, extra),
        compose(*added) if added else None,
        None if key_padding_mask is None else _hidden(key_padding_mask),
    )


@score_dataclass
class AddedTable(ScoreValue):
    """``score + table[...]``. ``axes`` names the indices that the table is read by, a letter of "bhqk" for each dimension."""

    table: Tensor
    axes: str

    def __call__(self, score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        places = {"b": b, "h": h, "q": q_idx, "k": kv_idx}
        return score + self.table[tuple([places[axis] for axis in self.axes])]

    def __repr__(self) -> str:
        return f"added({shown(self.table)})"

    @property
    def adds(self) -> bool:
        return True


def _joined(attn_mask: Tensor | None, key_padding_mask: Tensor | None, heads: int, extra: int) -> Mask | None:
    """The mask of what both let be seen."""
    seen = (
        None if attn_mask is None else _kept(attn_mask, ("seen", heads, extra), lambda: _seen(attn_mask, heads, extra))
    )
    if key_padding_mask is None:
        return seen

    def joined() -> Mask:
        padding = KeyPadding(_extended(_hidden(key_padding_mask.detach()), extra, 0))
        return padding if seen is None else padding & seen

    # the result holds ``seen``, so that no other mask gets its id
    return joined() if torch.compiler.is_dynamo_compiling() else _kept(key_padding_mask, (id(seen), extra), joined)


def _seen(attn_mask: Tensor, heads: int, extra: int) -> FromDense:
    table = _extended(~_by_heads(_hidden(attn_mask.detach()), heads), extra, 1)
    return FromDense(table, "bhqk"[-table.ndim :])


def _hidden(mask: Tensor) -> Tensor:
    """True = hidden."""
    return mask if mask.dtype == torch.bool else mask == -math.inf


def _adds(mask: Tensor) -> bool:
    """Whether it does more to scores than hiding. Values on a device are not looked at: there floats are added."""
    if mask.dtype == torch.bool:
        return False
    if mask.requires_grad or not readable(mask):
        return True
    return _kept(mask, "adds", lambda: not bool(((mask == 0) | _hidden(mask)).all()))


def _by_heads(table: Tensor, heads: int) -> Tensor:
    """(L, S) as it is, (B·H, L, S) as (B, H, L, S)."""
    return table.unflatten(0, (-1, heads)) if table.ndim == 3 else table


def _extended(table: Tensor, extra: int, filling: int) -> Tensor:
    """With as many more keys."""
    return F.pad(table, (0, extra), value=filling) if extra else table


def _kept(tensor: Tensor, key: Hashable, compute: Callable[[], R]) -> R:
    """``compute()``, kept with a tensor. The result must not hold it."""
    return compute() if torch.compiler.is_dynamo_compiling() else keep_beside(tensor, ("of torch", key), compute)
