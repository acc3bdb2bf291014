"""All patterns, one module for each kind; each module can be read alone, and lists its public names in `__all__`."""

from types import ModuleType

from maskloom.masks.patterns import (
    blockwise,
    conversations,
    diffusion,
    from_tables,
    generation,
    graphs,
    multimodal,
    position,
    relative,
    shift,
    transforms,
)
from maskloom.masks.patterns import padding as padding_room
from maskloom.masks.patterns.blockwise import *
from maskloom.masks.patterns.conversations import *
from maskloom.masks.patterns.diffusion import *
from maskloom.masks.patterns.from_tables import *
from maskloom.masks.patterns.generation import *
from maskloom.masks.patterns.graphs import *
from maskloom.masks.patterns.grids import grid, layout, video, windows
from maskloom.masks.patterns.grids.grid import *
from maskloom.masks.patterns.grids.layout import *
from maskloom.masks.patterns.grids.video import *
from maskloom.masks.patterns.grids.windows import *
from maskloom.masks.patterns.multimodal import *
from maskloom.masks.patterns.packed import cross_documents, segments
from maskloom.masks.patterns.packed import within as within_room
from maskloom.masks.patterns.packed.cross_documents import *
from maskloom.masks.patterns.packed.segments import *
from maskloom.masks.patterns.packed.within import *
from maskloom.masks.patterns.padding import *
from maskloom.masks.patterns.position import *
from maskloom.masks.patterns.relative import *
from maskloom.masks.patterns.shift import *
from maskloom.masks.patterns.transforms import *

ROOMS: tuple[ModuleType, ...] = (
    relative,
    blockwise,
    position,
    padding_room,
    segments,
    cross_documents,
    within_room,
    conversations,
    shift,
    transforms,
    windows,
    grid,
    layout,
    video,
    diffusion,
    generation,
    multimodal,
    from_tables,
    graphs,
)
"""All of them; the parser suggests names in this order."""

__all__ = [name for room in ROOMS for name in room.__all__]

OF_TENSORS = frozenset(name for room in ROOMS for name in getattr(room, "OF_TENSORS", ()))
"""The masks that need a tensor, which a text cannot hold."""
