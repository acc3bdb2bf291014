"""`visualize_attention_scores`: the picture of scores, with the arguments that attention-gym's has."""

import os
from pathlib import Path

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.words import brief
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod
from maskloom.show.figures import checked_suffix, file_of, save_figure


def visualize_attention_scores(
    query: Tensor,
    key: Tensor,
    score_mod: ScoreMod | None = None,
    mask_mod: MaskMod | Tensor | None = None,
    device: torch.device | str | None = None,
    name: str = "attention_scores",
    path: str | os.PathLike[str] | None = None,
    batch_idx: int = 0,
    head_idx: int = 0,
    scale: float | None = None,
) -> Path:
    """Write a picture of one head's scores, before the softmax, with hidden cells hatched.

    The arguments are those of attention-gym's function of the same name. Here score_mod and mask_mod are both optional
    and may be combined, and query heads may share key heads. `maskloom.show.attention` draws probabilities, tokens and more.

    Args:
        query: (B, H, Q, D), floating point.
        key: (B, Hkv, K, D). H is a multiple of Hkv; query head h uses key-value head ``h // (H // Hkv)``.
        score_mod: ``(score, b, h, q_idx, kv_idx) -> score``, applied before the mask.
        mask_mod: a Mask, a mask_mod, a BlockMask, or a table as in `attend`.
        device: the device to compute on; query, key and the captured tensors of the two functions are moved there. By
            default they are not moved.
        name: the title of the picture, with blanks for underscores, and the name of the default file.
        path: the file to write, .png, .svg or .pdf; without a suffix, .png is added. In a directory, the file is
            ``name``.png; by default it is in the working directory. Missing directories are made.
        batch_idx, head_idx: the batch row and the query head.
        scale: by default ``1 / sqrt(D)``.

    Returns:
        The path of the file.

    Raises:
        TypeError, ValueError: tensors, mask or indices that do not fit each other, or another suffix.
        OSError: the file cannot be written.
    """
    file = _file(name, path)
    if device is not None:
        place = torch.device(device)
        query, key, score_mod, mask_mod = captures.moved(
            (query, key, score_mod, mask_mod), lambda tensor: tensor.to(place)
        )
    from maskloom.show.attention_map import attention

    title = f"{name.replace('_', ' ')}\nbatch row {batch_idx}, head {head_idx}"
    figure = attention(
        query, key, mask_mod, score_mod=score_mod, scale=scale, probabilities=False,
        batch=batch_idx, heads=head_idx, title=title,
    )  # fmt: skip
    return save_figure(figure, file)


def _file(name: str, path: str | os.PathLike[str] | None) -> Path:
    """The file to write; dots in ``name`` do not start a suffix."""
    if not isinstance(name, str):
        raise TypeError(f"name is text, the title of the picture; got {brief(name)}")
    path = Path() if path is None else file_of(path)
    if os.path.isdir(path):
        if not name:
            raise ValueError(f"name is the name of the file in the directory {path}; got an empty one")
        return path / f"{name}.png"
    if not path.suffix:
        return path.with_name(f"{path.name}.png")
    checked_suffix(path)
    return path
