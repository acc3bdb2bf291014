"""A cache of keys and values for decoding: static, growing in buckets, or rolling under a window."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.checks import check_flags, count, count_by_row, integers, readable
from maskloom.core.symbols import is_int, known
from maskloom.core.torch_state import counting_writes, is_tracing
from maskloom.core.words import brief
from maskloom.masks.algebra import everything
from maskloom.nn.slots import Slots
from maskloom.nn.upcoming import Counted, Prompt, Upcoming, check_appended, check_taken_back, longest_of, real_tokens


class KVCache:
    """Keys and values of the tokens so far, for the attention of one layer.

    ::

        cache = loom.nn.KVCache(batch=2, n_kv_heads=4, size=1024, d_head=64, lengths=[9, 6])  # prompts padded to 9
        keys, values, mask = cache.append(new_keys, new_values)        # (2, 4, L, 64) in
        out = loom.attend(queries, keys, values, loom.causal & mask)   # causal speaks of true positions

    Only real tokens are stored, one after another from position 0 on, in each row by itself. So rows of unequal length,
    padded on the right or on the left, hold the same as each would alone. Padding is never written, and unwritten slots
    are zeros: NaN in padding never comes in.

    ``mask`` is a Mask that hides what is not written, and gives true positions to masks that are joined to it by ``&``:
    the position of a query and of a key in its row. It comes last: ``(a | b) & mask``. A score mod beside it gets true
    positions too. `MultiheadFlexAttention` does all this: ``attention(x, loom.causal, cache=cache)``.

    Positions live on the device and are never waited for, so that a step can be captured in a CUDA graph and compiles
    once. The host counts along only to refuse what would not fit, from ``lengths`` and ``pads`` that lie on the CPU; from
    those on a device it takes every token for real.

    Args:
        batch: B, batch rows.
        n_kv_heads: Hkv, key-value heads.
        size: slots of each row: the most tokens, if the cache does not grow or roll. With ``window``, at least that;
            each slot more saves a copy when that many more tokens are appended at once, and lets `crop` take as many
            back.
        d_head: D, features of a key.
        window: no query sees keys before the last ``window``, its own among them, and they are overwritten: beside `causal`
            ``loom.window(back=window - 1)`` is the same. A row may then be of any length.
        lengths: integers (B,), the real tokens of each row in the first `append`, a prompt padded on the right. Without
            it, and without ``pads`` there, all are real.
        grow: add ``size`` slots, in a copy, whenever tokens would not fit.
        d_value: E, features of a value; by default D.
        device, dtype: of keys and values; by default those that torch makes tensors with.

    Raises:
        TypeError, ValueError: sizes below 1, a flag that is none, a window that is larger than size or grows, lengths of another shape.
    """

    @counting_writes
    def __init__(
        self,
        batch: int,
        n_kv_heads: int,
        size: int,
        d_head: int,
        *,
        window: int | None = None,
        lengths: Tensor | Sequence[int] | None = None,
        grow: bool = False,
        d_value: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_flags(grow=grow)
        self.batch = count("batch", batch, least=1, of="batch rows")
        heads = count("n_kv_heads", n_kv_heads, least=1, of="key-value heads")
        self.size = count("size", size, least=1, of="slots")
        d_head = count("d_head", d_head, least=1, of="features")
        d_value = d_head if d_value is None else count("d_value", d_value, least=1, of="features")
        self.window = None if window is None else count("window", window, least=1, of="keys")
        if self.window is not None and (self.window > self.size or grow):
            what = "and a cache that grows keeps all keys" if grow else "of as many slots at least"
            raise ValueError(f"window is {self.window} keys, {what}; got size={self.size}, grow={grow}")
        self._bucket = self.size if grow else None
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            raise TypeError(f"dtype is that of keys and values, floating point; got {brief(dtype)}")
        device = None if device is None else captures.checked_device(device)
        # one slot more, where what is not kept goes
        made = torch.zeros(self.batch, heads, self.size + 1, d_head, device=device, dtype=dtype)
        self._keys, self._values = made, made.new_zeros(self.batch, heads, self.size + 1, d_value)
        self._rows = torch.arange(self.batch, device=made.device)[:, None]
        self.lengths = torch.zeros(self.batch, dtype=torch.int64, device=made.device)
        self._expect(lengths)

    _is_fresh: bool
    _prompt: Prompt | None
    _behind: (
        Tensor | None
    )  # on the CPU, by how many tokens each row is known to be shorter than ``longest``; None: unknown
    _had: Tensor | None  # of a rolling cache on the CPU, the tokens that each row had before some were taken back

    lengths: Tensor
    """int64 (B,): the tokens of each row so far, which is the position of the next; on the device, written in place."""

    longest: int
    """The longest row that there can be, as far as the host knows."""

    @property
    def keys(self) -> Tensor:
        """(B, Hkv, size, D); zeros where nothing is written."""
        return self._keys[:, :, : self.size]

    @property
    def values(self) -> Tensor:
        """(B, Hkv, size, E); zeros where nothing is written."""
        return self._values[:, :, : self.size]

    @property
    def device(self) -> torch.device:
        """Where keys and values lie."""
        return self._keys.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of keys and values."""
        return self._keys.dtype

    # -- writing ---------------------------------------------------------------------------------------------------

    def upcoming(self, length: int, pads: Tensor | None = None) -> Upcoming:
        """The positions that the next ``length`` tokens of each row will have, for rotary embeddings say.

        Args:
            pads: bool (B, length), True = padding, anywhere in a row, as in `append`.
        """
        if not is_int(length) or known(length < 0):
            length = count("length", length, of="tokens")
        prompt = self._prompt if self._is_fresh else None
        real, counts, most = real_tokens(prompt, pads, (self.batch, length), self.device)
        if real is None:
            at = self.lengths[:, None] + torch.arange(length, device=self.device)
            return Upcoming(at, is_padded=False, longest=self.longest + most, before=self.longest)
        at = (self.lengths[:, None] + real.cumsum(1) - 1).masked_fill(~real, -1)
        if counts is None:
            return Upcoming(at, is_padded=True, longest=self.longest + most, before=self.longest)
        longest, behind = longest_of(counts + self._counts())
        return Upcoming(at, is_padded=True, longest=longest, behind=behind, before=self.longest)

    def append(
        self, keys: Tensor, values: Tensor, *, pads: Tensor | None = None, upcoming: Upcoming | None = None
    ) -> tuple[Tensor, Tensor, Slots]:
        """Write the keys and values of the next tokens, and give what their queries attend to.

        Args:
            keys: (B, Hkv, L, D), values: (B, Hkv, L, E), in the cache's dtype (under autocast they are cast to it).
                Gradients do not pass through a cache; where they would be needed a warning says so.
            pads: bool (B, L), True = padding, anywhere in a row: padding on the left, chunks of prompts, rows that have
                ended. It is not written, and as a query it sees nothing.
            upcoming: what `upcoming` returned for these tokens, in place of ``pads``.

        Returns:
            keys (B, Hkv, K, D) and values (B, Hkv, K, E), and the mask of L queries and K slots. K is ``size``; at the
            first append of a static or growing cache L, if that is less; and where a rolling one gets more tokens than fit
            beside its window, the slots and the new tokens.

        Raises:
            TypeError, ValueError: other shapes, dtypes or devices, more tokens than fit, pads beside upcoming, or what `upcoming`
                returned for other tokens.
        """
        check_appended(keys, values, self._keys, self._values)
        length = keys.shape[2]
        coming = self.upcoming(length, pads) if upcoming is None else upcoming
        if upcoming is not None:
            self._check_upcoming(upcoming, length, pads)
        self._make_room(coming.longest)
        keys, values = (self._cleaned(tensor, coming) for tensor in (keys, values))
        is_first, self._is_fresh = self._is_fresh, False
        total = self.lengths + ((coming.positions >= 0).sum(1) if coming.is_padded else length)
        if self.window is not None and length > self.size - self.window + 1:
            found = self._beside(keys, values, coming, total, is_first)
            self._write(keys, values, coming, total)
        else:
            self._write(keys, values, coming, total)
            stop = min(length, self.size) if is_first and self.window is None else self.size
            found = self._slots(coming, total, stop)
        self.longest = coming.longest
        if coming.behind is not None:
            self._behind = coming.behind
        self.lengths.copy_(total)
        return found

    def _slots(self, coming: Upcoming, total: Tensor, stop: int) -> tuple[Tensor, Tensor, Slots]:
        """The first ``stop`` slots."""
        ring = None if self.window is None else self.size
        slots = Slots(everything, coming.positions, total, None, ring, self.window)
        return self._keys[:, :, :stop], self._values[:, :, :stop], slots

    def _beside(
        self, keys: Tensor, values: Tensor, coming: Upcoming, total: Tensor, is_first: bool
    ) -> tuple[Tensor, Tensor, Slots]:
        """The ring as it is, and the new tokens beside it: early ones need keys that late ones overwrite."""
        at = coming.positions
        if not is_first:
            at = torch.cat([self._positions(), at], 1)
            keys, values = torch.cat([self.keys, keys], 2), torch.cat([self.values, values], 2)
        return keys, values, Slots(everything, coming.positions, total, at, None, self.window)

    def _positions(self) -> Tensor:
        """The position in each slot: (1 or B, size); negative, or beyond the row, where there is none."""
        slots = torch.arange(self.size, device=self.device)[None]
        last = self.lengths[:, None] - 1
        return slots if self.window is None else last - (last + self.size - slots) % self.size

    def _write(self, keys: Tensor, values: Tensor, coming: Upcoming, total: Tensor) -> None:
        at = coming.positions
        slots = at if self.window is None else at % self.size
        if coming.is_padded or (self.window is not None and at.shape[1] > self.size):
            kept = at >= 0 if self.window is None else (at >= 0) & (at >= total[:, None] - self.size)
            slots = torch.where(kept, slots, self.size)
        self._keys[self._rows, :, slots] = keys.transpose(1, 2)
        self._values[self._rows, :, slots] = values.transpose(1, 2)

    def _cleaned(self, tensor: Tensor, coming: Upcoming) -> Tensor:
        tensor = tensor.detach().to(self.dtype)
        return torch.where(coming.positions[:, None, :, None] >= 0, tensor, 0) if coming.is_padded else tensor

    def counted(self) -> Counted:
        """What the host knows of the rows, for `undo`."""
        return Counted(self.longest, self._behind, self._is_fresh)

    @torch.no_grad()
    def undo(self, before: Counted, coming: Upcoming, keys: Tensor, values: Tensor) -> None:
        """Take back the last `append`, of which a call was refused: the rows are as they were before it.

        Args:
            before: what `counted` gave before it.
            coming: its upcoming tokens.
            keys, values: what it returned.
        """
        at = coming.positions
        slots = at if self.window is None else at % self.size
        slots = torch.where(at >= 0, slots, self.size)
        were_beside = not before.is_fresh and keys.shape[2] > self.size
        for stored, found in ((self._keys, keys), (self._values, values)):
            stored[self._rows, :, slots] = 0
            if were_beside:  # the slots as they were, and the new tokens
                stored[:, :, : self.size] = found[:, :, : self.size]
        self.lengths.sub_((at >= 0).sum(1))
        if self.window is not None and not (were_beside or before.is_fresh):
            # what was overwritten is seen again only if more tokens are taken back
            had = self._counts()
            self._had = had if self._had is None else torch.maximum(had, self._had)
        self.longest, self._behind, self._is_fresh = before.longest, before.behind, before.is_fresh

    # -- changing --------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def crop(self, length: int | Tensor | Sequence[int]) -> None:
        """Take tokens back, from the end, so that no row has more than ``length``: drafts that were not accepted.

        Args:
            length: an int for all rows, or integers (B,). Integers on a device are not read: that they take back no more than
                size - window tokens of a rolling cache is up to you, and the host goes on counting what they took back.

        Raises:
            TypeError, ValueError: not a length; or a rolling cache that has overwritten keys which would be seen again.
        """
        most = count_by_row("length", length)
        if isinstance(most, Tensor) and len(most) != self.batch:
            raise ValueError(f"length is an int, or one for each of {self.batch} batch rows; got {len(most)}")
        counted = self._cropped(most)
        kept = torch.minimum(self.lengths, torch.as_tensor(most, device=self.device))
        if isinstance(most, int) and self.window is None:
            for stored in (self._keys, self._values):
                stored[:, :, most : self.longest].zero_()
        else:
            gone = (self._positions() >= kept[:, None])[:, None, :, None]
            for stored in (self.keys, self.values):
                stored.masked_fill_(gone, 0)
        self.lengths.copy_(kept)
        self.longest, self._behind = counted

    @torch.no_grad()
    def reorder(self, rows: Tensor | Sequence[int]) -> None:
        """Give each row the contents of another, as beam search does: row i becomes ``rows[i]``.

        Args:
            rows: integers (B,), the row that each is taken from; one may be taken several times.

        Raises:
            TypeError, ValueError: not integers, or not (B,); numbers of rows that there are not (on the CPU only).
        """
        taken = integers("rows", rows).long()
        is_known = readable(taken)
        if taken.shape != (self.batch,) or (is_known and not bool(((taken >= 0) & (taken < self.batch)).all())):
            got = taken.tolist() if is_known else brief(rows)
            raise ValueError(f"rows are {self.batch} numbers of rows, 0 to {self.batch - 1}; got {got}")
        if self._behind is not None:
            self.longest, self._behind = longest_of(self._counts()[taken]) if is_known else (self.longest, None)
        if self._had is not None:
            self._had = self._had[taken] if is_known else torch.full_like(self._had, int(self._had.max()))
        taken = taken.to(self.device)
        for stored in (self._keys, self._values, self.lengths):
            stored.copy_(stored[taken])

    @torch.no_grad()
    def reset(self, lengths: Tensor | Sequence[int] | None = None) -> None:
        """Empty the cache, for other rows. Its memory stays, and so do the slots that it has grown.

        Args:
            lengths: as for the class, of the next first `append`.
        """
        self._expect(lengths)  # which may refuse them
        for stored in (self._keys, self._values, self.lengths):
            stored.zero_()

    def __repr__(self) -> str:
        """Sizes and form."""
        (batch, heads, _, d_head), device = self._keys.shape, self.device
        form = f", window={self.window}" if self.window else ", grow=True" if self._bucket else ""
        return f"KVCache({batch}, {heads}, {self.size}, {d_head}{form}, dtype={self.dtype}, device='{device}')"

    # -- the host's part -------------------------------------------------------------------------------------------

    def _expect(self, lengths: Tensor | Sequence[int] | None) -> None:
        """An empty cache, whose first append has so many real tokens in each row."""
        self._prompt = None if lengths is None else Prompt.of(lengths, self.batch, self.device)
        self._is_fresh, self.longest, self._behind, self._had = True, 0, None, None

    def _counts(self) -> Tensor:
        """The most tokens that each row can have: int64 (B,), on the CPU."""
        counts = torch.full((self.batch,), self.longest, device="cpu")
        return counts if self._behind is None else counts - self._behind

    def _cropped(self, most: int | Tensor) -> tuple[int, Tensor | None]:
        """`longest`, and how far rows are behind it, when each keeps ``most`` tokens at most.

        Raises:
            ValueError: a rolling cache that has overwritten keys which would be seen again.
        """
        if is_tracing():
            return min(self.longest, most) if isinstance(most, int) else self.longest, None
        if isinstance(most, Tensor) and not readable(most):
            return self.longest, self._behind
        counts = self._counts()
        kept = counts.clamp(max=most) if isinstance(most, int) else torch.minimum(counts, most)
        if self.window is not None:
            had = counts if self._had is None else torch.maximum(counts, self._had)
            check_taken_back(had, counts, kept, self.size, self.window, most)
            self._had = had
        return longest_of(kept)

    def _check_upcoming(self, coming: Upcoming, length: int, pads: Tensor | None) -> None:
        """Raise a ValueError for what `upcoming` returned for other tokens, as far as the host knows."""
        if pads is not None:
            raise ValueError("upcoming says which tokens are padding: give upcoming or pads, not both")
        if coming.positions.shape[1] != length:
            raise ValueError(f"upcoming is of {coming.positions.shape[1]} tokens, and there are keys of {length}")
        if coming.positions.shape[0] != self.batch:
            raise ValueError(f"upcoming is of {coming.positions.shape[0]} batch rows, and the cache of {self.batch}")
        if not is_tracing() and coming.before != self.longest:
            raise ValueError(
                f"upcoming is of a cache whose rows have up to {coming.before} tokens; those of this one have up to {self.longest}: "
                "ask for it anew before each append"
            )

    def _make_room(self, longest: int) -> None:
        if self.window is not None or longest <= self.size:
            return
        if self._bucket is None:
            raise ValueError(
                f"the cache has {self.size} slots in each row, and rows may come to {longest} tokens; make it larger, or with "
                "grow=True or a window. (Tokens are counted on the host: of lengths and pads on a device, all)"
            )
        size = -(-longest // self._bucket) * self._bucket
        self._keys, self._values = (self._grown(stored, size) for stored in (self._keys, self._values))
        self.size = size

    @counting_writes
    def _grown(self, stored: Tensor, size: int) -> Tensor:
        batch, heads, _, width = stored.shape
        grown = stored.new_zeros(batch, heads, size + 1, width)
        grown[:, :, : self.size] = stored[:, :, : self.size]
        return grown
