"""The frequencies of rotary embeddings, and how they are scaled for longer contexts: transformers' ``rope_scaling``.

Each kind is a function of the base, the number d of rotated features, and what the dict says. It returns d / 2 inverse
frequencies (radians per position) in float32, as transformers computes them: float64 would differ from the models.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskloom.core.words import brief

Scaling = Mapping[str, object]
"""A ``rope_scaling`` (``rope_parameters``) dict of transformers."""

Given = Mapping[str, Any]
"""What a kind of scaling takes of it, checked."""


class Frequencies(NamedTuple):
    """What a kind of scaling gives.

    Attributes:
        short: inverse frequencies (d / 2,), radians per position, of rows up to ``switch`` positions.
        attention_factor: what cos and sin are multiplied by.
        switch: the longest row that ``short`` is for; None: any.
        long: the inverse frequencies of a longer row, from its length as an int or a tensor without dimensions.
    """

    short: Tensor
    attention_factor: float = 1.0
    switch: int | None = None
    long: Callable[[int, torch.device], Tensor] | None = None


def inverse_frequencies(base: float, width: int, scaling: Scaling | None) -> Frequencies:
    """The frequencies of ``width`` rotated features, on the CPU.

    Raises:
        ValueError: a kind of scaling that is not known, keys that it does not have, or lacks, or values out of range.
    """
    kind = kind_of(scaling)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(f"scaling is of a rope_type among {', '.join(_KINDS)}; got {brief(kind)}")
    make, needed, allowed = _KINDS[kind]
    elsewhere = set(_OF_ALL) - {*needed, *allowed}
    given: Given = {
        name: value for name, value in (scaling or {}).items() if name not in elsewhere and value is not None
    }
    _check_keys(kind, given, needed, allowed)
    return make(base, width, given)


def kind_of(scaling: Scaling | None) -> str:
    """The ``rope_type`` of a dict; older ones call it ``type``."""
    given: Given = scaling or {}
    return given.get("rope_type", given.get("type", "default"))


_OF_ALL = ("rope_type", "type", "rope_theta", "partial_rotary_factor")
_LENGTHS = ("original_max_position_embeddings", "max_position_embeddings")


_MAY_BE_0 = ("mscale", "mscale_all_dim")  # which is as if it were not given


def _check_keys(kind: str, given: Given, needed: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    missing = [name for name in needed if name not in given]
    if missing:
        raise ValueError(f"scaling of rope_type {kind!r} needs {', '.join(missing)}; got {brief(dict(given))}")
    unknown = [name for name in given if name not in (*needed, *allowed)]
    if unknown:
        takes = ", ".join((*needed, *allowed)) or "nothing more"
        raise ValueError(f"scaling of rope_type {kind!r} takes {takes}; got {', '.join(map(repr, unknown))}")
    for name in set(given) - {"short_factor", "long_factor"}:
        value = given[name]
        if name == "truncate":
            if type(value) is not bool:
                raise ValueError(f"truncate of scaling is True or False; got {brief(value)}")
        elif not (_is_positive(value) or (name in _MAY_BE_0 and value == 0 and not isinstance(value, bool))):
            raise ValueError(f"{name} of scaling is a number above 0; got {brief(value)}")


def _is_positive(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf


def _check_above_1(kind: str, name: str, value: float) -> None:
    """Raise a ValueError for a number by whose logarithm a kind divides."""
    if not value > 1:
        raise ValueError(f"scaling of rope_type {kind!r} needs {name} above 1; got {value}")


def _plain(base: float | Tensor, width: int, device: torch.device | str = "cpu") -> Tensor:
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device=device).to(torch.float32) / width
    return 1.0 / (base**exponents)


def _default(base: float, width: int, given: Given) -> Frequencies:
    return Frequencies(_plain(base, width))


def _linear(base: float, width: int, given: Given) -> Frequencies:
    """Position interpolation: Chen et al. 2023 (arXiv 2306.15595)."""
    return Frequencies(_plain(base, width) / given["factor"])


def _dynamic(base: float, width: int, given: Given) -> Frequencies:
    """Dynamic NTK: a base that grows with the length of the row, beyond the length of pretraining."""
    most, factor = _length("dynamic", given), given["factor"]
    if width < 4:
        raise ValueError(f"scaling of rope_type 'dynamic' is for 4 rotated features or more; got {width}")

    def long(length: int, device: torch.device) -> Tensor:
        lengths = torch.full((), length, dtype=torch.float64, device=device)  # an int that changes is no constant then
        grown = base * (factor * lengths / most - (factor - 1)) ** (width / (width - 2))
        return _plain(grown.to(torch.float32), width, device)

    return Frequencies(_plain(base, width), switch=most, long=long)


def _yarn(base: float, width: int, given: Given) -> Frequencies:
    """YaRN: Peng et al. 2023 (arXiv 2309.00071). High frequencies stay, low ones are interpolated, a ramp between."""
    original = given["original_max_position_embeddings"]
    factor = _factor("yarn", given)
    _check_above_1("yarn", "base", base)

    def dimension(rotations: float) -> float:
        return (width * math.log(original / (rotations * 2 * math.pi))) / (2 * math.log(base))

    first, last = dimension(given.get("beta_fast", 32)), dimension(given.get("beta_slow", 1))
    if given.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, width - 1)
    last = last + 0.001 if first == last else last
    ramp = ((torch.arange(width // 2, dtype=torch.float32, device="cpu") - first) / (last - first)).clamp(0, 1)
    kept = 1 - ramp
    periods = base ** (torch.arange(0, width, 2, device="cpu").to(torch.float32) / width)
    return Frequencies((1.0 / (factor * periods)) * (1 - kept) + (1.0 / periods) * kept, _yarn_factor(factor, given))


def _yarn_factor(factor: float, given: Given) -> float:
    if "attention_factor" in given:
        return float(given["attention_factor"])

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if given.get("mscale") and given.get("mscale_all_dim"):
        return mscale(given["mscale"]) / mscale(given["mscale_all_dim"])
    return mscale(1.0)


def _longrope(base: float, width: int, given: Given) -> Frequencies:
    """LongRoPE: Ding et al. 2024 (arXiv 2402.13753). A factor for each frequency, another in rows beyond pretraining."""
    original = given["original_max_position_embeddings"]
    factor = _factor("longrope", given)
    tables = [_divided(base, width, name, given[name]) for name in ("short_factor", "long_factor")]
    attention = given.get("attention_factor")
    if attention is None:
        if factor > 1:
            _check_above_1("longrope", "original_max_position_embeddings", original)
        attention = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return Frequencies(tables[0], float(attention), original, lambda length, device: tables[1].to(device))


def _divided(base: float, width: int, name: str, factors: Any) -> Tensor:
    if not isinstance(factors, (list, tuple)) or len(factors) != width // 2:
        raise ValueError(f"{name} of scaling has a number for each of {width // 2} frequencies; got {brief(factors)}")
    wrong = [factor for factor in factors if not _is_positive(factor)]
    if wrong:
        raise ValueError(f"{name} of scaling holds numbers above 0; got {brief(wrong[0])} among them")
    exponents = torch.arange(0, width, 2, dtype=torch.int64, device="cpu").float() / width
    return 1.0 / (torch.tensor(factors, dtype=torch.float32, device="cpu") * base**exponents)


def _llama3(base: float, width: int, given: Given) -> Frequencies:
    """Llama 3.1: low frequencies are divided, high ones stay, and those between are mixed."""
    plain, original = _plain(base, width), given["original_max_position_embeddings"]
    factor, low, high = given["factor"], given["low_freq_factor"], given["high_freq_factor"]
    if not high > low:
        raise ValueError(f"high_freq_factor of scaling is above low_freq_factor; got {high} and {low}")
    wavelengths = 2 * math.pi / plain
    is_low, is_high = wavelengths > original / low, wavelengths < original / high
    smooth = (original / wavelengths - low) / (high - low)
    mixed = (1 - smooth) * plain / factor + smooth * plain
    return Frequencies(torch.where(is_low, plain / factor, torch.where(is_high, plain, mixed)))


def _proportional(base: float, width: int, given: Given) -> Frequencies:
    """Gemma 4: the whole head is turned, a part of its pairs by angles, the others by 0."""
    turned = int(given["partial_rotary_factor"] * width // 2)
    frequencies = _plain(base, width)
    frequencies[turned:] = 0
    return Frequencies(frequencies / given.get("factor", 1.0))


def _factor(kind: str, given: Given) -> float:
    if "factor" in given:
        return given["factor"]
    if "max_position_embeddings" not in given:
        raise ValueError(
            f"scaling of rope_type {kind!r} needs factor, or max_position_embeddings; got {brief(dict(given))}"
        )
    return given["max_position_embeddings"] / given["original_max_position_embeddings"]


def _length(kind: str, given: Given) -> int:
    """The length of pretraining; transformers takes it for 'dynamic' from the config's ``max_position_embeddings``."""
    found = [given[name] for name in reversed(_LENGTHS) if name in given]
    if not found:
        raise ValueError(f"scaling of rope_type {kind!r} needs max_position_embeddings; got {brief(dict(given))}")
    return found[0]


_KINDS: dict[str, tuple[Callable[[float, int, Given], Frequencies], tuple[str, ...], tuple[str, ...]]] = {
    "default": (_default, (), ()),
    "linear": (_linear, ("factor",), _LENGTHS),
    "dynamic": (_dynamic, ("factor",), _LENGTHS),
    "yarn": (
        _yarn,
        (_LENGTHS[0],),
        ("factor", _LENGTHS[1], "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"),
    ),
    "longrope": (
        _longrope,
        ("short_factor", "long_factor", _LENGTHS[0]),
        ("factor", _LENGTHS[1], "attention_factor"),
    ),
    "proportional": (_proportional, ("partial_rotary_factor",), ("factor", *_LENGTHS)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor", _LENGTHS[0]), (_LENGTHS[1],)),
}
"""Each kind: its function, the keys that it needs, and those that it takes beside them."""
