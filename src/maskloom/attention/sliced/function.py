"""Attention in bands, with a backward of its own that makes the scores again.

With S the scores after score_mod, m the largest of a row, E = exp(S - m), l the row's sum of E, and g the gradients of output O
and log-sum-exp L: ``dV = Eᵀ (gO / l)`` and ``dS = E * (gO Vᵀ - rowsum(gO * O) + gL) / l``, from which score_mod's own
derivative leads back to the products of query and key. m and l are kept, and not L alone: in float32 a log-sum-exp of 600 says
less than the weights. Source: Dao et al. 2022 (FlashAttention, arXiv 2205.14135), appendix B.2, and Chen et al. 2016.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.attention.request import Attended
from maskloom.attention.sliced.bands import Band
from maskloom.attention.sliced.scores import BandScores, Learning, ambient
from maskloom.attention.sliced.work import Work
from maskloom.attention.written_out import attention_in_chunks
from maskloom.core.torch_state import autocast_to, without_autocast
from maskloom.scores.base import ScoreMod
from maskloom.scores.reading import StandingIn


@dataclass(frozen=True, eq=False)
class InBands:
    """Attention of any query, key and value of one kind; the log-sum-exp is in float32 at least."""

    work: Work

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Attended:
        return Attended(*_InBands.apply(self.work, query, key, value, *self.work.reading.learned))

    def bare(self) -> "InBands":
        """The same without the score mod, to be run by `with_score`."""
        return InBands(self.work.without_score())

    def with_score(self, query: Tensor, key: Tensor, value: Tensor, score_mod: ScoreMod | None) -> Attended:
        """The same with a score mod of the structure that it had."""
        return (
            InBands(self.work.with_score(score_mod))(query, key, value)
            if score_mod is not None
            else self(query, key, value)
        )


class _InBands(torch.autograd.Function):
    """(query, key, value, what score_mod learns) -> (output, log-sum-exp)."""

    @staticmethod
    def forward(ctx: Any, work: Work, query: Tensor, key: Tensor, value: Tensor, *learned: Tensor) -> tuple[Any, ...]:
        ctx.work, ctx.autocast = work, autocast_to(query.device)
        with without_autocast(query.device):
            context = ambient(query.device, ctx.autocast)
            out, most, total = _forward(work, Heads.of(query, key, value), BandScores(work, context))
            lse = total.log() + most
        rounded = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, most, total, *learned)
        return rounded, lse

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        work: Work = ctx.work
        work.unwritten.check()
        query, key, value, out, most, total, *learned = ctx.saved_tensors
        context = ambient(query.device, ctx.autocast)
        if torch.is_grad_enabled():
            with context():
                return None, *_differentiable(work, [query, key, value, *learned], gradients)
        learning = Learning(work, tuple(learned))
        with without_autocast(query.device):
            rows = Rows.of(out, most, total, *gradients)
            found = _backward(Heads.of(query, key, value), rows, BandScores(work, context, learning))
        inputs = (query, key, value)
        return None, *(grad.to(like.dtype) for grad, like in zip(found, inputs, strict=True)), *learning.gradients


class Heads(NamedTuple):
    """Query, key and value to compute with: float32 at least, contiguous, query heads beside the head that serves them.

    Attributes:
        query: (B, Hkv, H / Hkv, Q, D). key: (B, Hkv, K, D). value: (B, Hkv, K, E).
    """

    query: Tensor
    key: Tensor
    value: Tensor

    @classmethod
    def of(cls, query: Tensor, key: Tensor, value: Tensor) -> "Heads":
        query, key, value = (wide(tensor) for tensor in (query, key, value))
        return cls(grouped(query, key.shape[1]), key, value)


def wide(tensor: Tensor) -> Tensor:
    """The tensor, contiguous, in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32)).contiguous()


def grouped(tensor: Tensor, key_heads: int) -> Tensor:
    """(B, H, ...) as (B, Hkv, H / Hkv, ...)."""
    return tensor.unflatten(1, (key_heads, -1))


def _of_band(tensor: Tensor, band: Band) -> Tensor:
    """The queries of a band, those of a group behind one another: (B, Hkv, H / Hkv × Q, ...) of (B, Hkv, H / Hkv, Q, ...)."""
    return tensor[band.batch, band.heads, :, band.queries].flatten(2, 3)


def _put(whole: Tensor, band: Band, part: Tensor) -> None:
    """Write what `_of_band` reads."""
    there = whole[band.batch, band.heads, :, band.queries]
    there.copy_(part.view(there.shape))


def _forward(work: Work, heads: Heads, scores_of: BandScores) -> tuple[Tensor, Tensor, Tensor]:
    """Output (B, H, Q, E); the largest score of each query, and its sum of exp(score - largest), both (B, H, Q) and 0 where
    it sees nothing."""
    query, key, value = heads
    out = query.new_zeros(*query.shape[:-1], value.shape[-1])
    most, total = query.new_zeros(query.shape[:-1]), query.new_zeros(query.shape[:-1])
    for band, hidden in work.with_hidden():
        raw = _of_band(query, band).mul(work.scale) @ _keys(key, band).transpose(-2, -1)
        scores_of.forward(_by_head(raw, band), band, hidden)
        for whole, part in zip((out, most, total), _softmax_times(raw, _keys(value, band)), strict=True):
            _put(whole, band, part)
    return out.flatten(1, 2), most.flatten(1, 2), total.flatten(1, 2)


