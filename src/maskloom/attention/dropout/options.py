"""The options dropout and dropout_seed of `attend`, checked."""

from numbers import Real
from typing import Any

import torch
from torch import Tensor

from maskloom.core.checks import as_int
from maskloom.core.symbols import is_int
from maskloom.core.torch_state import is_exporting
from maskloom.core.words import brief

_SEEDS = 1 << 62  # of those that are drawn


def checked_rate(rate: Any) -> float:
    """The share of probabilities that become 0, as a float, or a TypeError or ValueError."""
    if isinstance(rate, (Tensor, bool)) or not isinstance(rate, Real):
        raise TypeError(f"dropout is a number, the share of probabilities that become 0; got {brief(rate)}")
    share = float(rate)
    if not 0 <= share <= 1:
        raise ValueError(f"dropout is from 0 to 1, the share of probabilities that become 0; got {brief(rate)}")
    return share


def checked_seed(rate: float, seed: Any, device: torch.device) -> Tensor | None:
    """The seed of dropout, int64 without dimensions; None of rate 0, which reads no seed and draws none.

    Raises:
        TypeError: a seed that is no integer. ValueError: a seed of several numbers, on another device, or beyond 64 bits.
    """
    return None if rate == 0 else _checked_seed(seed, device)


def factor_of(rate: float) -> float:
    """By which probabilities that are kept are multiplied; of rate 1 none is."""
    return 0.0 if rate == 1 else 1 / (1 - rate)


def _checked_seed(seed: Any, device: torch.device) -> Tensor:
    """The seed, int64 without dimensions; from torch's generator of the device where none is given."""
    if seed is None:
        return torch.randint(_SEEDS, (), dtype=torch.int64, device=device)
    if not isinstance(seed, Tensor):
        number = _of_64_bits(seed)
        in_graph = torch.compiler.is_dynamo_compiling() and not is_exporting()
        return _operator(number, device) if in_graph else torch.full((), number, dtype=torch.int64, device=device)
    if seed.is_floating_point() or seed.is_complex() or seed.dtype == torch.bool:
        raise TypeError(f"dropout_seed is an integer tensor; got {seed.dtype}")
    if seed.numel() != 1:
        raise ValueError(f"dropout_seed is one number; got a tensor {tuple(seed.shape)}")
    if seed.device != device:
        raise ValueError(f"dropout_seed is on {seed.device} and the attention on {device}")
    return seed.reshape(()).to(torch.int64)


@torch.library.custom_op("maskloom::seed", mutates_args=())
def _operator(number: int, device: torch.device) -> Tensor:
    """A number in a tensor for graphs, which do not look into it: Inductor would multiply it in Python, where no product wraps."""
    return torch.full((), number, dtype=torch.int64, device=device)


@_operator.register_fake
def _like(number: int, device: torch.device) -> Tensor:
    return torch.empty((), dtype=torch.int64, device=device)


def _of_64_bits(seed: Any) -> int:
    """A seed as torch.manual_seed takes it, with a sign."""
    seed = as_int(seed)
    if not is_int(seed):
        raise TypeError(f"dropout_seed is an integer or an integer tensor, or None to draw one; got {brief(seed)}")
    if not -(1 << 63) <= seed < 1 << 64:
        raise ValueError(f"dropout_seed has 64 bits; got {seed}")
    return seed - (1 << 64) if seed >= 1 << 63 else seed
