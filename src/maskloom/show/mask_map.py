"""`plot_mask`: the elements of a mask, visible or hidden."""

from typing import TYPE_CHECKING

from torch import Tensor

from maskloom.masks.algebra import as_mask, shown
from maskloom.masks.dense import dense
from maskloom.masks.in_place import Sizes, mask_of_table
from maskloom.program.program import MaskMod
from maskloom.show.figures import keys_on_top, label_axis, literal, load_matplotlib, panel_size, part_cells, spaced

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_VISIBLE, _HIDDEN = "#17406d", "#e9edf0"


def plot_mask(
    mask: MaskMod | Tensor,
    q_len: int,
    kv_len: int,
    *,
    batch_idx: int = 0,
    head_idx: int = 0,
    batch: int | None = None,
    heads: int | None = None,
    title: str | None = None,
    longest: float = 5.5,
) -> "Figure":
    """A mask as a picture, queries down and keys across, visible cells dark.

    Args:
        mask: a Mask or a mask_mod, or a table as in `attend`.
        q_len, kv_len: Q and K, in positions.
        batch_idx, head_idx: the batch row and head; any, if the mask is the same for all.
        batch, heads: B and H, if the mask's tables do not have them.
        title: by default the mask's repr; an empty string for no title.
        longest: maximum length of the longer side of the drawing, in inches.

    Returns:
        A matplotlib Figure; `save_figure` writes it.

    Raises:
        TypeError, ValueError: not a mask, lengths below 1, or a batch row or head that does not exist.
    """
    table = one_table(mask, q_len, kv_len, batch_idx, head_idx, batch, heads)
    width, height = panel_size(q_len, kv_len, cell=0.24, longest=longest, least=0.9)
    figure = load_matplotlib().figure.Figure(figsize=(width + 1.0, height + 1.0), layout="constrained")
    axes = figure.add_subplot()
    colours = load_matplotlib().colors.ListedColormap([_HIDDEN, _VISIBLE])
    axes.imshow(
        table, cmap=colours, vmin=0, vmax=1, aspect="auto", interpolation="antialiased", interpolation_stage="rgba"
    )
    keys_on_top(axes)
    part_cells(axes, q_len, kv_len, min(width / kv_len, height / q_len))
    for axis, name, length, room in ((axes.yaxis, "query", q_len, height), (axes.xaxis, "key", kv_len, width)):
        places = spaced(range(length), room, apart=0.35)
        label_axis(axis, name, places, places)
    if title is None:
        title = f"from_dense({shown(mask)})" if isinstance(mask, Tensor) else repr(as_mask(mask))
    if title:
        literal([figure.suptitle(title, fontsize=10)])
    return figure


def one_table(
    mask: MaskMod | Tensor, q_len: int, kv_len: int, batch_idx: int, head_idx: int, batch: int | None, heads: int | None
) -> list[list[bool]]:
    """The elements of a mask for one batch row and head: Q lists of K bools."""
    if isinstance(mask, Tensor):
        mask = mask_of_table(mask, Sizes(batch, heads, q_len, kv_len))
    table = dense(mask, q_len, kv_len, batch=batch, heads=heads)
    for name, index, size, items in (
        ("batch_idx", batch_idx, table.shape[0], "batch rows"),
        ("head_idx", head_idx, table.shape[1], "heads"),
    ):
        if index < 0 or index >= size > 1:
            raise ValueError(f"{name} is from 0 to {size - 1}, as there are {size} {items}; got {index}")
    return table[batch_idx % table.shape[0], head_idx % table.shape[1]].tolist()
