"""The padding of a batch in its usual forms.

==========  ==================  =============================================================
form        shape               meaning
==========  ==================  =============================================================
lengths     (B,) integers       number of real positions of each sequence
pads        (B, L) bool         True = padding
offsets     (B + 1,) integers   the start of each packed sequence, and the end
==========  ==================  =============================================================

Functions are named ``form_from_form``; in pairs they are inverse to each other.
"""

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from maskloom.core.checks import check_has_values, check_held, count, flags, integer, integers, length_table, readable
from maskloom.core.words import brief

Side = Literal["right", "left"]
Where = Literal["anywhere", "right", "left"]


def pads_from_lengths(lens: Tensor | Sequence[int], length: int | None = None, *, side: Side = "right") -> Tensor:
    """The padding of sequences that are padded on one side.

    Args:
        lens: integers (B,), the number of real positions of each sequence.
        length: L, the number of positions of a row; by default the longest length (reading it waits for a GPU).
        side: the side of the padding.

    Returns:
        bool (B, L), True = padding.

    Raises:
        ValueError: a length above L (checked on the CPU only), or no ``length``, and lengths on the meta device.
    """
    lens = length_table("lens", lens)
    _one_of("side", side, Side)
    if length is None:
        check_has_values("lens", lens, ": give length=")
        length = int(lens.max()) if lens.numel() else 0
    length = count("length", length)
    if readable(lens) and lens.numel() and int(lens.max()) > length:
        raise ValueError(f"length is {length}, and the longest sequence has {int(lens.max())}")
    positions = torch.arange(length, device=lens.device)
    if side == "right":
        return positions >= lens[:, None]
    return positions < length - lens.long()[:, None]  # narrow dtypes would wrap around


def lengths_from_pads(pads: Tensor, *, side: Side = "right") -> Tensor:
    """The lengths of sequences that are padded on one side; the inverse of `pads_from_lengths`.

    Args:
        pads: bool (B, L), True = padding.
        side: the side of the padding.

    Returns:
        int64 (B,).

    Raises:
        ValueError: a row has padding elsewhere, which lengths cannot describe: use ``padding(pads)`` then. (Checked
            only where that does not wait for a GPU.)
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
        pad_id: the id of padding.
        where: "right" or "left" counts only the run at that end, for vocabularies whose padding id is also a real token
            (for example, an end-of-sequence id).

    Returns:
        bool (B, L), True = padding.

    Raises:
        TypeError: not integers, or a pad_id that is not an int. ValueError: another shape, another ``where``, or a
            pad_id that the dtype of the tokens does not have.
    """
    tokens = integers("tokens", tokens)
    pad_id = integer("pad_id", pad_id, "the token id that fills up")
    if tokens.ndim != 2:
        raise ValueError(f"tokens has shape (B, L); got {tuple(tokens.shape)}")
    check_held("pad_id", pad_id, tokens.dtype, "tokens")
    return _only_at(tokens == pad_id, where)


def pads_from_zeros(x: Tensor, *, where: Where = "anywhere") -> Tensor:
    """The padding of embedded sequences that are padded with zero vectors.

    All features must be zero. (``x[:, :, 0] == 0`` finds padding too, but also real tokens whose first feature is 0.)

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
    """The start of each sequence when they are packed in order, and the end: int32 (B + 1,).

    ``[2, 3]`` gives ``[0, 2, 5]``: FlashAttention's ``cu_seqlens``, and the argument of ``documents(offsets=...)``.

    Raises:
        TypeError, ValueError: not integers, not (B,), a negative length (checked on the CPU only).
    """
    lens = length_table("lens", lens)
    return torch.nn.functional.pad(lens.cumsum(0), (1, 0)).to(torch.int32)


def lengths_from_offsets(offsets: Tensor | Sequence[int]) -> Tensor:
    """The lengths of packed sequences, integers (B,); the inverse of `offsets_from_lengths`.

    Raises:
        TypeError, ValueError: not integers, not (B + 1,), offsets that do not start at 0 or that fall (checked on the CPU only).
    """
    offsets = integers("offsets", offsets)
    if offsets.ndim != 1 or not offsets.numel():
        raise ValueError(f"offsets has shape (sequences + 1,); got {tuple(offsets.shape)}")
    if readable(offsets) and int(offsets[0]):
        raise ValueError(f"offsets start at 0; got {int(offsets[0])}")
    lens = offsets.long().diff().to(offsets.dtype)
    if readable(lens) and lens.numel() and bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"offsets never fall; got {brief(offsets.tolist())}")
    return lens


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
