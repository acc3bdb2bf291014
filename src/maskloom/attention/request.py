"""What `attend` was asked for, as the backends get it."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.core import captures
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod, ScoreReading


class Dropout(NamedTuple):
    """Dropout of probabilities.

    Attributes:
        factor: of those that are kept: 1 / (1 - rate); 0 of rate 1, where none is.
        score_mod: maskloom's own: the score of a pair that is kept, -inf of one that is dropped; offsets are in it.
    """

    factor: float
    score_mod: ScoreMod


class Request(NamedTuple):
    """One attention, its arguments checked.

    Attributes:
        query, key, value: (B, H, Q, D), (B, Hkv, K, D), (B, Hkv, K, E).
        mask: with ``q_offset`` and ``h_offset`` in it, as score_mod has them.
        reading: what is known of score_mod, on the CPU; None where that is nothing.
        wants_lse: whether the log-sum-exp of each query is returned, or needed for sink logits.
        deterministic: whether gradients must be the same, bit for bit, at every run.
        dropout: of probabilities; the log-sum-exp is not changed by it.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    mask: BlockMask | MaskMod | None
    score_mod: ScoreMod | None = None
    scale: float | None = None
    wants_lse: bool = False
    deterministic: bool = False
    kernel_options: Mapping[str, object] | None = None
    reading: ScoreReading | None = None
    dropout: Dropout | None = None

    @property
    def sizes(self) -> tuple[int, int, int, int]:
        """B, H, Q, K."""
        batch, heads, q_len, _ = self.query.shape
        return batch, heads, q_len, self.key.shape[2]

    @property
    def device(self) -> torch.device:
        return self.query.device

    @property
    def mask_mod(self) -> MaskMod | None:
        """The mask itself, also where a BlockMask was given."""
        return self.mask.mask_mod if isinstance(self.mask, BlockMask) else self.mask

    @property
    def needs_gradients(self) -> bool:
        """Whether a backward may follow."""
        if not torch.is_grad_enabled():
            return False
        return any(tensor.requires_grad for tensor in (self.query, self.key, self.value)) or self.trains_score_mod

    @property
    def trains_score_mod(self) -> bool:
        """Whether score_mod reads a tensor that gets a gradient. While torch compiles, that is not known: False."""
        return not torch.compiler.is_dynamo_compiling() and self.may_train_score_mod

    @property
    def may_train_score_mod(self) -> bool:
        """The same, and True where it is not known."""
        if self.score_mod is None or not torch.is_grad_enabled():
            return False
        if torch.compiler.is_dynamo_compiling():
            return True
        return any(tensor.requires_grad for tensor in captures.tensors(self.score_mod))


class Attended(NamedTuple):
    """What a backend gives.

    Attributes:
        out: (B, H, Q, E).
        lse: (B, H, Q), the natural log-sum-exp of each query's scores, -inf where it sees nothing; None if not asked for.
    """

    out: Tensor
    lse: Tensor | None
