"""Arrays as text in the page: compressed where that helps, in base64."""

import base64
import json
import zlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

LIMIT = 5_000_000
"""Maximum bytes of a page."""

_LARGE = 1 << 20  # bytes, which are compressed a little less for less time
_NARROW = (np.uint8, np.int8, np.int16, np.int32)


def stored(table: Tensor) -> dict[str, Any]:
    """A tensor on the CPU as the page reads it: bools as bits, integers in the narrowest type that holds them."""
    numbers = table.numpy()
    if table.dtype == torch.bool:
        return _packed(np.packbits(numbers.reshape(-1)).tobytes(), "bits", table.numel())
    if table.dtype == torch.int64:
        numbers = _narrowed(numbers)
    return _packed(np.ascontiguousarray(numbers).tobytes(), str(numbers.dtype), table.numel())


def stored_json(value: Any) -> dict[str, Any]:
    """A value as JSON, in ASCII: what is no letter of a script (half a surrogate pair, say) comes through too."""
    text = json.dumps(value, separators=(",", ":")).encode("ascii")
    return _packed(text, "uint8", len(text))


def size_of(data: dict[str, Any]) -> int:
    """Bytes of a stored array in the page."""
    return len(data["text"])


def _narrowed(numbers: np.ndarray) -> np.ndarray:
    if not numbers.size:
        return numbers
    least, most = int(numbers.min()), int(numbers.max())
    for narrow in _NARROW:
        if np.iinfo(narrow).min <= least and most <= np.iinfo(narrow).max:
            return numbers.astype(narrow)
    return numbers


def _packed(data: bytes, kind: str, length: int) -> dict[str, Any]:
    packer = zlib.compressobj(9 if len(data) < _LARGE else 6, zlib.DEFLATED, -15)
    small = packer.compress(data) + packer.flush()
    packed = len(small) < len(data)
    text = base64.b64encode(small if packed else data).decode("ascii")
    return {"type": kind, "length": length, "packed": packed, "text": text}
