"""`visualize_attention_scores`: the picture of scores, with the arguments that attention-gym's has."""

import os
from pathlib import Path

import torch
from torch import Tensor

from maskloom.core import captures
from maskloom.core.checks import integer
from maskloom.core.words import brief
from maskloom.program.program import MaskMod
from maskloom.scores.base import ScoreMod, checked_score_mod
from maskloom.show.figures import checked_suffix, checked_title, file_of, save_figure
from maskloom.show.measure.cells import check_tensors


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
        TypeError, ValueError: tensors, mask or indices that do not fit each other, no device, or another suffix.
        OSError: the file cannot be written.
    """
    file = _file(name, path)
    if score_mod is not None:
        checked_score_mod(score_mod, mask_argument="mask_mod")
    place = None if device is None else _device(device)
    if place is not None:
        query, key, score_mod, mask_mod = captures.moved(
            (query, key, score_mod, mask_mod), lambda tensor: tensor.to(place)
        )
    check_tensors(query, key)
    batch_idx = _index("batch_idx", batch_idx, query.shape[0], "batch row")
    head_idx = _index("head_idx", head_idx, query.shape[1], "head")
    from maskloom.show.attention_map import attention

    title = f"{name.replace('_', ' ')}\nbatch row {batch_idx}, head {head_idx}"
    figure = attention(
        query, key, mask_mod, score_mod=score_mod, scale=scale, probabilities=False,
        batch=batch_idx, heads=head_idx, title=title,
    )  # fmt: skip
    return save_figure(figure, file)


def _device(device: torch.device | str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as error:
        wrong = TypeError if isinstance(error, TypeError) else ValueError
        raise wrong(f"device is a torch.device, or the name of one; got {brief(device)}") from error


def _index(name: str, index: int, number: int, item: str) -> int:
    found = integer(name, index, f"the {item}")
    if not 0 <= found < number:
        raise ValueError(f"{name} is from 0 to {number - 1}, as there are {number} {item}s; got {found}")
    return found


def _file(name: str, path: str | os.PathLike[str] | None) -> Path:
    """The file to write; dots in ``name`` do not start a suffix."""
    if not isinstance(name, str):
        raise TypeError(f"name is text, the title of the picture; got {brief(name)}")
    checked_title(name, "name")
    path = Path() if path is None else file_of(path)
    if os.path.isdir(path):
        if not name:
            raise ValueError(f"name is the name of the file in the directory {path}; got an empty one")
        return path / f"{name}.png"
    if not path.suffix:
        return path.with_name(f"{path.name}.png")
    checked_suffix(path)
    return path
