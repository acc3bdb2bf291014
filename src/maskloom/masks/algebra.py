"""The Mask class, and how masks combine.

A mask is an immutable value and a scalar function: ``mask(b, h, q_idx, kv_idx)`` takes four integer tensors and returns
whether query ``q_idx`` of head ``h`` in batch row ``b`` may attend to key ``kv_idx``. True means "may attend".

Size letters everywhere in maskloom: B batch, H query heads, Q query length, K key length, D head dim, E value dim.
"""

import functools
import inspect
import operator
import types
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar, dataclass_transform

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex

from maskloom.core.checks import required_arguments
from maskloom.core.torch_state import NOT_LIFTED
from maskloom.core.values import FrozenValue, undecorated, value
from maskloom.core.values import shown as shown  # beside mask_value, for those who write a repr
from maskloom.core.words import brief, brief_name, is_array, repr_html
from maskloom.masks.dense import dense
from maskloom.masks.dense_tables import not_a_mask
from maskloom.masks.signed import Signed, read_from_zero
from maskloom.program.answers import ask
from maskloom.program.program import MaskMod

C = TypeVar("C", bound=type)


@dataclass_transform(frozen_default=True, eq_default=False)
def mask_dataclass(cls: C) -> C:
    """Make a subclass of Mask a frozen dataclass that keeps Mask's equality, hash and repr; torch can trace those."""
    return value(cls)


class _CallSignature:
    """``__signature__`` of mask instances. A mask class has none, because calling the class takes the fields.

    torch's ``create_block_mask`` asks for a mask_mod's signature while it traces. From Python 3.12.3 on, dynamo cannot
    follow how inspect finds the ``__call__`` of an object ("Unexpected type in sourceless builder"); inspect reads
    ``__signature__`` first.
    """

    signature = inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("b", "h", "q_idx", "kv_idx")]
    )

    def __get__(self, mask: "Mask | None", kind: type) -> inspect.Signature:
        if mask is None:
            raise AttributeError(f"{kind.__name__} has no __signature__, its instances have")
        return self.signature


class Mask(FrozenValue, ABC):
    """Which query may attend to which key: a value that can be called, combined, compared, printed, moved and pickled.

    Laws, checked by `maskloom.testing.check_mask` (they are stated with ``dense``, the reference):

    - a call with tensors that broadcast gives the same as ``torch.vmap`` over scalars;
    - ``(m & n).dense == m.dense & n.dense``; the same holds for ``|``, ``^`` and ``~``;
    - equality, hash, pickle and ``.to(device)`` treat it as a value; ``repr`` reads like the code that made it;
    - it can be traced, alone and combined, in ``torch.compile(flex_attention)`` and in torch's ``create_block_mask``.

    Inside a function that torch.compile traces, write ``mask ^ everything`` for ``~mask``: dynamo does not support
    ``~`` on objects.

    A mask has no query length, key length or batch size, except those of the tables that it reads.
    """

    decorator = "maskloom.masks.mask_dataclass"
    runs_in_flash: ClassVar[bool] = False
    """Whether FlashAttention 4 can run masks of this class, if it can run all parts of them. Inside torch.compile, where a mask
    cannot be recorded, this is all that is known."""

    __signature__ = _CallSignature()
    __array_ufunc__ = None  # makes NumPy leave `array & mask` to the mask, whose error says what to write

    @abstractmethod
    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        """Whether the query may attend to the key: bool, from integer tensors on one device."""

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        """The answer where positions may be negative, as under `shifted`; only padding is there. By default the same.

        Masks that hide padding, or read a table by position, override this: see `Tabled`. Masks that call other masks
        at their own positions pass it on to them.
        """
        return ask(self, b, h, q_idx, kv_idx)

    # -- algebra ---------------------------------------------------------------------------------------------------

    def beside_causal(self) -> "Mask":
        """An equal mask that is cheaper if it is combined with `causal` by ``&``; see `maskloom.masks.simplify`."""
        return self

    def __and__(self, other: MaskMod) -> "Mask":
        return and_masks(self, other) if _is_operand(other) else NotImplemented

    def __rand__(self, other: MaskMod) -> "Mask":
        return and_masks(other, self) if _is_operand(other) else NotImplemented

    def __or__(self, other: MaskMod) -> "Mask":
        return or_masks(self, other) if _is_operand(other) else NotImplemented

    def __ror__(self, other: MaskMod) -> "Mask":
        return or_masks(other, self) if _is_operand(other) else NotImplemented

    def __xor__(self, other: MaskMod) -> "Mask":
        return xor_masks(self, other) if _is_operand(other) else NotImplemented

    def __rxor__(self, other: MaskMod) -> "Mask":
        return xor_masks(other, self) if _is_operand(other) else NotImplemented

    def __invert__(self) -> "Mask":
        return _inverted(self)

    def __bool__(self) -> bool:
        # torch 2.11's dynamo evaluates the truth of every object before it calls it (`if inner_fn and ...` in
        # symbolic_convert.call_function), in ordinary Python: an error here would look like an error of dynamo.
        if not torch.compiler.is_dynamo_compiling() and torch._guards.TracingContext.try_get() is not None:
            return True
        raise TypeError(
            f"a mask has no truth value: combine masks with & | ^ ~, not with and, or, not (mask: {brief(self)})"
        )

    def _repr_html_(self) -> str:
        return repr_html(self)

    # -- expansion to elements -------------------------------------------------------------------------------------

    def dense(
        self,
        q_len: int,
        kv_len: int,
        *,
        batch: int | None = None,
        heads: int | None = None,
        device: torch.device | str | None = None,
        q_offset: int | Tensor = 0,
    ) -> Tensor:
        """The mask as a table of elements: bool (B or 1, H or 1, Q, K). See `maskloom.masks.dense.dense`."""
        return dense(self, q_len, kv_len, batch=batch, heads=heads, device=device, q_offset=q_offset)


