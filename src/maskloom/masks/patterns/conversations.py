"""Masks of rows with branches or turns: one prompt with many continuations, conversations."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.batches.documents import ids_from_offsets
from maskloom.core.checks import (
    check_ids_below,
    checked_offsets,
    copied,
    count_by_row,
    exactly_one,
    integers_by_position,
    readable,
    refuse_length,
)
from maskloom.core.symbols import as_tensor
from maskloom.masks.algebra import mask_dataclass, shown
from maskloom.masks.patterns.packed.segments import Segmented

__all__ = ["shared_prefix", "turns"]


@mask_dataclass
class SharedPrefix(Segmented):
    """See `shared_prefix`."""

    runs_in_flash = True

    ids: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self.ids_at(b, q_idx, kv_idx)
        return (q_idx >= kv_idx) & (q_id >= 0) & ((q_id == kv_id) | (kv_id == 0))

    def __repr__(self) -> str:
        return f"shared_prefix(ids={shown(self.ids)})"


def shared_prefix(
    prefix_length: int | Tensor | Sequence[int] | None = None,
    continuation_lengths: Tensor | Sequence[int] | Sequence[Sequence[int]] | None = None,
    *,
    ids: Tensor | Sequence[int] | None = None,
    length: int | None = None,
) -> SharedPrefix:
    """One prompt, then many continuations in sequence. Each continuation sees the prompt and itself, causally.

    ::

        shared_prefix(2, [2, 1])   k0 k1 k2 k3 k4
                               q0   x
                               q1   x  x
                               q2   x  x  x
                               q3   x  x  x  x
                               q4   x  x        x

    So the prompt of a group of rollouts is computed once. Positions for rotary embeddings continue from the prompt's
    end in each continuation. Several groups in one row are ``documents(groups) & shared_prefix(ids=ids)``. Source:
    Prefix Grouper, Liu et al. 2025 (arXiv 2506.05433); attention-gym's ``generate_shared_prefix_mask_mod``.

    The mask holds the ids themselves, and follows writes into them. Lengths are read once: later writes into them have
    no effect.

    Give either the lengths or ids:

    Args:
        prefix_length: positions of the prompt, at least 0: one int for all rows, or integers (B,).
        continuation_lengths: integers (continuations,), or (B, continuations); 0 where a row has fewer.
        ids: integers (L,) or (B, L): 0 for the prompt, another number for each continuation; negative is padding.
        length: with lengths, the number of positions of a row, if it has more than the lengths fill; the rest is fully
            masked. By default the length of the longest row, which is read from the tensor (this waits for a GPU).

    Raises:
        TypeError, ValueError: both or neither, not integers, a negative length (checked on the CPU only), a ``length``
            that is too small.
    """
    exactly_one("shared_prefix", continuation_lengths=continuation_lengths, ids=ids)
    if (prefix_length is None) != (continuation_lengths is None):
        raise TypeError("shared_prefix takes prefix_length and continuation_lengths together, or ids alone")
    if prefix_length is None:
        refuse_length(length)
        return SharedPrefix(integers_by_position("ids", ids))
    continuations = integers_by_position("continuation_lengths", continuation_lengths)
    if readable(continuations) and bool((continuations < 0).any()):
        raise ValueError(f"continuation_lengths are numbers of positions, at least 0; got {int(continuations.min())}")
    prompts = as_tensor(count_by_row("prefix_length", prefix_length)).to(continuations.device)
    if prompts.ndim and continuations.ndim == 2 and len(prompts) != len(continuations):
        raise ValueError(
            f"prefix_length has {len(prompts)} batch rows and continuation_lengths has {len(continuations)}"
        )
    rows = torch.broadcast_shapes(prompts.shape, continuations.shape[:-1])
    prompts, continuations = prompts.expand(rows)[..., None], continuations.expand(*rows, -1)
    ends = torch.cat([prompts, continuations], -1).cumsum(-1)
    return SharedPrefix(ids_from_offsets(torch.nn.functional.pad(ends, (1, 0)), length))


@mask_dataclass
class Turns(Segmented):
    """See `turns`."""

    ids: Tensor
    visible: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self.ids_at(b, q_idx, kv_idx)
        return self.visible[q_id, kv_id] & (q_id >= 0) & (kv_id >= 0)

    def __repr__(self) -> str:
        return f"turns({shown(self.ids)}, visible={shown(self.visible)})"


def turns(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    visible: Tensor | Sequence[Sequence[bool]],
    length: int | None = None,
) -> Turns:
    """A conversation in turns, and a table that says which turn may see which.

    ::

        rule = tensor([[1, 0, 0], [1, 1, 0], [1, 0, 1]]).bool()

        turns(offsets=[0, 2, 3, 5], visible=rule)   k0 k1 k2 k3 k4        rule   t0 t1 t2
                                                q0   x  x                    t0   x
                                                q1   x  x                    t1   x  x
                                                q2   x  x  x                 t2   x     x
                                                q3   x  x     x  x
                                                q4   x  x     x  x

    Here the last turn does not see the turn before it: the thoughts of a model, for example, which later turns must not
    see. ``causal & turns(...)`` adds the order inside turns. For rules by kind of turn, let ``ids`` be kinds: system,
    user, assistant, tool. Source: chat templates that drop earlier reasoning (Qwen3, DeepSeek-R1), as one row in
    training.

    All arguments are copied: later writes into them have no effect.

    Args:
        ids: integers (L,) or (B, L), the turn of each position, 0 to T - 1. A negative id is padding: it sees nothing,
            and nothing sees it.
        offsets: instead of ids, integers (T + 1,), the start of each turn, and the end.
        visible: bool (T, T): ``visible[i][j]`` is True where turn i may see turn j, also for i = j.
        length: as for `documents`.

    Raises:
        TypeError, ValueError: ids and offsets or neither, a table that is not bool or not square, a turn that the table
            does not have (checked on the CPU only).
    """
    exactly_one("turns", ids=ids, offsets=offsets)
    if offsets is None:
        refuse_length(length)
        table = integers_by_position("ids", ids)
    else:
        table = ids_from_offsets(checked_offsets(offsets), length)
    rule = visible.clone() if isinstance(visible, Tensor) else copied("visible", visible, "bools").to(table.device)
    if rule.dtype != torch.bool:
        raise TypeError(f"visible is bool (T, T), True where turn i may see turn j; got {rule.dtype}")
    if rule.ndim != 2 or rule.shape[0] != rule.shape[1] or rule.numel() == 0:
        raise ValueError(f"visible has shape (T, T), turn by turn; got {tuple(rule.shape)}")
    check_ids_below("visible has a rule for", table, len(rule), "turns")
    return Turns(table.to(torch.int32, copy=True), rule)  # torch treats uint8 indices as bools
