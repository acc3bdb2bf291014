"""Packed documents are isolated, whether transformers saw them or not.

transformers looks for packed documents only where there is neither padding nor a cache, and ``use_cache`` is on by
default. So the attention function looks again: it gets ``position_ids``, and ``cu_seq_lens_q`` where the collator gave it.
"""

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.batches.documents import ids_from_offsets, ids_from_positions
from maskloom.core.checks import readable
from maskloom.core.symbols import is_int, is_one_of
from maskloom.core.words import brief
from maskloom.integrations.transformers.keywords import Said
from maskloom.integrations.transformers.layer_mask import LayerMask, Place, built, cut
from maskloom.integrations.transformers.mask_functions import inside_counted, inside_documents, is_causal, is_relative
from maskloom.masks.algebra import Mask, and_masks
from maskloom.masks.patterns.packed.segments import documents


def isolated(layer: LayerMask, told: Said) -> Mask | BlockMask | Tensor:
    """The layer's mask, which hides other documents too, where the keywords tell of some. Layers share it.

    Raises:
        ValueError: offsets that are not those of these rows.
    """
    if layer.cut_from is not None:
        whole, first = layer.cut_from
        found = isolated(whole, told)
        return layer.mask if found is whole.mask else cut(found, first, layer.place)
    if told.cu_seq_lens_q is None and not layer.may_be_packed:
        return layer.mask
    teller = told.position_ids if told.cu_seq_lens_q is None else told.cu_seq_lens_q
    known = layer.isolated
    if known is not None and known[0] is teller:
        return known[1]
    mask = _isolated_by(layer, told)
    if not torch.compiler.is_dynamo_compiling():  # a layer that finds what an earlier one left would need another graph
        layer.isolated = teller, mask
    return mask


def _isolated_by(layer: LayerMask, told: Said) -> Mask | BlockMask | Tensor:
    """The layer's mask inside the documents that position ids, or offsets, tell of."""
    if told.cu_seq_lens_q is not None:
        return _by_offsets(layer, told.cu_seq_lens_q, told.cu_seq_lens_k)
    ids = _positions(layer, told)
    return layer.mask if ids is None else _by_positions(layer, ids)


def _positions(layer: LayerMask, told: Said) -> Tensor | None:
    """The position ids of queries that may be of several documents; None where they are not.

    What a layer is told counts for causal masks, and where it is known to attend to itself: cross-attention is told the positions of
    its queries. Inside torch.compile a mask that could not be read is taken for a causal one, since that of cross-attention can be.
    """
    place = layer.place
    of_itself = (
        layer.positions.of_itself
        or is_causal(layer.pattern)
        or (torch.compiler.is_dynamo_compiling() and not is_relative(layer.pattern))
    )
    known = layer.positions.ids
    ids = told.position_ids if known is None and of_itself else known
    fits = (
        isinstance(ids, Tensor)
        and ids.ndim == 2
        and is_one_of(ids.shape[0], 1, place.batch)
        and ids.shape[1] == place.q_len
    )
    return ids if fits else None


def _by_positions(layer: LayerMask, position_ids: Tensor) -> Mask | BlockMask | Tensor:
    position_ids = position_ids[0] if position_ids.shape[0] == 1 else position_ids  # one row is for all
    ids = ids_from_positions(position_ids)
    if readable(ids) and not bool(ids[..., -1].any()):
        return layer.mask
    if _is_whole(layer.place):
        return built(inside_counted(position_ids, layer.pattern), layer.place)
    return _beside_cache(layer, ids)


def _by_offsets(layer: LayerMask, offsets: Tensor, kv_offsets: Tensor | None) -> Mask | BlockMask | Tensor:
    place = layer.place
    own_keys = None if kv_offsets is offsets or is_causal(layer.pattern) else kv_offsets
    if place.batch != 1:
        ids = _ids_of_rows(offsets, place.batch, place.q_len)
        if own_keys is None:
            return _by_ids(layer, ids)
        packed = documents(ids, kv_ids=_ids_of_rows(own_keys, place.batch, place.kv_len))
        return built(and_masks(layer.unbuilt, packed), place)
    if own_keys is not None:
        packed = documents(offsets=offsets, kv_offsets=own_keys, length=place.q_len, kv_length=place.kv_len)
        return built(and_masks(layer.unbuilt, packed), place)
    if _is_whole(place) and layer.open_to_packing:
        return built(inside_documents(documents(offsets=offsets, length=place.q_len), layer.pattern), place)
    return _beside_cache(layer, ids_from_offsets(offsets, place.q_len))


def _by_ids(layer: LayerMask, ids: Tensor) -> Mask | BlockMask | Tensor:
    if _is_whole(layer.place) and layer.open_to_packing:
        return built(inside_documents(documents(ids), layer.pattern), layer.place)
    return _beside_cache(layer, ids)


def _ids_of_rows(offsets: Tensor, batch: int, length: int) -> Tensor:
    """Ids (B, L) of several packed rows, whose offsets count on from row to row, as flash attention takes them.

    Raises:
        ValueError: a document that begins in one row and ends in another, or offsets that end elsewhere (on the CPU only).
    """
    total = batch * length
    if readable(offsets) and not torch.isin(torch.arange(0, total + 1, length), offsets[offsets <= total]).all():
        raise ValueError(
            "cu_seq_lens tells where documents begin among the positions of all rows, one row behind the other, and no document "
            f"is in two rows; the batch has {batch} rows of {length}, and cu_seq_lens is {brief(offsets.tolist())}"
        )
    return ids_from_offsets(offsets, total).view(batch, length)


def _is_whole(place: Place) -> bool:
    """Whether queries and keys are the same positions, from 0 on."""
    return (
        is_int(place.q_offset)
        and is_int(place.kv_offset)
        and place.q_offset == 0 == place.kv_offset
        and place.q_len == place.kv_len
    )


def _beside_cache(layer: LayerMask, ids: Tensor) -> Mask | BlockMask | Tensor:
    """Documents among the queries of this call, (Q,) or (B, Q); what the cache held before is of the first of them."""
    place = layer.place
    keys = torch.arange(place.kv_len, device=ids.device) + (place.kv_offset - place.q_offset)
    packed = documents(ids, kv_ids=ids[..., keys.clamp(0, place.q_len - 1)].contiguous())
    return built(and_masks(layer.unbuilt, packed), place)
