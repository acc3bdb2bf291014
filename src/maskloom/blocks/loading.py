"""What ``torch.load`` must know to read masks, score mods and block masks from a file without running code from it."""

from collections.abc import Iterator
from typing import Any

from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.core.values import FrozenValue


def safe_globals() -> list[Any]:
    """The classes of all masks and score mods of maskloom, and torch's BlockMask, for ``torch.load(weights_only=True)``.

    ``torch.serialization.add_safe_globals(maskloom.blocks.safe_globals())`` lets torch read them from files from then on, or
    ``with torch.serialization.safe_globals(maskloom.blocks.safe_globals()):`` for a while. They hold tensors and numbers, and loading
    one runs nothing. A class of your own, or a function in a mask, is not among them: add it beside them, if you trust it.
    """
    return [*_of_maskloom(FrozenValue), BlockMask, noop_mask]


def _of_maskloom(kind: type) -> Iterator[type]:
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        if subclass.__module__.partition(".")[0] == "maskloom":
            yield subclass
        yield from _of_maskloom(subclass)