class Tabled(Mask):
    """A mask that reads tables by position. Tables have no entry before position 0: a query or key there is masked."""

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return read_from_zero(self, b, h, q_idx, kv_idx, signed)


class Placing(Mask):
    """A mask of slots, which knows what position lies in each: ``mask & placing`` asks ``mask`` at those positions.

    It is the one mask that `&` does not join element by element: the other masks speak of positions, and this one of
    slots. With ``|``, ``^`` and ``~`` it does not combine. `maskloom.nn.KVCache` makes such masks.
    """

    mask: Mask

    @abstractmethod
    def around(self, mask: Mask) -> "Placing":
        """The same mask of slots, with another mask joined to the one that it asks at their positions."""

    @abstractmethod
    def placed(self, score_mod: Any) -> Any:
        """The score mod, asked at those positions too; itself if it is already."""


# -- combinations ------------------------------------------------------------------------------------------------------


class _Joined(Mask):
    """Several masks joined by one operator; flat, so that ``(a & b) & c`` and ``a & (b & c)`` are equal."""

    parts: tuple[Mask, ...]
    symbol: ClassVar[str]
    binds: ClassVar[int]  # Python's precedence of the operator; higher binds tighter

    def __repr__(self) -> str:
        return f" {self.symbol} ".join(_in_brackets(part, self.binds) for part in self.parts)


def joined_parts(mask: Mask) -> tuple[Mask, ...]:
    """The parts of a mask that is joined by an operator; empty for other masks."""
    return mask.parts if isinstance(mask, _Joined) else ()


@mask_dataclass
class And(_Joined):
    """Visible where every part is visible."""

    runs_in_flash = True

    parts: tuple[Mask, ...]
    symbol, binds = "&", 3

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return functools.reduce(operator.and_, [ask(part, b, h, q_idx, kv_idx) for part in self.parts])

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return functools.reduce(operator.and_, [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])


@mask_dataclass
class Xor(_Joined):
    """Visible where an odd number of parts is visible."""

    runs_in_flash = True

    parts: tuple[Mask, ...]
    symbol, binds = "^", 2

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return functools.reduce(operator.xor, [ask(part, b, h, q_idx, kv_idx) for part in self.parts])

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return functools.reduce(operator.xor, [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])


@mask_dataclass
class Or(_Joined):
    """Visible where at least one part is visible."""

    runs_in_flash = True

    parts: tuple[Mask, ...]
    symbol, binds = "|", 1

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return functools.reduce(operator.or_, [ask(part, b, h, q_idx, kv_idx) for part in self.parts])

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return functools.reduce(operator.or_, [part.signed(b, h, q_idx, kv_idx, signed) for part in self.parts])


@mask_dataclass
class Not(Mask):
    """Visible where the part is hidden."""

    runs_in_flash = True

    part: Mask

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return ~ask(self.part, b, h, q_idx, kv_idx)

    def signed(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor, signed: Signed) -> Tensor:
        return ~self.part.signed(b, h, q_idx, kv_idx, signed)

    def __repr__(self) -> str:
        return f"~{_in_brackets(self.part, 4)}"


@mask_dataclass
class Everything(Mask):
    """Every query may attend to every key."""

    runs_in_flash = True

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return b.new_ones((), dtype=torch.bool)

    def __repr__(self) -> str:
        return "everything"


@mask_dataclass
class Nothing(Mask):
    """No query may attend to any key."""

    runs_in_flash = True

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return b.new_zeros((), dtype=torch.bool)

    def __repr__(self) -> str:
        return "nothing"