def _keys(tensor: Tensor, band: Band) -> Tensor:
    return tensor[band.batch, band.heads, band.keys]


def _by_head(scores: Tensor, band: Band) -> Tensor:
    """(B, Hkv, H / Hkv × Q, K) as (B, H, Q, K), a view."""
    return scores.unflatten(2, (-1, band.queries.stop - band.queries.start)).flatten(1, 2)


def _softmax_times(scores: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The results of `_forward` for rows of scores, which are written over."""
    most = scores.amax(-1, keepdim=True)
    hidden = most == -math.inf
    most.masked_fill_(hidden, 0)
    weights = scores.sub_(most).exp_()
    total = weights.sum(-1, keepdim=True)
    out = (weights @ value).div_(total.masked_fill(hidden, 1)).masked_fill_(hidden, 0)
    return out, most.squeeze(-1), total.squeeze(-1)


class Rows(NamedTuple):
    """What each query brings into the backward, (B, H, Q, ...), 0 where it sees nothing.

    Attributes:
        gradient: of the output, over the row's sum.
        delta: rowsum(gO * O) - gL, over the row's sum.
        most: the row's largest score.
    """

    gradient: Tensor
    delta: Tensor
    most: Tensor

    @classmethod
    def of(cls, out: Tensor, most: Tensor, total: Tensor, gradient: Tensor, of_lse: Tensor) -> "Rows":
        hidden = total == 0
        share = total.masked_fill(hidden, 1).reciprocal_()
        gradient = wide(gradient)
        delta = (gradient * out).sum(-1).sub_(of_lse).mul_(share).masked_fill_(hidden, 0)
        return cls(gradient * share.unsqueeze(-1), delta.unsqueeze(-1), most.unsqueeze(-1))


def _backward(heads: Heads, rows: Rows, scores_of: BandScores) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query (B, H, Q, D), key and value."""
    work, (query, key, value) = scores_of.work, heads
    by_group = [grouped(row, key.shape[1]) for row in rows]
    of_query, of_key, of_value = torch.zeros_like(query), torch.zeros_like(key), torch.zeros_like(value)
    for band, hidden in work.with_hidden():
        scaled, (grad, delta, most) = _of_band(query, band) * work.scale, (_of_band(row, band) for row in by_group)
        raw = scaled @ _keys(key, band).transpose(-2, -1)
        by_head, back = scores_of.weights(_by_head(raw, band), band, hidden, _by_head(most, band))
        weights = by_head.reshape(raw.shape)
        _add_product(_keys(of_value, band), weights.transpose(-2, -1), grad)
        of_weights = _product_less(delta, grad, _keys(value, band).transpose(-2, -1))
        of_scores = of_weights.mul_(weights)
        of_raw = back(_by_head(of_scores, band)).reshape(raw.shape)
        _put(of_query, band, (of_raw @ _keys(key, band)).mul_(work.scale))
        _add_product(_keys(of_key, band), of_raw.transpose(-2, -1), scaled)
    return of_query.flatten(1, 2), of_key, of_value


def _product_less(less: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """``left @ right - less``, in one pass. less: (B, Hkv, rows, 1)."""
    found = torch.baddbmm(-less.flatten(0, 1), left.flatten(0, 1), right.flatten(0, 1))
    return found.unflatten(0, left.shape[:2])


def _add_product(there: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the products of matrices to what lies there, a part of (B, Hkv, K, ...): all heads of some rows, or some of one row."""
    there.view(-1, *there.shape[2:]).baddbmm_(left.flatten(0, 1), right.flatten(0, 1))


def _differentiable(work: Work, inputs: list[Tensor], gradients: tuple[Tensor, ...]) -> list[Tensor | None]:
    """The gradients of the inputs, which can be differentiated again: those of attention written out."""
    aliases = [tensor.view_as(tensor) for tensor in inputs]  # one tensor may be several inputs
    query, key, value, *learned = aliases
    score_mod = work.score_mod and _with_others(work.score_mod, work.reading.learned, learned)
    results = attention_in_chunks(query, key, value, work.mask, score_mod=score_mod, scale=work.scale)
    places = [place for place, alias in enumerate(aliases) if alias.requires_grad]
    asked = [aliases[place] for place in places]
    found = torch.autograd.grad(results, asked, gradients, create_graph=True, allow_unused=True)
    by_place = dict(zip(places, found, strict=True))
    return [by_place.get(place) for place in range(len(aliases))]


def _with_others(score_mod: ScoreMod, tensors: tuple[Tensor, ...], others: list[Tensor]) -> ScoreMod:
    """The score_mod with other tensors in the place of those that it learns."""

    def modified(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        with StandingIn(tensors, others):
            return score_mod(score, b, h, q_idx, kv_idx)

    return modified
