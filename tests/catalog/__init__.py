"""Every mask and variant that maskloom has, by name: (factory, Q, K)."""

from collections.abc import Callable

from maskloom.masks.algebra import Mask
from tests.all_masks import ALL_MASKS, KV_LEN, Q_LEN
from tests.catalog import grids, packed, sequences

EVERY: dict[str, tuple[Callable[[], Mask], int, int]] = {
    **{f"core {name}": (make, Q_LEN, KV_LEN) for name, make in ALL_MASKS.items()},
    **{f"sequences {name}": row for name, row in sequences.MASKS.items()},
    **{f"packed {name}": row for name, row in packed.MASKS.items()},
    **{f"grids {name}": row for name, row in grids.MASKS.items()},
}
