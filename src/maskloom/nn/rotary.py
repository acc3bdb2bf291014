"""Rotary position embeddings: queries and keys turned by an angle that grows with their position."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from maskloom.core.checks import INTEGERS, as_int, check_flags, count, is_number, readable
from maskloom.core.symbols import is_int, is_one_of
from maskloom.core.torch_state import can_cache, without_autocast
from maskloom.core.words import brief, what_it_is
from maskloom.nn.frequencies import Scaling, inverse_frequencies, kind_of


class Angles(NamedTuple):
    """The cosine and sine of each position's angles: float32 (L, d / 2) or (B, 1, L, d / 2), for d rotated features."""

    cos: Tensor
    sin: Tensor


class Rotary(nn.Module):
    """Rotary position embedding (RoPE): turns each pair of features by its position times the pair's frequency.

    Of a pair ``(x1, x2)`` at position p with frequency f it makes
    ``(x1 cos(pf) - x2 sin(pf), x2 cos(pf) + x1 sin(pf))``. So the product of a query and a key depends on the distance
    of their positions only::

        rotary = loom.nn.Rotary(64)
        queries, keys = rotary(queries), rotary(keys)                   # positions 0, 1, ...
        queries = rotary(queries, positions)                            # one position for each token: (L,) or (B, L)
        attention = loom.MultiheadFlexAttention(512, 512, 8, rotary=rotary)

    Packed rows begin each document at position 0, and padding on the left begins below 0: give ``positions``.

    It has no parameters, and nothing in ``state_dict``. Angles are float32 whatever ``.to(dtype)`` the module went
    through, and their cosines are rounded to the dtype of what they turn, as in transformers.

    Args:
        d_head: D, the features of a head.
        base: the base of the frequencies, ``rope_theta``: pair i turns by ``base ** (-2i / d)`` radians a position.
        interleaved: pairs are neighbours (2i, 2i + 1), as in GPT-J, GLM and Meta's own Llama; by default they are
            (i, i + d / 2), as in transformers' Llama and GPT-NeoX.
        fraction: the part of the head that is turned, the first ``int(d_head * fraction)`` features
            (``partial_rotary_factor``).
        scaling: for longer contexts, transformers' ``rope_scaling`` (or ``rope_parameters``) dict with ``rope_type``
            "default", "linear", "dynamic", "yarn", "longrope", "llama3" or "proportional". What transformers takes from
            the model's config stands in it too: "dynamic" needs ``max_position_embeddings``. If it has ``rope_theta`` or
            ``partial_rotary_factor``, leave out ``base`` or ``fraction``.

    Raises:
        TypeError, ValueError: sizes or numbers out of range, a flag that is none, an odd number of features to turn, a dict that is of no
            known kind, or lacks keys, or has others.

    Source: Su et al. 2021 (arXiv 2104.09864); `maskloom.nn.frequencies` names the sources of the scalings.
    """

    inv_freq: Tensor

    def __init__(
        self,
        d_head: int,
        base: float = 10000.0,
        interleaved: bool = False,
        fraction: float = 1.0,
        scaling: Scaling | None = None,
    ) -> None:
        super().__init__()
        check_flags(interleaved=interleaved)
        if scaling is not None and not hasattr(scaling, "items"):
            raise TypeError(f"scaling is a dict, as transformers' rope_scaling; got {brief(scaling)}")
        self.base = _from_one_place("base", base, 10000.0, "rope_theta", scaling)
        self.fraction = _from_one_place("fraction", fraction, 1.0, "partial_rotary_factor", scaling)
        self.d_head, self.interleaved = count("d_head", d_head, least=2, of="features"), interleaved
        self.scaling = None if scaling is None else dict(scaling)
        if self.scaling is not None and kind_of(scaling) == "proportional":  # of the whole head, a part by angles of 0
            self.scaling["partial_rotary_factor"] = self.fraction
            self._width = _checked_width(self.d_head, 1.0)
        else:
            self._width = _checked_width(self.d_head, self.fraction)
        found = inverse_frequencies(self.base, self._width, self.scaling)
        self.attention_factor, self._switch, self._long = found.attention_factor, found.switch, found.long
        # never on the meta device: a checkpoint that is loaded into a module there has no values for it
        self.register_buffer("inv_freq", found.short, persistent=False)

    def forward(self, x: Tensor, positions: Tensor | int | None = None, *, length: int | None = None) -> Tensor:
        """Turn queries or keys.

        Args:
            x: (B, H, L, D), floating point.
            positions: the position of each token, integers (L,) or (B, L), negative ones too; an int, the position of
                the first; None: 0, 1, ... L - 1.
            length: the length of the whole row that x is of, for "dynamic" and "longrope" alone: by default the largest
                position + 1 where the host knows it (None, ints, tensors on the CPU), else L. A device is never waited
                for.

        Returns:
            (B, H, L, D), in the dtype of x.

        Raises:
            TypeError, ValueError: x that is not floating point, or of another rank or width; positions that are not integers or not
                of this shape.
        """
        if not isinstance(x, Tensor) or not x.is_floating_point():
            raise TypeError(f"x is floating point (batch, heads, length, {self.d_head}); got {what_it_is(x)}")
        if x.ndim != 4 or x.shape[-1] != self.d_head:
            raise ValueError(f"x has shape (batch, heads, length, {self.d_head}); got {tuple(x.shape)}")
        if length is not None and not is_int(length):
            length = count("length", length)
        return self.turned(x, self.angles(positions, (x.shape[0], x.shape[2]), x.device, length=length))

    if TYPE_CHECKING:  # nn.Module's own says that it returns Any

        def __call__(
            self, x: Tensor, positions: Tensor | int | None = None, *, length: int | None = None
        ) -> Tensor: ...

    def angles(
        self,
        positions: Tensor | int | None,
        shape: tuple[int, int],
        device: torch.device,
        *,
        length: int | None = None,
    ) -> Angles:
        """The cosines and sines for tokens of ``shape`` (B, L), on ``device``; both queries and keys can use them."""
        at = _checked_positions(positions, shape, device)
        frequencies = self._frequencies(device, self.length_of(positions, shape[1]) if length is None else length)
        with without_autocast(device):
            angles = at[..., None].to(torch.float32) * frequencies
            cos, sin = angles.cos() * self.attention_factor, angles.sin() * self.attention_factor
        return Angles(cos, sin) if at.ndim == 1 else Angles(cos[:, None], sin[:, None])

    def turned(self, x: Tensor, angles: Angles) -> Tensor:
        """Queries or keys (B, H, L, D), turned by `angles`."""
        cos, sin = angles.cos.to(x.dtype), angles.sin.to(x.dtype)
        head, rest = x[..., : self._width], x[..., self._width :]
        first, second = (head[..., ::2], head[..., 1::2]) if self.interleaved else head.chunk(2, -1)
        pair = first * cos - second * sin, second * cos + first * sin
        if self.interleaved:
            return torch.cat([torch.stack(pair, -1).flatten(-2), rest], -1)
        return torch.cat([*pair, rest], -1)

    def extra_repr(self) -> str:
        """The arguments, as ``print(module)`` shows them."""
        said = f"{self.d_head}, base={self.base:g}, interleaved={self.interleaved}, fraction={self.fraction:g}"
        return said if self.scaling is None else f"{said}, scaling={self.scaling}"

    @property
    def depends_on_length(self) -> bool:
        """Whether the angles change with the length of the row ("dynamic", "longrope")."""
        return self._long is not None

    @staticmethod
    def length_of(positions: Tensor | int | None, length: int) -> int:
        """The largest of some positions + 1, where the host knows it, else their number ``length``."""
        if isinstance(positions, Tensor):
            return int(positions.max()) + 1 if readable(positions) and positions.numel() else length
        return length if positions is None else as_int(positions) + length

    def _frequencies(self, device: torch.device, length: int) -> Tensor:
        if self._long is not None and self._switch is not None and length > self._switch:
            return self._long(length, device)
        if self.inv_freq.device == device:
            return self.inv_freq
        if device.type == "meta" or not can_cache():  # of a meta tensor nothing could be moved back
            return self.inv_freq.to(device)
        with torch.inference_mode(False):  # moved for good: a copy at each call would wait for the device
            self.inv_freq = self.inv_freq.to(device)
        return self.inv_freq

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        """Move the frequencies; ``.half()`` does not round them, and ``.to_empty()`` does not lose them."""
        super()._apply(fn, recurse)
        exact = inverse_frequencies(self.base, self._width, self.scaling).short
        device = self.inv_freq.device
        self.inv_freq = exact if device.type == "meta" else exact.to(device)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_long"}  # a closure, made anew

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._long = inverse_frequencies(self.base, self._width, self.scaling).long


