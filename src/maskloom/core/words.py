"""Short descriptions of values: for error messages, and for notebooks, which show HTML with a picture.

Pictures stand at the edge of the house, and no floor imports them: `maskloom` registers here who makes the HTML.
"""

import reprlib
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor

_MOST = 200  # characters


def brief(value: object) -> str:
    """A value in few characters; tensors and arrays by dtype and shape, because their values are not read."""
    return _BRIEF.repr(value)


def brief_name(function: object) -> str:
    """The name of a function or mask, as short as `brief`."""
    name = getattr(function, "__name__", None)
    return brief(function) if not isinstance(name, str) or len(name) > _MOST else name


def what_it_is(value: object) -> str:
    """The name of a value's type; for tensors and arrays also dtype and shape."""
    kind = type(value).__name__
    return f"{kind} {_BRIEF.repr(value)}" if is_array(value) else kind


class _Brief(reprlib.Repr):
    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxlong = self.maxother = _MOST

    def repr_instance(self, x: Any, level: int) -> str:
        if is_array(x):
            return f"{str(x.dtype).removeprefix('torch.')}{list(x.shape)}"
        return super().repr_instance(x, level)


def is_array(value: object) -> bool:
    """Whether it is a tensor, or an array of another library."""
    return isinstance(value, Tensor) or (not callable(value) and hasattr(value, "dtype") and hasattr(value, "shape"))


_BRIEF = _Brief()


# -- notebooks ----------------------------------------------------------------------------------------------------------

_makers: list[Callable[[], Callable[[Any], str]]] = []


def made_by(load: Callable[[], Callable[[Any], str]]) -> None:
    """Register who makes HTML: ``load()`` returns a function from a value to HTML."""
    _makers[:] = [load]


def repr_html(value: Any) -> str:
    """The ``_repr_html_`` of values that have a picture."""
    return _makers[0]()(value)


def register_block_masks(shell: Any = None) -> None:
    """Have IPython show torch's BlockMask with a picture and true numbers, where IPython runs. torch is not changed.

    Args:
        shell: an IPython shell; by default the one that runs, if there is one. IPython is not imported for it.
    """
    loaded = sys.modules.get("IPython")
    shell = shell or (loaded.get_ipython() if loaded is not None and hasattr(loaded, "get_ipython") else None)
    formatter = getattr(shell, "display_formatter", None)
    if formatter is not None:
        kind = "torch.nn.attention.flex_attention", "BlockMask"
        formatter.formatters["text/html"].for_type_by_name(*kind, repr_html)
        formatter.formatters["text/plain"].for_type_by_name(*kind, _in_words)


def _in_words(block_mask: Any, printer: Any, cycle: bool) -> None:
    """torch's own text has the share of tiles as a sparsity below zero where tiles are cut."""
    batch, heads = block_mask.kv_indices.shape[:2]
    q_len, kv_len = block_mask.seq_lengths
    block = "×".join(map(str, block_mask.BLOCK_SIZE))
    printer.text(
        f"BlockMask(B={batch}, H={heads}, Q={q_len}, KV={kv_len}, tiles of {block}, {brief_name(block_mask.mask_mod)})"
    )
