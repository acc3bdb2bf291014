"""A batch as a model takes it: padded or packed, with its mask, and under the names of other libraries."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.batches.forms import Side
from maskloom.blocks.lifecycle import pin_memory, to_device
from maskloom.core import captures
from maskloom.core.torch_state import counting_writes
from maskloom.core.words import what_it_is
from maskloom.masks.algebra import Mask

T = TypeVar("T")
Field = Tensor | int | list[object]
"""A value of a batch: a tensor, a number, or a list with an entry for each document."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of R rows of L positions: what a `Collator` returns.

    A *document* is a sequence, or the piece of one that is in the batch. A padded batch has one in each row.

    Attributes:
        inputs: (R, L, ...), token ids or vectors.
        labels: int64 (R, L), the label of each token itself, for models that shift labels; -100 at padding and at the
            first token of each document, which no token of it predicts. None if there are none.
        targets: int64 (R, L), the label of the next token; -100 at padding and where the next token is another
            document's. None if there are no labels.
        positions: int64 (R, L), the position of each token in its document; 0 at padding.
        ids: int32 (R, L), the number of each token's document in the batch; -1 at padding.
        lengths: int64 (documents,), the number of tokens of each document.
        items: int64 (documents,), which of the sequences that were put together each document is.
        cu_seqlens: int32 (cuts + 1,), where documents start among the R · L positions, and the end. Padding counts as
            documents, so that every position is in one.
        max_seqlen: the longest of these.
        mask: the mask of the rows. None if it was not asked for.
        blocks: its BlockMask. None if it was not asked for.
        fields: other fields of the sequences: (R, L, ...) if there was an entry for each token, (documents,) if there
            was a number, and a list if it was anything else.
        packed: whether rows are packed.
        side: the side of the padding.
    """

    inputs: Tensor
    labels: Tensor | None
    targets: Tensor | None
    positions: Tensor
    ids: Tensor
    lengths: Tensor
    items: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    mask: Mask | None
    blocks: BlockMask | None
    fields: dict[str, Any]
    packed: bool
    side: Side

    @counting_writes
    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The batch on a device, with its mask and block mask. From pinned memory ``non_blocking`` copies do not wait."""
        return self._changed(
            lambda tensor: tensor.to(device, non_blocking=non_blocking),
            lambda blocks: to_device(blocks, device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """The batch in page-locked memory, with its mask and block mask; ``DataLoader(pin_memory=True)`` calls it."""
        return self._changed(Tensor.pin_memory, pin_memory)

    def transformers(self) -> dict[str, Field]:
        """The batch under transformers' names, for ``model(**batch.transformers())``.

        A padded batch has ``attention_mask`` (int64, 1 = real), and ``position_ids`` only if its padding is at the left. A packed one has none, but ``position_ids``,
        ``cu_seq_lens_q``, ``cu_seq_lens_k`` and ``seq_idx`` (int32), ``max_length_q`` and ``max_length_k`` (ints), as
        ``DataCollatorWithFlattening`` gives them; padding at the end of a row is one more document there.
        """
        named = {self._input_name: self.inputs, "labels": self.labels}
        if self.packed:
            named |= {"position_ids": self._flat_positions(), "seq_idx": self._flat_ids()}
            named |= dict.fromkeys(("cu_seq_lens_q", "cu_seq_lens_k"), self.cu_seqlens)
            lengths: dict[str, Field] = dict.fromkeys(("max_length_q", "max_length_k"), self.max_seqlen)
            return _present(named) | lengths | self.fields
        named |= {"position_ids": self.positions, "attention_mask": (self.ids >= 0).long()}
        if self.side == "right":
            del named["position_ids"]  # as the model counts itself, from its own first number
        return _present(named) | self.fields

    def megatron(self) -> dict[str, Field]:
        """The batch under Megatron's names: ``labels`` are shifted there, and ``loss_mask`` says which count.

        ``cu_seqlens`` (int32) and ``max_seqlen`` are those of ``PackedSeqParams(qkv_format="thd")``, for queries and
        keys. Where ``loss_mask`` is 0 the label is 0.
        """
        named: dict[str, Field] = {"tokens": self.inputs, "position_ids": self._flat_positions()}
        if self.targets is not None:
            counts = self.targets >= 0
            named |= {"labels": self.targets * counts, "loss_mask": counts.float()}
        return named | {"cu_seqlens": self.cu_seqlens, "max_seqlen": self.max_seqlen} | self.fields

    @property
    def _input_name(self) -> str:
        return "inputs_embeds" if self.inputs.is_floating_point() else "input_ids"

    def _flat_ids(self) -> Tensor:
        """The number of each position's document in its row, where padding is one too: int32 (R, L)."""
        rows, length = self.inputs.shape[:2]
        starts = torch.arange(0, rows * length, length, device=self.ids.device)[:, None]
        cuts = self.cu_seqlens.long()
        number = torch.searchsorted(cuts, starts + torch.arange(length, device=cuts.device), right=True)
        return (number - torch.searchsorted(cuts, starts, right=True)).to(torch.int32)

    def _flat_positions(self) -> Tensor:
        """The position of each position in its document, where padding is one too: int64 (R, L)."""
        places = torch.arange(self.ids.numel(), device=self.ids.device)
        cuts = self.cu_seqlens.long()
        return (places - cuts[torch.searchsorted(cuts, places, right=True) - 1]).view(self.ids.shape)

    def _changed(self, change: Callable[[Tensor], Tensor], blocks: Callable[[BlockMask], BlockMask]) -> "Batch":
        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            if isinstance(value, Mask):
                return captures.copied(value, change)
            if isinstance(value, dict):
                return {name: changed(field) for name, field in value.items()}
            return blocks(value) if isinstance(value, BlockMask) else value

        return Batch(**{field.name: changed(getattr(self, field.name)) for field in dataclasses.fields(self)})

    def __repr__(self) -> str:
        kind = "packed" if self.packed else "padded"
        return f"Batch({kind}, {len(self.lengths)} documents, inputs {what_it_is(self.inputs)}, mask {self.mask!r})"


def _present(named: dict[str, T | None]) -> dict[str, T]:
    return {name: value for name, value in named.items() if value is not None}
