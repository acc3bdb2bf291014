"""What transformers' makers of masks know of positions when they call `layer_mask`, and do not hand on.

They look for packed documents in position ids, unless there is a cache. Some models (Llama 4) give none to their layers, so
that this is the only place where packing is seen.
"""

import functools
import inspect
import sys
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import transformers
from torch import Tensor
from transformers import masking_utils

from maskloom.core.cache import keep_beside


class Positions(NamedTuple):
    """Attributes:
    ids: (1 or B, Q), the position ids, where there are some.
    are_read: whether transformers has looked for packed documents, and put those that it found into the mask.
    of_itself: whether the layers are known to attend to their own tokens both ways: nothing else has position ids there.
    """

    ids: Tensor | None = None
    are_read: bool = False
    of_itself: bool = False


NO_POSITIONS = Positions()

_told: list[Positions] = []  # inside torch.compile: what the maker that is running knows

_CACHES = ("past_key_values", "cache")  # what makers call the cache, the latter since transformers 5.24

MADE_OF = "_made_of"
"""An attribute of ids of documents that transformers made: a weak reference to their position ids, which say that the documents follow one
another."""

_NEEDED = "_preprocess_mask_arguments"  # every maker of transformers calls it first


def positions_of_maker() -> Positions:
    """What the caller of the caller knows.

    Raises:
        RuntimeError: inside torch.compile, with a transformers that cannot be asked there.
    """
    if torch.compiler.is_dynamo_compiling():
        return _of_traced_maker()
    maker = sys._getframe(2)
    if maker.f_code.co_filename != masking_utils.__file__:
        return NO_POSITIONS
    return _known_positions(maker.f_locals)


def _of_traced_maker() -> Positions:
    if not hasattr(masking_utils, _NEEDED):
        raise RuntimeError(
            f"inside torch.compile transformers {transformers.__version__} does not tell whether a row holds several "
            "documents: give attention_mask, ones for rows without padding"
        )
    return _told.pop() if _told else NO_POSITIONS


def _known_positions(known: Mapping[str, Any]) -> Positions:
    """Of what a maker was given, by name."""
    ids, attention_mask = known.get("position_ids"), known.get("attention_mask")
    cache = next((known[name] for name in _CACHES if name in known), "unknown, so there may be one")
    of_itself = known.get("encoder_hidden_states", "unknown") is None
    if not isinstance(ids, Tensor):
        return Positions(of_itself=of_itself)
    return Positions(ids, attention_mask is None and cache is None, of_itself)


def _of_batch(made: tuple[Any, ...], known: Mapping[str, Any]) -> tuple[Any, ...]:
    """What transformers made of ``attention_mask`` and ``position_ids``, or what it made of the same tensors before.

    It makes bools of the one, and documents of the other. As the same tensors, they stand for the same masks.
    """
    sources = known["attention_mask"], known.get("position_ids")
    return tuple([_first_made(source, one) for source, one in zip(sources, made, strict=True)])


def _first_made(source: Any, made: Any) -> Any:
    """What was made of a tensor the first time, until that is written to."""
    if not (isinstance(source, Tensor) and isinstance(made, Tensor)) or made is source or made._base is source:
        return made
    if made.is_inference():  # which training could not keep for its backward
        return made
    return keep_beside(source, ("made by transformers", made.dtype, made.shape, made.device), lambda: made)


def listen(name: str) -> None:
    """Let makers of masks for the implementation ``name`` tell what they know where their frame cannot be read.

    That is inside torch.compile. Outside it the same tensors of a batch give the same tensors to mask functions.
    """
    whole = getattr(masking_utils, _NEEDED, None)
    if whole is None or hasattr(whole, "__wrapped__"):
        return

    names = tuple(inspect.signature(whole).parameters)

    @functools.wraps(whole)
    def telling(*given: Any, **named: Any) -> Any:
        made = whole(*given, **named)
        known = dict(zip(names, given, strict=False)) | named
        if torch.compiler.is_dynamo_compiling():
            if not made[0] and known["attention_mask"] is None and known["config"]._attn_implementation == name:
                _told[:] = [_known_positions(known)]
            return made
        is_step = made[3] != made[4]  # its padding is another at each
        if made[0] or is_step or known["config"]._attn_implementation != name:
            return made
        attention_mask, ids = _of_batch(made[1:3], known)
        if isinstance(ids, Tensor) and isinstance(known.get("position_ids"), Tensor):
            setattr(ids, MADE_OF, weakref.ref(known["position_ids"]))
        return made[0], attention_mask, ids, *made[3:]

    setattr(masking_utils, _NEEDED, telling)