def _from_one_place(name: str, value: float, default: float, key: str, scaling: Scaling | None) -> float:
    """A number that is an argument or an entry of ``scaling``, not two different ones."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise ValueError(f"{name} is a number above 0; got {brief(value)}")
    said: Any = None if scaling is None else scaling.get(key)
    if said is None:
        return float(value)
    if value not in (default, said):
        raise ValueError(f"{name} is {value}, and scaling has {key} {brief(said)}; give one of them")
    return _from_one_place(f"{key} of scaling", said, said, key, None)


def _checked_width(d_head: int, fraction: float) -> int:
    """The number of features that are turned."""
    width = int(d_head * fraction) if fraction <= 1 else 0
    if fraction > 1 or width % 2 or width < 2:
        raise ValueError(
            f"int(d_head * fraction) is an even number of features of a head, at least 2; "
            f"got d_head={d_head} and fraction={fraction:g}"
        )
    return width


def _checked_positions(positions: Tensor | int | None, shape: tuple[int, int], device: torch.device) -> Tensor:
    """Positions as integers (L,) or (B, L), on the device."""
    batch, length = shape
    if positions is None:
        return torch.arange(length, device=device)
    if is_int(positions) or is_number(positions):
        return torch.arange(length, device=device) + as_int(positions)
    if not isinstance(positions, Tensor) or positions.dtype not in INTEGERS:
        got = positions.dtype if isinstance(positions, Tensor) else brief(positions)
        raise TypeError(f"positions are integers (L,) or (B, L), the first position, or None; got {got}")
    fits = positions.ndim in (1, 2) and positions.shape[-1] == length
    if not fits or (positions.ndim == 2 and not is_one_of(positions.shape[0], 1, batch)):
        raise ValueError(
            f"positions have shape (L,) or (B, L), here B = {batch}, L = {length}; got {tuple(positions.shape)}"
        )
    return positions.to(device)
