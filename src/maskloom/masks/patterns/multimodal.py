"""Masks of text with images: in one sequence, and with cross-attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from maskloom.batches.documents import neighbour
from maskloom.core.checks import by_position, copied, integers, positive
from maskloom.masks.algebra import Tabled, mask_dataclass, shown
from maskloom.masks.lookups import at

__all__ = ["mixed_modal", "flamingo"]


@mask_dataclass
class MixedModal(Tabled):
    """See `mixed_modal`."""

    runs_in_flash = True

    last: Tensor
    name = "mixed_modal"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return kv_idx <= at(self.last, b, q_idx)


def mixed_modal(modality_ids: Tensor | Sequence[int]) -> MixedModal:
    """Text is causal. The tokens of one image see each other both ways, and everything before the image.

    ::

        mixed_modal([-1, 0, 0, -1, 1, 1])   k0 k1 k2 k3 k4 k5
                                   text q0   x
                                image 0 q1   x  x  x
                                image 0 q2   x  x  x
                                   text q3   x  x  x  x
                                image 1 q4   x  x  x  x  x  x
                                image 1 q5   x  x  x  x  x  x

    A run of equal ids is one image. The mask holds the last position that each query sees, int64 (L,) or (B, L): later
    writes into the ids have no effect.

    Source: Zhou et al. 2024 (Transfusion); Gemma 3 in Hugging Face transformers does the same. Its sliding layers see
    nothing before the window, not even inside an image: ``mixed_modal(modality_ids) & window(back=w - 1,
    ahead=length)`` for ``sliding_window=w`` (since transformers' #46850; before that, ``window(back=w - 1) |
    documents(modality_ids)``). In PaliGemma every token sees the whole prompt: ``causal | prefix(n)``.

    Args:
        modality_ids: integers (L,) or (B, L): the image of each token, negative for text. A bool table, True = a token
            of an image, is enough if there is text between any two images.

    Raises:
        TypeError: neither integers nor bool. ValueError: another shape.
    """
    table = modality_ids if isinstance(modality_ids, Tensor) else copied("modality_ids", modality_ids, "integers")
    ids = table.long() - 1 if table.dtype == torch.bool else integers("modality_ids", table)
    return MixedModal(_last_of_run(by_position("modality_ids", ids)))


@mask_dataclass
class Flamingo(Tabled):
    """See `flamingo`."""

    text_media: Tensor
    media: int | Tensor
    all_before: bool

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        q_media = at(self.text_media, b, q_idx)
        media = self.media
        kv_media = at(media, b, kv_idx) if isinstance(media, Tensor) and media.ndim else kv_idx // media
        seen = kv_media <= q_media if self.all_before else kv_media == q_media
        return seen & (kv_media >= 0)

    def __repr__(self) -> str:
        media = "media_ids" if isinstance(self.media, Tensor) else "tokens_per_media"
        all_before = ", all_before=True" if self.all_before else ""
        return f"flamingo(bool{list(self.text_media.shape)}, {media}={shown(self.media)}{all_before})"


def flamingo(
    media_locations: Tensor | Sequence[bool],
    *,
    tokens_per_media: int | None = None,
    media_ids: Tensor | Sequence[int] | None = None,
    all_before: bool = False,
) -> Flamingo:
    """Cross-attention from text to images: each text token sees the latest image before it, or at its own position.

    ::

        flamingo([False, True, False, True], tokens_per_media=2)   k0 k1 k2 k3
                                                        a word q0
                                                       image 0 q1   x  x
                                                        a word q2   x  x
                                                       image 1 q3         x  x

        flamingo([False, True, False, True], tokens_per_media=2, all_before=True)   k0 k1 k2 k3
                                                                         a word q0
                                                                        image 0 q1   x  x
                                                                         a word q2   x  x
                                                                        image 1 q3   x  x  x  x

    Text before the first image sees nothing. Queries are text, and keys are the tokens of all images in order. The mask
    holds the image that each query sees, int64 (Q,) or (B, Q), and a copy of media_ids: later writes into the arguments
    have no effect.

    Source: Alayrac et al. 2022 (Flamingo), section 2.3; the markers are OpenFlamingo's ``media_locations``, and
    ``all_before`` is its ``only_attend_immediate_media=False``.

    Args:
        media_locations: bool (Q,) or (B, Q), True where an image stands in the text.
        tokens_per_media: number of tokens of an image, at least 1, if it is the same for all images.
        media_ids: otherwise, integers (K,) or (B, K), the image that each key belongs to: 0 for the first; negative for
            none.
        all_before: whether a text token sees all images before it, not only the latest.

    Raises:
        TypeError: not bool, not integers; both tokens_per_media and media_ids, or neither. ValueError: another shape.
    """
    if (tokens_per_media is None) == (media_ids is None):
        got = "neither" if media_ids is None else "both"
        raise TypeError(f"flamingo takes tokens_per_media= or media_ids=, one of them; got {got}")
    table = (
        media_locations if isinstance(media_locations, Tensor) else copied("media_locations", media_locations, "bools")
    )
    if table.dtype != torch.bool:
        raise TypeError(f"media_locations are bool, True = an image stands here; got {table.dtype}")
    text_media = by_position("media_locations", table, "Q").long().cumsum(-1) - 1
    if media_ids is None:
        return Flamingo(text_media, positive("tokens_per_media", tokens_per_media), all_before)
    return Flamingo(text_media, by_position("media_ids", integers("media_ids", media_ids), "K").clone(), all_before)


def _last_of_run(ids: Tensor) -> Tensor:
    """The last position of each position's run of equal ids; the position itself where the id is negative: int64."""
    positions = torch.arange(ids.shape[-1], device=ids.device).expand_as(ids)
    ends = (ids != neighbour(ids, 1)) | (positions == ids.shape[-1] - 1)
    next_end = torch.where(ends, positions, ids.shape[-1]).flip(-1).cummin(-1).values.flip(-1)
    return torch.where(ids < 0, positions, next_end)
