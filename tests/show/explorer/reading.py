"""What stands in a page: its data, and its stored arrays."""

import base64
import json
import re
import zlib
from typing import Any

import numpy as np

_TYPES = {"bits": np.uint8, "bool": np.uint8}


def data_of(html: str) -> dict[str, Any]:
    """The JSON of a page."""
    found = re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


def numbers(one: dict[str, Any]) -> list[Any]:
    """A stored array."""
    data = base64.b64decode(one["text"])
    data = zlib.decompress(data, -15) if one["packed"] else data
    found = np.frombuffer(data, _TYPES.get(one["type"], one["type"]))
    if one["type"] == "bits":
        found = np.unpackbits(found)[: one["length"]]
    assert len(found) == one["length"]
    return found.tolist()


def grids(one: dict[str, Any]) -> list[list[Any]]:
    """Stored grids, each as a list."""
    found = numbers(one["numbers"])
    length = len(found) // one["count"]
    return [found[start : start + length] for start in range(0, len(found), length)]


def text(one: dict[str, Any]) -> Any:
    """Stored JSON."""
    return json.loads(bytes(numbers(one)))


def unpack_all(data: Any) -> Any:
    """The data with no array compressed."""
    if isinstance(data, dict):
        return (
            unpacked(data)
            if data.keys() >= {"packed", "text"}
            else {name: unpack_all(one) for name, one in data.items()}
        )
    return [unpack_all(one) for one in data] if isinstance(data, list) else data


def unpacked(one: dict[str, Any]) -> dict[str, Any]:
    """A stored array without compression, which bare V8 does not undo."""
    if not one["packed"]:
        return one
    data = zlib.decompress(base64.b64decode(one["text"]), -15)
    return one | {"packed": False, "text": base64.b64encode(data).decode()}
