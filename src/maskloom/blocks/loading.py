"""What ``torch.load`` needs to read masks, score mods and block masks from a file without running code from the file."""

from collections.abc import Callable, Iterator

from torch.nn.attention.flex_attention import BlockMask, noop_mask

from maskloom.core.host_count import HostCount
from maskloom.core.values import FrozenValue


def safe_globals() -> list[Callable[..., object]]:
    """The classes of all masks and score mods of maskloom, and torch's BlockMask, for ``torch.load(weights_only=True)``.

    After ``torch.serialization.add_safe_globals(maskloom.blocks.safe_globals())`` torch can read them from files. To
    allow it only for a while, use ``with torch.serialization.safe_globals(maskloom.blocks.safe_globals()):``. They hold
    tensors and numbers, and loading one runs no code. Your own classes, and functions in a mask, are not in the list:
    add them if you trust them.
    """
    return [*_of_maskloom(FrozenValue), HostCount, BlockMask, noop_mask]


def _of_maskloom(kind: type) -> Iterator[type]:
    subclasses: list[type] = kind.__subclasses__()
    for subclass in subclasses:
        if subclass.__module__.partition(".")[0] == "maskloom":
            yield subclass
        yield from _of_maskloom(subclass)
