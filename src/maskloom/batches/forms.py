"""Where the padding of a batch is, in the forms that people have it in.

==========  ==================  =============================================================
form        shape               meaning
==========  ==================  =============================================================
lengths     (B,) integers       real positions of each sequence
pads        (B, L) bool         True = padding
offsets     (B + 1,) integers   where each sequence begins when they are packed, and the end
==========  ==================  =============================================================

Functions are named ``form_from_form``; pairs of them are inverse to each other.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from maskloom.core.checks import count, flags, integer, integers, length_table, readable
from maskloom.core.words import brief

Side = Literal["right", "left"]
Where = Literal["anywhere", "right", "left"]


def pads_from_lengths(lens: Tensor | Sequence[int], length: int | None = None, *, side: Side = "right") -> Tensor:
    """The padding of sequences that are padded on one side.

    Args:
        lens: integers (B,), real positions of each sequence.
        length: L, positions of a row; by default the longest length (reading it waits for a GPU).
        side: where the padding is.

    Returns:
        bool (B, L), True = padding.

    Raises:
        ValueError: a length above L (looked at on the CPU only).
    """
    lens = length_table("lens", lens)
    _one_of("side", side, Side)
    if length is None:
        length = int(lens.max()) if lens.numel() else 0
    length = count("length", length)
    if readable(lens) and lens.numel() and int(lens.max()) > length:
        raise ValueError(f"length is {length}, and the longest sequence has {int(lens.max())}")
    positions = torch.arange(length, device=lens.device)
    if side == "right":
        return positions >= lens[:, None]
    return positions < length - lens.long()[:, None]  # narrow types would wrap


def lengths_from_pads(pads: Tensor, *, side: Side = "right") -> Tensor:
    """The lengths of sequences that are padded on one side; the inverse of `pads_from_lengths`.

    Args:
        pads: bool (B, L), True = padding.
        side: where the padding is.

    Returns:
        int64 (B,).

    Raises:
        ValueError: a row has padding elsewhere, which lengths cannot say: use ``padding(pads)`` then. (Where this can be
            checked without waiting for a GPU.)
    """
    pads = flags("pads", pads, true_means="padding")
    _one_of("side", side, Side)
    lens = (~pads).sum(-1)
    if readable(pads):
        elsewhere = (pads != pads_from_lengths(lens, pads.shape[-1], side=side)).any(-1).nonzero()
        if len(elsewhere):
            row = int(elsewhere[0])
            raise ValueError(f"row {row} has padding that is not at its {side} end; padding(pads) takes any")
    return lens


def pads_from_tokens(tokens: Tensor, pad_id: int, *, where: Where = "anywhere") -> Tensor:
    """The padding of token ids.

    Args:
        tokens: integers (B, L).
        pad_id: the id that fills up.
        where: "right" or "left" counts only the run at that end, for vocabularies whose padding id is also a real token
            (an end-of-sequence id, say).

    Returns:
        bool (B, L), True = padding.

    Raises:
        TypeError: not integers, or a pad_id that is no int. ValueError: another shape, or another ``where``.
    """
    tokens = integers("tokens", tokens)
    pad_id = integer("pad_id", pad_id, "the token id that fills up")
    if tokens.ndim != 2:
        raise ValueError(f"tokens has shape (B, L); got {tuple(tokens.shape)}")
    return _only_at(tokens == pad_id, where)


def pads_from_zeros(x: Tensor, *, where: Where = "anywhere") -> Tensor:
    """The padding of embedded sequences that are filled up with zero vectors.

    All features must be zero. (``x[:, :, 0] == 0`` also finds padding, and drops real tokens whose first feature is 0.)

    Args:
        x: (B, L, features).
        where: "right" or "left" counts only the run of zero vectors at that end.

    Returns:
        bool (B, L), True = padding.

    Raises:
        ValueError: not a tensor of three dimensions, or another ``where``.
    """
    if not isinstance(x, Tensor) or x.ndim != 3:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"x has shape (B, L, features); got {got}")
    return _only_at((x == 0).all(-1), where)


def offsets_from_lengths(lens: Tensor | Sequence[int]) -> Tensor:
    """Where each sequence begins when they are packed one behind the other, and the end: int32 (B + 1,).

    ``[2, 3]`` gives ``[0, 2, 5]``: FlashAttention's ``cu_seqlens``, and what ``documents(offsets=...)`` takes.

    Raises:
        TypeError, ValueError: not integers, not (B,), a negative length (looked at on the CPU only).
    """
    lens = length_table("lens", lens)
    return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).to(torch.int32)


def lengths_from_offsets(offsets: Tensor | Sequence[int]) -> Tensor:
    """The lengths of packed sequences, integers (B,); the inverse of `offsets_from_lengths`.

    Raises:
        TypeError, ValueError: not integers, or not (B + 1,).
    """
    offsets = integers("offsets", offsets)
    if offsets.ndim != 1 or offsets.numel() < 2:
        raise ValueError(f"offsets has shape (sequences + 1,), at least 2 entries; got {tuple(offsets.shape)}")
    return offsets.diff()


def _only_at(pads: Tensor, where: Where) -> Tensor:
    _one_of("where", where, Where)
    if where == "anywhere":
        return pads
    if where == "left":
        return pads.int().cummin(-1).values.bool()
    return pads.flip(-1).int().cummin(-1).values.flip(-1).bool()


def _one_of(name: str, value: str, choices: object) -> None:
    if value not in get_args(choices):
        raise ValueError(f"{name} is one of {', '.join(get_args(choices))}; got {brief(value)}")
