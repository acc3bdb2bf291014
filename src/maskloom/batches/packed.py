"""A padded batch without its padding: all real tokens in one row, and back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskloom.batches.rows import picked, placed
from maskloom.core.captures import checked_device
from maskloom.core.checks import check_has_values, count, flags, form_of, length_table, readable
from maskloom.core.words import what_it_is


@dataclass(frozen=True, eq=False)
class Packed:
    """The real tokens of a padded batch in one row, row after row: what `pack` returns and `unpack` takes.

    A mask for it is ``causal & documents(offsets=packed.offsets, length=packed.total)``.

    Attributes:
        values: (1, T, ...), for T real tokens.
        offsets: int32 (B + 1,), the start of each row's tokens, and the end (``cu_seqlens`` of FlashAttention).
        index: int64 (T,), where each token stands among the B · L positions of the padded batch.
        shape: (B, L) of the padded batch.
    """

    values: Tensor
    offsets: Tensor
    index: Tensor
    shape: tuple[int, int]

    @property
    def total(self) -> int:
        """T, the number of real tokens."""
        return self.index.shape[0]

    @property
    def lengths(self) -> Tensor:
        """The number of real tokens of each row: int32 (B,)."""
        return self.offsets.diff()

    @property
    def ids(self) -> Tensor:
        """The row that each token comes from: int32 (1, T), ids for `documents`."""
        return (self.index // max(self.shape[1], 1)).to(torch.int32)[None]

    @property
    def positions(self) -> Tensor:
        """The position of each token among the real ones of its row, from 0: int64 (1, T)."""
        starts = self.offsets.long().index_select(0, self.ids[0])
        return (torch.arange(self.total, device=self.index.device) - starts)[None]

    @property
    def columns(self) -> Tensor:
        """The column of each token in the padded batch: int64 (1, T); its position if padding is at the right."""
        return (self.index % max(self.shape[1], 1))[None]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Packed":
        """The same with all tensors on ``device``; a TypeError or ValueError if it is none, or not there."""
        there = checked_device(device)
        return self._changed(lambda tensor: tensor.to(there, non_blocking=non_blocking))

    def pin_memory(self) -> "Packed":
        """The same in page-locked memory; ``DataLoader(pin_memory=True)`` calls it."""
        return self._changed(Tensor.pin_memory)

    def _changed(self, change: Callable[[Tensor], Tensor]) -> "Packed":
        return Packed(change(self.values), change(self.offsets), change(self.index), self.shape)

    def __repr__(self) -> str:
        rows, length = self.shape
        return f"Packed({self.total} tokens of {rows} rows of {length}, values {what_it_is(self.values)})"


def pack(x: Tensor, pads_or_lengths: Tensor | Sequence[int] | Packed, *, total: int | None = None) -> Packed:
    """Take the padding out of a batch: its real tokens in one row, in order. `unpack` is the inverse.

    It is differentiable any number of times; what is in the padding, even NaN, reaches neither values nor gradients.
    With lengths on the host (a list, a tensor on the CPU) nothing waits for a device.

    Args:
        x: (B, L, ...), in any dtype.
        pads_or_lengths: bool (B, L), True = padding, anywhere; or integers (B,), the number of real positions of each
            row, with the padding at the right; or the result of an earlier call, to pack another tensor of the same
            batch (labels, say).
        total: T, the number of real tokens, if the host knows it and the table is on a device: nothing waits then. A
            wrong number gives wrong tokens; on the CPU it is checked.

    Raises:
        TypeError: x is not a tensor, or a table of another dtype. ValueError: shapes that do not fit, a length above L
            or another total (both checked on the CPU only), a table on the meta device that has to be read, or an earlier result
            on another device than x.
    """
    if isinstance(x, Tensor) and (x.is_nested or x.layout is not torch.strided):
        raise TypeError(f"x is a dense tensor (B, L, ...); got a {form_of(x)} one")
    if not isinstance(x, Tensor) or x.ndim < 2:
        raise (ValueError if isinstance(x, Tensor) else TypeError)(f"x has shape (B, L, ...); got {what_it_is(x)}")
    rows, length = x.shape[:2]
    if isinstance(pads_or_lengths, Packed):
        layout = pads_or_lengths
        _check_shape(layout.shape, x, "the batch that was packed before")
        _check_device(layout.index, "x", x)
        return Packed(_picked(x, layout.index), layout.offsets, layout.index, layout.shape)
    if total is not None:
        total = count("total", total, of="real tokens")
    if not rows * length and _holds_nothing(pads_or_lengths):  # rows without positions, or none
        pads_or_lengths = torch.zeros(len(pads_or_lengths), dtype=torch.int64, device=x.device)
    if isinstance(pads_or_lengths, Tensor) and pads_or_lengths.dtype == torch.bool:
        pads = flags("pads_or_lengths", pads_or_lengths, true_means="padding")
        _check_can_be_read(pads, x, total)
        _check_shape(tuple(pads.shape), x, "its padding")
        pads = pads.to(x.device, non_blocking=True)
        offsets, index = _offsets_of((~pads).sum(1)), index_of_pads(pads, total)
    else:
        lens = _checked_lengths(pads_or_lengths, rows, length)
        _check_can_be_read(lens, x, total)
        total = _total_of(pads_or_lengths, lens, total)
        lens = lens.long().to(x.device, non_blocking=True)  # few numbers: the host only puts them in the queue
        offsets, index = _offsets_of(lens), index_of_lengths(lens, length, total)
    return Packed(_picked(x, index), offsets, index, (rows, length))


def unpack(packed: Packed, values: Tensor | None = None) -> Tensor:
    """Put packed tokens back where they stood: (B, L, ...), with zeros in the padding. The inverse of `pack`.

    It is differentiable any number of times, and never waits for a device.

    Args:
        packed: the result of `pack`.
        values: (1, T, ...), what to put back, of any width and dtype (the output of a model, say); by default the
            tokens that were packed.

    Raises:
        TypeError: not a Packed, or values that are no tensor. ValueError: values of another shape, or on another device.
    """
    if not isinstance(packed, Packed):
        raise TypeError(f"unpack takes what pack returned; got {what_it_is(packed)}")
    values = packed.values if values is None else values
    if not isinstance(values, Tensor):
        raise TypeError(f"values is a tensor (1, {packed.total}, ...); got {what_it_is(values)}")
    if values.ndim < 2 or values.shape[:2] != (1, packed.total):
        raise ValueError(f"values has shape (1, {packed.total}, ...), as packed; got {tuple(values.shape)}")
    _check_device(packed.index, "values", values)
    rows, length = packed.shape
    return placed(values[0], packed.index, rows * length).view(rows, length, *values.shape[2:])


def _picked(x: Tensor, index: Tensor) -> Tensor:
    return picked(x.flatten(0, 1), index)[None]


def _check_shape(shape: tuple[int, ...], x: Tensor, whose: str) -> None:
    if tuple(shape) != tuple(x.shape[:2]):
        raise ValueError(f"x has (B, L) = {tuple(x.shape[:2])}, and {whose} {tuple(shape)}")


def _checked_lengths(lengths: Tensor | Sequence[int], rows: int, length: int) -> Tensor:
    if isinstance(lengths, Tensor) and lengths.ndim > 1:
        raise ValueError(
            f"pads_or_lengths is bool (B, L), True = padding, or integers (B,), lengths; got {what_it_is(lengths)}. "
            "For a table where 1 is a real token give table == 0"
        )
    lens = length_table("pads_or_lengths", lengths)
    if len(lens) != rows:
        raise ValueError(f"x has {rows} rows, and there are {len(lens)} lengths")
    if readable(lens) and lens.numel() and int(lens.max()) > length:
        raise ValueError(f"x has rows of {length} positions, and a length is {int(lens.max())}")
    return lens


def _holds_nothing(pads_or_lengths: object) -> bool:
    if isinstance(pads_or_lengths, Tensor):
        return pads_or_lengths.dtype == torch.bool and pads_or_lengths.ndim == 2 and pads_or_lengths.shape[1] == 0
    return isinstance(pads_or_lengths, (list, tuple)) and not pads_or_lengths


def _check_can_be_read(table: Tensor, x: Tensor, total: int | None) -> None:
    if not x.is_meta:
        check_has_values("pads_or_lengths", table)
    elif total is None:
        check_has_values("pads_or_lengths", table, ": give total=, the number of real tokens")


def _check_device(index: Tensor, name: str, tensor: Tensor) -> None:
    if index.device != tensor.device:
        raise ValueError(
            f"{name} is on {tensor.device}, and the packed tokens are on {index.device}; packed.to moves them"
        )


def _total_of(given: object, lens: Tensor, total: int | None) -> int:
    """The number of real tokens; reading it from a device waits."""
    if total is None:
        return sum(given) if isinstance(given, (list, tuple)) else int(lens.sum())
    if readable(lens) and int(lens.sum()) != total:
        raise ValueError(f"total is {total}, and the lengths add up to {int(lens.sum())}")
    return total


def _offsets_of(lens: Tensor) -> Tensor:
    return pad(lens.cumsum(0), (1, 0)).to(torch.int32)


def index_of_lengths(lens: Tensor, length: int, total: int) -> Tensor:
    """Where each token stands among the B · L positions of a batch: int64 (total,), of lengths (B,) that add up to it."""
    lens = lens.long()
    rows = torch.arange(len(lens), device=lens.device)
    places = rows * length - (lens.cumsum(0) - lens)  # from a token's place among the tokens to its position
    index = torch.arange(total, device=lens.device)
    return index + places.repeat_interleave(lens, output_size=total)


def index_of_pads(pads: Tensor, total: int | None) -> Tensor:
    """The same of pads (B, L), True = padding, anywhere; without a total this waits for a device."""
    real = ~pads.flatten()
    if total is None:
        return real.nonzero()[:, 0]
    if readable(pads) and int(real.sum()) != total:
        raise ValueError(f"total is {total}, and {int(real.sum())} positions are real")
    return places_of(real, total)


def places_of(flags: Tensor, count: int) -> Tensor:
    """The places of flags (N,), of which ``count`` are True, as the host knows: int64 (count,). No device is waited for."""
    order = torch.where(
        flags, flags.cumsum(0) - 1, count
    )  # what is no place is written behind the end, which is cut off
    positions = torch.arange(len(flags), device=flags.device)
    return positions.new_zeros(count + 1).scatter(0, order, positions)[:count]


def sources_of_lengths(lens: Tensor, length: int, total: int) -> Tensor:
    """Which token stands at each of the B · L positions of a batch, ``total`` at padding: int64 (B · L,), of lengths (B,)."""
    lens = lens.long()[:, None]
    columns = torch.arange(length, device=lens.device)
    return torch.where(columns < lens, columns + (lens.cumsum(0) - lens), total).flatten()


def sources_of_pads(pads: Tensor, total: int) -> Tensor:
    """The same of pads (B, L), True = padding, anywhere."""
    real = ~pads.flatten()
    return torch.where(real, real.cumsum(0) - 1, total)
