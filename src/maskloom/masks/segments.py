"""Masks of packed sequences: several documents, continuations or turns in one row."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.masks.algebra import Mask, as_mask, mask_value, shown
from maskloom.masks.checks import count_by_row, integers, integers_by_position, readable
from maskloom.masks.dense import MaskMod
from maskloom.masks.padding import PaddingMask
from maskloom.masks.tables import at, ids_from_offsets, ids_from_positions, positions_from_ids


class _Segmented(PaddingMask):
    """Positions have ids; what has a negative id is padding, and hidden."""

    ids: Tensor

    def hidden_keys(self, kv_len: int) -> Tensor:
        return torch.atleast_2d(self.ids)[:, :kv_len] < 0

    def _ids_at(self, b: Tensor, q_idx: Tensor, kv_idx: Tensor) -> tuple[Tensor, Tensor]:
        return at(self.ids, b, q_idx), at(self.ids, b, kv_idx)


class _ByIds(_Segmented):
    """Documents: what has equal ids sees each other."""

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self._ids_at(b, q_idx, kv_idx)
        return (q_id == kv_id) & (q_id >= 0)


@mask_value
class Documents(_ByIds):
    """Documents by an id for each position; nothing is known about where they lie. See `documents`."""

    ids: Tensor
    name = "documents"


@mask_value
class PackedDocuments(_ByIds):
    """Documents that lie one behind the other, by their offsets. ``ids`` follows from them. See `documents`."""

    offsets: Tensor
    ids: Tensor

    def __repr__(self) -> str:
        return f"documents(offsets={shown(self.offsets)})"


@mask_value
class CountedDocuments(_ByIds):
    """Documents that lie one behind the other, by positions that count up. ``ids`` follows from them. See `documents`."""

    position_ids: Tensor
    ids: Tensor

    def __repr__(self) -> str:
        return f"documents(position_ids={shown(self.position_ids)})"


AnyDocuments = Documents | PackedDocuments | CountedDocuments


def documents(
    ids: Tensor | Sequence[int] | None = None,
    *,
    offsets: Tensor | Sequence[int] | None = None,
    position_ids: Tensor | Sequence[int] | None = None,
    length: int | None = None,
) -> AnyDocuments:
    """A query sees the keys of its own document.

    ::

        documents(offsets=[0, 2, 5])   k0 k1 k2 k3 k4
                                   q0   x  x
                                   q1   x  x
                                   q2         x  x  x
                                   q3         x  x  x
                                   q4         x  x  x

    Give one of:

    Args:
        ids: integers (L,), or (B, L) with documents of their own in each batch row: positions with equal ids are one
            document, wherever they lie. A negative id is no document: it sees nothing and nothing sees it.
        offsets: integers (documents + 1,), where each document begins, and the end: ``[0, 2, 5]`` is one of 2 and one
            of 5 - 2 = 3 positions (``cu_seqlens`` of FlashAttention). This says that documents are contiguous.
        position_ids: integers (L,) or (B, L), positions that count up inside a document, as Hugging Face packs:
            ``[0, 1, 0, 1, 2]`` is the mask drawn above. A document begins where a position is not the one before and 1.
            This too says that documents are contiguous.
        length: with offsets, the positions of a row, if there are more than the documents fill; the rest sees nothing.
            By default the last offset, which is read from the tensor (on a GPU that waits for it).

    Raises:
        TypeError, ValueError: none or several of them, not integers, offsets that do not start at 0 or that fall (looked
            at on the CPU only), a length below the last offset.
    """
    _exactly_one("documents", ids=ids, offsets=offsets, position_ids=position_ids)
    if offsets is not None:
        table = _checked_offsets(offsets)
        return PackedDocuments(table, ids_from_offsets(table, length))
    _no_length(length)
    if position_ids is not None:
        positions = integers_by_position("position_ids", position_ids)
        return CountedDocuments(positions, ids_from_positions(positions))
    return Documents(integers_by_position("ids", ids))


@mask_value
class Within(PaddingMask):
    """See `within`. ``positions`` (L,) or (B, L) are those inside each document."""

    segments: AnyDocuments
    mask: Mask
    positions: Tensor
    name = "within"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_position, kv_position = at(self.positions, b, q_idx), at(self.positions, b, kv_idx)
        return self.segments(b, h, q_idx, kv_idx) & self.mask(b, h, q_position, kv_position)

    def __repr__(self) -> str:
        return f"within({self.segments!r}, {self.mask!r})"

    def hidden_keys(self, kv_len: int) -> Tensor:
        return self.segments.hidden_keys(kv_len)


def within(segments: AnyDocuments, mask: MaskMod) -> Within:
    """A mask inside each document, with positions that start anew in each: at 0, or where its position ids do.

    ::

        within(documents(offsets=[0, 2, 5]), sinks(1) | window(back=0))   k0 k1 k2 k3 k4
                                                                      q0   x
                                                                      q1   x  x
                                                                      q2         x
                                                                      q3         x  x
                                                                      q4         x     x

    ``causal`` and windows mean the same with and without it; chunks, sinks and prefixes do not. ``within(segments, causal |
    prefix(n))`` is a prefix-LM for each document; `document_prefix` has a length of its own for each. Source: packed sequences
    whose position ids restart, Krell et al. 2021 (arXiv 2107.02027).

    Args:
        segments: made by `documents`, of documents that are contiguous.
        mask: a Mask or a mask_mod, asked with positions inside the document; ``b`` and ``h`` stay.

    Raises:
        TypeError: segments of another kind.
        ValueError: documents in several pieces, where positions cannot restart (looked at on the CPU only).
    """
    positions = _positions_inside("within", segments)
    if isinstance(segments, CountedDocuments):
        positions = segments.position_ids.to(torch.int32)
    return Within(segments, as_mask(mask), positions)


@mask_value
class DocumentPrefix(Mask):
    """See `document_prefix`. ``is_prefix`` (L,) or (B, L) marks the positions that lie in a prefix."""

    segments: AnyDocuments
    n: Tensor
    is_prefix: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return self.segments(b, h, q_idx, kv_idx) & at(self.is_prefix, b, kv_idx)

    def __repr__(self) -> str:
        return f"document_prefix({self.segments!r}, {shown(self.n)})"


def document_prefix(segments: AnyDocuments, n: Tensor | Sequence[int] | Sequence[Sequence[int]]) -> DocumentPrefix:
    """A query sees the first ``n[d]`` keys of its own document d, also those ahead of it.

    ::

        document_prefix(documents(offsets=[0, 2, 5]), [1, 2])   k0 k1 k2 k3 k4
                                                            q0   x
                                                            q1   x
                                                            q2         x  x
                                                            q3         x  x
                                                            q4         x  x

    ``segments & causal | document_prefix(segments, n)`` is a prefix-LM over packed documents. Where n is the same for all, write
    ``within(segments, prefix(n))``. Source: prefix LM, Raffel et al. 2020 (T5), section 3.2.1.

    Args:
        segments: made by `documents`, of documents that are contiguous.
        n: keys in the prefix of each document, at least 0: integers (documents,), or (B, documents) where rows have
            documents of their own. Entry d is for the document with id d, or the d-th of offsets or position_ids.

    Raises:
        TypeError, ValueError: segments of another kind or in several pieces, not integers, a negative number, fewer
            numbers than documents (looked at on the CPU only).
    """
    positions = _positions_inside("document_prefix", segments)
    table = integers("n", n).to(positions.device)
    ids = segments.ids.clamp(min=0).long()
    if table.ndim not in (1, ids.ndim) or table.numel() == 0 or (table.ndim == 2 and len(table) != len(ids)):
        raise ValueError(
            f"n has one number for each document, (documents,), or (B, documents) for ids (B, L); got shape "
            f"{tuple(table.shape)} for ids of shape {tuple(ids.shape)}"
        )
    if readable(table) and bool((table < 0).any()):
        raise ValueError(f"n are numbers of positions, at least 0; got {int(table.min())}")
    _check_ids_below("n has numbers for", segments.ids, table.shape[-1], "documents")
    own = table[ids] if table.ndim == 1 else table.gather(1, ids)
    return DocumentPrefix(segments, table, (positions < own) & (segments.ids >= 0))


@mask_value
class SharedPrefix(_Segmented):
    """See `shared_prefix`."""

    ids: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self._ids_at(b, q_idx, kv_idx)
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
    """One prompt and many continuations, one behind the other: each sees the prompt and itself, causally.

    ::

        shared_prefix(2, [2, 1])   k0 k1 k2 k3 k4
                               q0   x
                               q1   x  x
                               q2   x  x  x
                               q3   x  x  x  x
                               q4   x  x        x

    So the prompt of a group of rollouts is computed once. Positions for rotary embeddings go on from the prompt's end in each
    continuation. Several groups in one row are ``documents(groups) & shared_prefix(ids=ids)``. Source: Prefix Grouper, Liu et
    al. 2025 (arXiv 2506.05433); attention-gym's ``generate_shared_prefix_mask_mod``.

    Give either the lengths or ids:

    Args:
        prefix_length: positions of the prompt, at least 0: one int for all rows, or integers (B,).
        continuation_lengths: integers (continuations,), or (B, continuations); 0 where a row has fewer.
        ids: integers (L,) or (B, L): 0 for the prompt, another number for each continuation; negative is padding.
        length: with lengths, the positions of a row, if there are more than are filled; the rest sees nothing. By default
            what the longest row fills, which is read from the tensor (on a GPU that waits for it).

    Raises:
        TypeError, ValueError: both or neither, not integers, a negative length (looked at on the CPU only), a length below
            what is filled.
    """
    _exactly_one("shared_prefix", continuation_lengths=continuation_lengths, ids=ids)
    if (prefix_length is None) != (continuation_lengths is None):
        raise TypeError("shared_prefix takes prefix_length and continuation_lengths together, or ids alone")
    if prefix_length is None:
        _no_length(length)
        return SharedPrefix(integers_by_position("ids", ids))
    continuations = integers_by_position("continuation_lengths", continuation_lengths)
    if readable(continuations) and bool((continuations < 0).any()):
        raise ValueError(f"continuation_lengths are numbers of positions, at least 0; got {int(continuations.min())}")
    prompts = torch.as_tensor(count_by_row("prefix_length", prefix_length), device=continuations.device)
    if prompts.ndim and continuations.ndim == 2 and len(prompts) != len(continuations):
        raise ValueError(
            f"prefix_length has {len(prompts)} batch rows and continuation_lengths has {len(continuations)}"
        )
    rows = torch.broadcast_shapes(prompts.shape, continuations.shape[:-1])
    prompts, continuations = prompts.expand(rows)[..., None], continuations.expand(*rows, -1)
    ends = torch.cat([prompts, continuations], -1).cumsum(-1)
    return SharedPrefix(ids_from_offsets(torch.nn.functional.pad(ends, (1, 0)), length))


@mask_value
class Turns(_Segmented):
    """See `turns`."""

    ids: Tensor
    visible: Tensor

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_id, kv_id = self._ids_at(b, q_idx, kv_idx)
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
    """A conversation in turns, and a rule which turn may see which.

    ::

        turns(offsets=[0, 2, 3, 5], visible=rule)   k0 k1 k2 k3 k4        rule   t0 t1 t2
                                                q0   x  x                    t0   x
                                                q1   x  x                    t1   x  x
                                                q2   x  x  x                 t2   x     x
                                                q3   x  x     x  x
                                                q4   x  x     x  x

    Here the last turn does not see the one before: a model's thoughts, say, that later turns go without. ``causal & turns(...)``
    adds the order inside turns. For a rule by kind of turn, let ``ids`` name kinds: system, user, assistant, tool. Source:
    chat templates that drop earlier reasoning (Qwen3, DeepSeek-R1), as one row in training.

    Args:
        ids: integers (L,) or (B, L), the turn of each position, 0 to T - 1. A negative id is padding: it sees nothing and nothing
            sees it.
        offsets: instead of ids, integers (T + 1,), where each turn begins, and the end.
        visible: bool (T, T): ``visible[i][j]`` is True where turn i may see turn j. Its own turn too must be said.
        length: as for `documents`.

    Raises:
        TypeError, ValueError: ids and offsets or neither, a table that is not bool or not square, a turn that it does not
            have (looked at on the CPU only).
    """
    _exactly_one("turns", ids=ids, offsets=offsets)
    if offsets is None:
        _no_length(length)
        table = integers_by_position("ids", ids)
    else:
        table = ids_from_offsets(_checked_offsets(offsets), length)
    rule = visible if isinstance(visible, Tensor) else torch.tensor(visible, device=table.device)
    if rule.dtype != torch.bool:
        raise TypeError(f"visible is bool (T, T), True where turn i may see turn j; got {rule.dtype}")
    if rule.ndim != 2 or rule.shape[0] != rule.shape[1] or rule.numel() == 0:
        raise ValueError(f"visible has shape (T, T), turn by turn; got {tuple(rule.shape)}")
    _check_ids_below("visible has a rule for", table, len(rule), "turns")
    return Turns(table.to(torch.int32), rule)  # torch takes uint8 indices for bools


def _exactly_one(name: str, **choices: object) -> None:
    given = [choice for choice, value in choices.items() if value is not None]
    if len(given) != 1:
        raise TypeError(f"{name} takes one of {', '.join(choices)}; got {' and '.join(given) or 'none'}")


def _no_length(length: int | None) -> None:
    if length is not None:
        raise TypeError("ids and position_ids take no length=: they have one entry for each position")


def _check_ids_below(words: str, ids: Tensor, number: int, of: str) -> None:
    if readable(ids) and int(ids.max()) >= number:
        raise ValueError(f"{words} {number} {of}, 0 to {number - 1}; ids go up to {int(ids.max())}")


def _checked_offsets(offsets: Tensor | Sequence[int]) -> Tensor:
    table = integers("offsets", offsets)
    if table.ndim != 1 or table.numel() < 2:
        raise ValueError(f"offsets has shape (documents + 1,), at least 2 entries; got {tuple(table.shape)}")
    if readable(table):
        if int(table[0]) != 0:
            raise ValueError(f"offsets start at 0; got {int(table[0])}")
        falls = (table.diff() < 0).nonzero()
        if len(falls):
            before, after = table[int(falls[0]) :][:2].tolist()
            raise ValueError(f"offsets never fall; got {before} and then {after} at entry {int(falls[0]) + 1}")
    return table


def _positions_inside(name: str, segments: AnyDocuments) -> Tensor:
    """How far each position is from the beginning of its document: int32 (L,) or (B, L)."""
    if not isinstance(segments, AnyDocuments):
        raise TypeError(f"{name} takes documents made by documents(...); got {segments!r}")
    if isinstance(segments, Documents) and readable(segments.ids):
        _check_contiguous(name, segments.ids)
    return positions_from_ids(segments.ids)


def _check_contiguous(name: str, ids: Tensor) -> None:
    for row, row_ids in enumerate(torch.atleast_2d(ids)):
        runs = row_ids.unique_consecutive()
        documents, pieces = runs[runs >= 0].unique(return_counts=True)
        if bool((pieces > 1).any()):
            document = int(documents[pieces > 1][0])
            raise ValueError(
                f"{name} needs documents in one piece, so that positions restart; document {document} has "
                f"{int(pieces.max())} pieces" + (f" in row {row}" if ids.ndim == 2 else "")
            )
