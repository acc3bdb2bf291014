"""Sequences of unequal length to a batch: padded or packed, with its mask, block mask, positions, labels and targets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import pad

from maskloom.batches.bins import Over
from maskloom.batches.forms import Side, offsets_from_lengths
from maskloom.blocks.build import block_mask
from maskloom.blocks.grid import checked_block_size
from maskloom.core.checks import check_flags, check_held, integer, positive
from maskloom.core.words import brief
from maskloom.loading.batch import Batch, Field
from maskloom.loading.fields import fields_of, held, is_by_token, is_one_number, labels_of, tensors
from maskloom.loading.layout import Layout, layout_of
from maskloom.masks.algebra import And, Everything, Mask, as_mask
from maskloom.masks.patterns.packed.segments import documents
from maskloom.masks.patterns.packed.within import within
from maskloom.masks.patterns.padding import lengths as lengths_mask
from maskloom.masks.patterns.relative import Causal, Window, causal
from maskloom.program.program import MaskMod

Names = Literal["transformers", "megatron"]
IGNORED = -100
"""The label of a token that does not count, as in ``torch.nn.functional.cross_entropy``."""


@dataclass(frozen=True)
class Collator:
    """Puts sequences of unequal length together: ``collate_fn`` of a DataLoader, ``data_collator`` of a Trainer.

    ::

        collate = loom.batches.Collator(loom.causal, packed=True)
        for batch in DataLoader(sequences, batch_size=8, collate_fn=collate, num_workers=2, pin_memory=True):
            batch = batch.to("cuda", non_blocking=True)
            loss = cross_entropy(model(batch.inputs, batch.blocks, batch.positions), batch.targets)

    Each sequence is token ids, vectors (length, ...), or a mapping with them under ``tokens`` and other fields beside:
    ``labels`` for each token (by default the token ids are labels), and any others. Lists, NumPy arrays and tensors
    are taken. An ``attention_mask`` of ones is left out. ``labels`` that are one number for each sequence, or floats, are
    another field, and there are no targets then.

    The mask and the block mask are built where the collator runs, in the worker, on the CPU.

    Args:
        mask: a Mask or a mask_mod, about positions in one sequence: the same for a padded batch and for a packed one,
            where positions start again in each document. None: each token sees its whole sequence.
        packed: False pads, one sequence in each row. True packs: all sequences into one row, or, with ``length``, into
            rows of that length, by best fit.
        length: L of every batch; by default the longest sequence of the batch, or the sum if packed.
        multiple_of: rounds L up.
        over: with ``length``, what becomes of longer sequences: see `pack_lengths`.
        side: the side of the padding, "right" or "left", in a padded batch.
        pad_id: the token id at padding (vectors are 0 there, and so are other fields).
        tokens: the name of the sequence itself, if sequences are mappings.
        blocks: whether to build the block mask.
        block_size: of the block mask.
        names: "transformers" or "megatron" gives a dict with the names of that library instead of a `Batch`, without
            mask and block mask: ``batch.transformers()``, ``batch.megatron()``.

    Raises:
        TypeError, ValueError: a mask that is none, flags that are none, sizes below 1, other names. A call raises them for an empty batch,
            sequences of several kinds or widths, labels of another length, an attention_mask with a 0, sequences over
            the length, and token ids of a dtype that does not have ``pad_id``.
    """

    mask: MaskMod | None = causal
    packed: bool = False
    length: int | None = None
    multiple_of: int = 1
    over: Over = "raise"
    side: Side = "right"
    pad_id: int = 0
    tokens: str = "input_ids"
    blocks: bool = True
    block_size: int | tuple[int, int] = 128
    names: Names | None = None

    def __post_init__(self) -> None:
        check_flags(packed=self.packed, blocks=self.blocks)
        if self.mask is not None:
            as_mask(self.mask)
        if self.packed and self.side == "left":
            raise ValueError("packed rows have their padding at the right; got side='left'")
        if self.length is not None:
            positive("length", self.length)
            if self.length % positive("multiple_of", self.multiple_of):
                raise ValueError(f"length is a multiple of {self.multiple_of}, as multiple_of says; got {self.length}")
        positive("multiple_of", self.multiple_of)
        integer("pad_id", self.pad_id, "the token id that fills up")
        checked_block_size(self.block_size)
        for name, choices in (("over", get_args(Over)), ("side", get_args(Side)), ("names", (None, *get_args(Names)))):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is one of {', '.join(map(str, choices))}; got {brief(getattr(self, name))}")

    def __call__(self, sequences: Sequence[object]) -> Any:  # not a union: its users know which
        """A `Batch` of the sequences; a dict if the collator has ``names``."""
        fields = fields_of(sequences, self.tokens)
        tokens = tensors(self.tokens, fields.pop(self.tokens))
        if not tokens[0].is_floating_point():
            check_held("pad_id", self.pad_id, tokens[0].dtype, self.tokens)
        lens = [len(one) for one in tokens]
        labels = labels_of(fields, tokens)
        layout = layout_of(
            lens, packed=self.packed, length=self.length, multiple_of=self.multiple_of, over=self.over, side=self.side
        )
        others = {name: _laid_out(layout, name, values, lens) for name, values in fields.items()}
        batch = self._batch(layout, tokens, labels, others)
        return batch if self.names is None else getattr(batch, self.names)()

    def _batch(
        self, layout: Layout, tokens: list[Tensor], labels: list[Tensor] | None, fields: dict[str, Field]
    ) -> Batch:
        own, next_ones = _labels_and_targets(layout, labels)
        mask = self._mask_of(layout) if self.names is None else None
        cuts = layout.cuts()
        return Batch(
            inputs=layout.filled(layout.pieces(tokens), 0 if tokens[0].is_floating_point() else self.pad_id),
            labels=own,
            targets=next_ones,
            positions=layout.filled(layout.positions, 0),
            ids=layout.ids,
            lengths=layout.lengths,
            items=torch.tensor(layout.items, device="cpu"),
            cu_seqlens=cuts,
            max_seqlen=int(cuts.diff().max()),
            mask=mask,
            blocks=self._blocks_of(mask, layout),
            fields=fields,
            packed=self.packed,
            side=self.side,
        )

    def _mask_of(self, layout: Layout) -> Mask:
        inside = as_mask(Everything() if self.mask is None else self.mask)
        if not self.packed and self.side == "right":
            return inside & lengths_mask(layout.lengths)
        if self.packed and layout.shape[0] == 1:
            segments = documents(offsets=offsets_from_lengths(layout.lengths), length=layout.shape[1])
        else:
            segments = documents(layout.ids)
        return inside & segments if _is_relative(inside) else within(segments, inside)

    def _blocks_of(self, mask: Mask | None, layout: Layout) -> Any:
        if mask is None or not self.blocks:
            return None
        return block_mask(mask, layout.shape[1], layout.shape[1], device="cpu", block_size=self.block_size)


def _is_relative(mask: Mask) -> bool:
    """Whether a mask is known to be the same wherever positions start."""
    return isinstance(mask, (Causal, Window, Everything)) or (
        isinstance(mask, And) and all(map(_is_relative, mask.parts))
    )


def _labels_and_targets(layout: Layout, labels: list[Tensor] | None) -> tuple[Tensor | None, Tensor | None]:
    """The label of each token of the rows, and that of the next token."""
    if labels is None:
        return None, None
    own = layout.filled(layout.pieces(labels).long().masked_fill(layout.positions == 0, IGNORED), IGNORED)
    return own, pad(own[:, 1:], (0, 1), value=IGNORED)


def _laid_out(layout: Layout, name: str, values: list[Any], lens: list[int]) -> Any:
    """A field beside the tokens: by token (R, L, ...), a number for each document (documents,), or a list."""
    if all(map(is_by_token, values, lens)):
        return layout.filled(layout.pieces(tensors(name, values)), 0)
    of_documents = [values[item] for item in layout.items]
    if not all(map(is_one_number, values)):
        return of_documents
    numbers = [held(f"{name} of sequence {item}", values[item]) for item in layout.items]
    return torch.tensor(numbers, device="cpu")