@mask_dataclass
class FromFunction(Mask):
    """A plain mask_mod as a Mask; made by `as_mask`. It pickles if the function does (a closure does not)."""

    function: MaskMod
    name = "as_mask"

    def __call__(self, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        if q_idx.ndim and torch.compiler.is_dynamo_compiling():
            raise TypeError(NOT_LIFTED)
        return ask(self.function, b, h, q_idx, kv_idx)

    def __repr__(self) -> str:
        return f"as_mask({getattr(self.function, '__name__', type(self.function).__name__)})"


everything = Everything()
nothing = Nothing()


def as_mask(function: MaskMod) -> Mask:
    """A `Mask` from any mask_mod. A Mask is returned unchanged; torch's ``and_masks(a, b)`` becomes ``a & b``.

    Args:
        function: ``(b, h, q_idx, kv_idx) -> bool``, a scalar function as for torch's ``create_block_mask``.

    Raises:
        TypeError: it cannot be called with four positional arguments, or takes five like a score_mod; or a Mask of a class that
            is not decorated.
    """
    if isinstance(function, Mask):
        if not function.is_decorated:
            raise undecorated(function)
        return function
    if not torch.compiler.is_dynamo_compiling():
        if is_torch_and(function):
            return and_masks(*_parts_of(function))
        if _is_torch_or(function):
            return or_masks(*_parts_of(function))
    if is_array(function):
        raise TypeError(not_a_mask(function))
    if not callable(function):
        raise TypeError(
            f"a mask is a function (b, h, q_idx, kv_idx) -> bool; got {type(function).__name__}: {brief(function)}"
        )
    required = None if torch.compiler.is_dynamo_compiling() else required_arguments(function)
    if required is not None and required != 4:
        hint = "; with five it looks like a score_mod, which goes to score_mod=" if required == 5 else ""
        raise TypeError(
            f"a mask_mod takes four arguments (b, h, q_idx, kv_idx); {brief_name(function)} takes {required}{hint}"
        )
    return FromFunction(function)


def and_masks(*masks: MaskMod) -> Mask:
    """Visible where every mask is visible: ``a & b & ...``. Without masks: `everything`."""
    return _joined(And, masks, identity=everything, absorbing=nothing)


def or_masks(*masks: MaskMod) -> Mask:
    """Visible where at least one mask is visible: ``a | b | ...``. Without masks: `nothing`."""
    return _joined(Or, masks, identity=nothing, absorbing=everything)


def xor_masks(*masks: MaskMod) -> Mask:
    """Visible where an odd number of masks is visible: ``a ^ b ^ ...``. Without masks: `nothing`."""
    return _joined(Xor, masks, identity=nothing, absorbing=None)


_TORCH_AND = flex.and_masks().__code__
_TORCH_OR = flex.or_masks().__code__


def is_torch_and(function: MaskMod) -> bool:
    """Whether it was made by torch's ``and_masks``."""
    return isinstance(function, types.FunctionType) and function.__code__ is _TORCH_AND


def _is_torch_or(function: MaskMod) -> bool:
    return isinstance(function, types.FunctionType) and function.__code__ is _TORCH_OR


def _parts_of(torch_composition: Any) -> tuple[MaskMod, ...]:
    return torch_composition.__closure__[0].cell_contents  # its one cell holds the tuple of parts


def _inverted(mask: Mask) -> Mask:
    if isinstance(mask, Not):
        return mask.part
    if isinstance(mask, (Everything, Nothing)):
        return nothing if isinstance(mask, Everything) else everything
    if isinstance(mask, Placing):
        raise TypeError(_LAST)
    return Not(as_mask(mask))  # raises for a class that is not decorated


def _joined(kind: type[Any], masks: tuple[MaskMod, ...], *, identity: Mask, absorbing: Mask | None) -> Mask:
    flat: list[Mask] = []
    for mask in map(as_mask, masks):
        flat.extend(mask.parts if isinstance(mask, _Joined) and type(mask) is kind else (mask,))
    if absorbing is not None and any(type(part) is type(absorbing) for part in flat):
        return absorbing
    if any(isinstance(part, Placing) for part in flat):
        return _placed(kind, flat)
    parts = tuple(part for part in flat if type(part) is not type(identity))
    if not parts:
        return identity
    return parts[0] if len(parts) == 1 else kind(parts)


_LAST = "the mask of a cache speaks of its slots: join the others first, and it at last by &, (a | ~b) & cache_mask"


def _placed(kind: type[Any], parts: list[Mask]) -> Mask:
    """The conjunction of one mask of slots with masks of positions."""
    placing = [part for part in parts if isinstance(part, Placing)]
    if kind is not And or len(placing) > 1:
        raise TypeError(_LAST)
    rest = and_masks(*[part for part in parts if not isinstance(part, Placing)])
    return placing[0] if isinstance(rest, Everything) else placing[0].around(rest)


def _is_operand(other: object) -> bool:
    """Whether `as_mask` handles it: it makes a mask of it, or raises an error that explains."""
    return callable(other) or is_array(other)


def _in_brackets(mask: Mask, binds: int) -> str:
    return f"({mask!r})" if isinstance(mask, _Joined) and mask.binds <= binds else repr(mask)
