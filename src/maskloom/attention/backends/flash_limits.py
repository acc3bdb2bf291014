"""What FLASH cannot do in some versions of torch and flash-attn-4, and on some GPUs: one table, each row with its source.

What a newer version lifted is used. A row that could not be run here says so, in the table of docs/notes/backends.md and in
the words of a refusal.
"""

import importlib.util
import re
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.attention.flex_attention import BlockMask

from maskloom.attention.request import Request

Version = tuple[int, int, int, int]
"""Three numbers of a release, and that of its beta: comparisons of these can be traced, those of version objects cannot (2.11)."""

_FINAL = 1 << 20


def version(text: str) -> Version:
    """A version such as 2.11.0+cu130 or 4.0.0b36."""
    found = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?(?:b(\d+))?", text)
    if found is None:
        return _UNKNOWN
    major, minor, micro, beta = found.groups()
    return int(major), int(minor), int(micro or 0), _FINAL if beta is None else int(beta)


_UNKNOWN: Version = (1 << 20, 0, 0, 0)


class Versions(NamedTuple):
    """Of torch, of flash-attn-4, and the first number of the GPU's compute capability: 9 is Hopper, 10 Blackwell.

    A flash-attn-4 whose version is not known (it was not installed as a package) is taken for one without limits of its own.
    """

    torch: Version
    flash: Version
    gpu: int


class Limit(NamedTuple):
    """A row of the table.

    Attributes:
        where: the versions and GPUs, in words.
        applies: whether it is there, for such versions.
        concerns: whether a request asks for it.
        words: the refusal.
        source: where it was found.
        ran: whether it was run here; else it was read.
    """

    where: str
    applies: Callable[[Versions], bool]
    concerns: Callable[[Request], bool]
    words: str
    source: str
    ran: bool


def _version_of_flash() -> Version:
    if importlib.util.find_spec("flash_attn") is None:
        return _UNKNOWN
    from importlib import metadata  # which reads folders

    try:
        return version(metadata.version("flash-attn-4"))
    except metadata.PackageNotFoundError:
        return _UNKNOWN


_TORCH, _FLASH = version(torch.__version__), _version_of_flash()
_TORCH_2_13, _TORCH_2_14 = map(version, ("2.13", "2.14"))
_B5, _B13, _B17, _B26 = map(version, ("4.0.0b5", "4.0.0b13", "4.0.0b17", "4.0.0b26"))  # of flash-attn-4


def _always(request: Request) -> bool:
    return True


def _wants_gradient_of_lse(request: Request) -> bool:
    return request.wants_lse and request.needs_gradients


def _has_other_blocks(size: tuple[int, int]) -> Callable[[Request], bool]:
    return lambda request: isinstance(request.mask, BlockMask) and tuple(request.mask.BLOCK_SIZE) != size


def _has_no_full_tables(request: Request) -> bool:
    return isinstance(request.mask, BlockMask) and request.mask.full_kv_indices is None


LIMITS = (
    Limit(
        "flash-attn-4 4.0.0b13, Hopper",
        lambda at: at.flash == _B13 and at.gpu == 9,
        _always,
        "flash-attn-4 4.0.0b13 gives wrong results on Hopper: update it, pip install -U flash-attn-4",
        "flash-attention#2563",
        ran=False,
    ),
    Limit(
        "flash-attn-4 from 4.0.0b5 to before 4.0.0b26, Hopper",
        lambda at: at.gpu == 9 and at.flash >= _B5 and at.flash < _B26,
        lambda request: request.needs_gradients,
        "in flash-attn-4 4.0.0b5 to 4.0.0b25 one backward in a hundred to a thousand is garbage on Hopper: update it, "
        "pip install -U flash-attn-4",
        "flash-attention#2756",
        ran=False,
    ),
    Limit(
        "torch before 2.14, or flash-attn-4 before 4.0.0b5",
        lambda at: at.torch < _TORCH_2_14 or at.flash < _B5,
        _wants_gradient_of_lse,
        "its log-sum-exp, which return_aux and sinks need, has no gradient before torch 2.14",
        "pytorch#189784",
        ran=True,
    ),
    Limit(
        "torch before 2.13",
        lambda at: at.torch < _TORCH_2_13,
        lambda request: request.wants_lse,
        "torch before 2.13 scales its log-sum-exp, which return_aux and sinks need, to another base",
        "pytorch#181824",
        ran=True,
    ),
    Limit(
        "torch before 2.14",
        lambda at: at.torch < _TORCH_2_14,
        _has_no_full_tables,
        "it needs a block mask with full tables (separate_full_blocks=True)",
        "pytorch#188322",
        ran=True,
    ),
    Limit(
        "Blackwell",
        lambda at: at.gpu >= 10,
        _has_other_blocks((256, 128)),
        "on Blackwell it needs block size (256, 128)",
        "pytorch#195563",
        ran=False,
    ),
    Limit(
        "Hopper",
        lambda at: at.gpu < 10,
        _has_other_blocks((128, 128)),
        "it needs block size (128, 128)",
        "torch's flex_flash_attention.py",
        ran=True,
    ),
)


def refused_by(request: Request, gpu: int) -> str | None:
    """Why these versions, or this GPU, cannot do what is asked; None where they can."""
    at = Versions(_TORCH, _FLASH, gpu)
    for limit in LIMITS:
        if limit.applies(at) and limit.concerns(request):
            return limit.words if limit.ran else f"{limit.words} ({limit.source}; read, not run)"
    return None


def block_size(gpu: int) -> tuple[int, int]:
    """Of the block masks that are built for it."""
    return (256, 128) if gpu >= 10 else (128, 128)


def lse_has_gradient() -> bool:
    """Whether FLASH's log-sum-exp has a gradient in these versions."""
    return _TORCH >= _TORCH_2_14 and _FLASH >= _B5


def reads_scalars() -> bool:
    """Whether masks may read tensors without dimensions on the GPU, and numbers that are dynamic (pytorch#189784; read, not run)."""
    return _TORCH_2_14 <= _TORCH and _B17 <= _FLASH
