"""What a mask function of transformers hands to the layers: a mask, and where its queries and keys stand."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from maskloom.blocks.build import block_mask
from maskloom.core import captures
from maskloom.core.symbols import as_tensor
from maskloom.core.words import brief
from maskloom.integrations.transformers.positions import NO_POSITIONS, Positions
from maskloom.masks.algebra import Mask, as_mask
from maskloom.masks.patterns.from_tables import from_dense
from maskloom.masks.patterns.shift import shifted


class Place(NamedTuple):
    """Where queries and keys of a layer stand.

    Attributes:
        batch, q_len, kv_len: B, Q, K.
        q_offset, kv_offset: the position of the first query, and of the first key. With a static cache the first is a
            tensor.
        device: where they are.
    """

    batch: int
    q_len: int
    kv_len: int
    q_offset: int | Tensor
    kv_offset: int | Tensor
    device: torch.device


class LayerMask(BlockMask):
    """A mask for all layers of one kind in one forward.

    transformers hands a BlockMask on as it is, wherever a model is given one; so this is one, without tables. The mask
    itself is what `attend` takes, and what is built from it is kept with it: once for all these layers.

    Attributes:
        pattern: what the mask is without padding and documents, at absolute positions.
        given: the mask of these queries and keys, both counted from 0; of a step of decoding its table, bool
            (1 or B, 1, 1 or Q, K).
        mask: the same for `attend`: where a plain function is in it, which may change unseen, what was built from it.
        place: where queries and keys stand.
        open_to_packing: no padding was given, so that the row may hold several documents.
        positions: what the maker of the mask knows of positions.
        may_be_packed: whether position ids may tell of documents that are not in the mask yet.
        cut_from: of which mask these are some queries, and the first of them there; None of a whole one.
    """

    def __init__(
        self,
        pattern: Mask,
        given: Mask | Tensor,
        place: Place,
        *,
        open_to_packing: bool = True,
        positions: Positions = NO_POSITIONS,
        cut_from: "tuple[LayerMask, int] | None" = None,
    ) -> None:
        self.pattern = pattern
        self.given = given
        self.mask = given if isinstance(given, Tensor) else built(given, place)
        self.cut_from = cut_from
        self.place = place
        self.open_to_packing = open_to_packing
        self.positions = positions
        self.may_be_packed = open_to_packing and not positions.are_read and place.q_len != 1
        self.isolated: tuple[Any, Mask | BlockMask | Tensor] | None = (
            None  # what tells documents, and the mask with them
        )

    @property
    def unbuilt(self) -> Mask:
        """The mask as a Mask."""
        return from_dense(self.given) if isinstance(self.given, Tensor) else self.given

    @property
    def shape(self) -> tuple[int, ...]:
        return self.place.batch, 1, self.place.q_len, self.place.kv_len

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        return self.shape if dim is None else self.shape[dim]

    @property
    def device(self) -> torch.device:
        return self.place.device

    def contiguous(self) -> "LayerMask":
        """Itself. ``generate()`` asks for it with static caches."""
        return self

    def to(self, device: Any = None, *rest: Any, dtype: torch.dtype | None = None, **_: Any) -> "LayerMask":
        """The same mask on another device, as accelerate moves what it finds among a layer's arguments.

        Raises:
            TypeError: a dtype is asked for, or another tensor's.
        """
        if (
            device is None
            or dtype is not None
            or any(isinstance(one, (torch.dtype, Tensor)) for one in (device, *rest))
        ):
            raise TypeError(_NO_TENSOR.format("converts"))

        def moved(part: Any) -> Any:
            return part.to(device) if isinstance(part, (Tensor, Mask)) else part

        place = Place(*map(moved, self.place))._replace(device=torch.device(device))
        cut_from = None if self.cut_from is None else (self.cut_from[0].to(device), self.cut_from[1])
        return LayerMask(
            moved(self.pattern), moved(self.given), place, open_to_packing=self.open_to_packing,
            positions=self.positions._replace(ids=moved(self.positions.ids)), cut_from=cut_from,
        )  # fmt: skip

    def __repr__(self) -> str:
        mask = brief(self.mask) if isinstance(self.mask, Tensor) else repr(self.mask)
        return f"LayerMask({mask}, shape={self.shape})"

    __str__ = __repr__

    def __getitem__(self, index: object) -> Any:
        """The mask of some queries, as ``mask[:, :, -1:, :]`` cuts it where a model computes the last positions alone."""
        start = _start_of_queries(index)
        if start is None:
            raise TypeError(_NO_TENSOR.format("indexes"))
        q_len = self.place.q_len
        first = start if start >= 0 else q_len + start
        if start == 0 or first <= 0:
            return self
        if first >= q_len:
            raise IndexError(f"a mask of {q_len} queries has none from {first} on")
        place = self.place._replace(q_len=q_len - first, q_offset=self.place.q_offset + first)
        return LayerMask(
            self.pattern, cut(self.given, first, place), place, open_to_packing=self.open_to_packing,
            positions=self.positions, cut_from=(self, first),
        )  # fmt: skip

    def _computed_with(self, *_: object) -> Any:
        raise TypeError(_NO_TENSOR.format("computes with"))

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _computed_with
    __and__ = __rand__ = __or__ = __ror__ = __xor__ = __rxor__ = __invert__ = __neg__ = _computed_with
    __lt__ = __le__ = __gt__ = __ge__ = _computed_with
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other or (self._computed_with() if isinstance(other, (int, float, Tensor)) else False)

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise TypeError(_NO_TENSOR.format("computes with"))

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and hasattr(Tensor, name):
            raise AttributeError(_NO_TENSOR.format(f"asks for .{name} of"))
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")


def _start_of_queries(index: object) -> int | None:
    """The start of an index that takes all queries from there on, and all else; None of others."""
    if not (isinstance(index, tuple) and len(index) == 4 and all(isinstance(one, slice) for one in index)):
        return None
    batch, heads, queries, keys = index
    is_plain = queries.stop is None and queries.step in (None, 1)
    return queries.start or 0 if is_plain and batch == heads == keys == slice(None) else None


FEW = 16
"""Queries up to which a mask goes on as a table: a step of decoding is then the same call, with another table, at every
position."""


def table_of(mask: Mask, place: Place, *, heads: int | None = None) -> Tensor:
    """The mask as a table of elements, bool (1 or B, 1 or H, Q, K). While torch compiles, heads must be given."""
    return mask.dense(place.q_len, place.kv_len, batch=place.batch, heads=heads, device=place.device)


def cut(mask: Mask | BlockMask | Tensor, first: int, place: Place) -> Mask | Tensor:
    """What a mask of more queries says of those at a place, ``first`` of which is its ``first``-th."""
    if isinstance(mask, Tensor):
        return mask if mask.shape[-2] == 1 else mask[..., first : first + place.q_len, :]
    held = as_mask(mask.mask_mod if isinstance(mask, BlockMask) else mask)
    rest = shifted(held, q_offset=as_tensor(first, place.device))
    if torch.compiler.is_dynamo_compiling() or place.q_len > FEW:
        return rest
    return table_of(rest, place, heads=1)


def takes_table(place: Place) -> bool:
    """Whether a table of elements serves as well as a table of tiles."""
    return place.device.type == "cpu" or place.q_len <= FEW


def built(mask: Mask, place: Place) -> Mask | BlockMask | Tensor:
    """What `attend` takes and keeps: a mask, or what was built here from one with a plain function in it."""
    if torch.compiler.is_dynamo_compiling() or not captures.may_change(mask):
        return mask
    if takes_table(place):
        table = table_of(mask, place)
        return table if place.q_len <= FEW else from_dense(table)
    return block_mask(mask, place.q_len, place.kv_len, batch=place.batch, device=place.device)


_NO_TENSOR = (
    "this model {} its mask as a tensor, outside transformers' attention interface; it cannot run with "
    'attn_implementation="maskloom". Load it with "sdpa" or "eager"'
)
