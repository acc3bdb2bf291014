"""What type checkers see of this namespace: they do not compute `__all__`. A room of patterns is named here too."""

from maskloom.core.cache import mark_changed as mark_changed
from maskloom.masks import patterns as patterns
from maskloom.masks.algebra import Mask as Mask
from maskloom.masks.algebra import and_masks as and_masks
from maskloom.masks.algebra import as_mask as as_mask
from maskloom.masks.algebra import everything as everything
from maskloom.masks.algebra import mask_dataclass as mask_dataclass
from maskloom.masks.algebra import nothing as nothing
from maskloom.masks.algebra import or_masks as or_masks
from maskloom.masks.parse import parse as parse
from maskloom.masks.patterns.blockwise import *
from maskloom.masks.patterns.conversations import *
from maskloom.masks.patterns.diffusion import *
from maskloom.masks.patterns.from_tables import *
from maskloom.masks.patterns.generation import *
from maskloom.masks.patterns.graphs import *
from maskloom.masks.patterns.grids.grid import *
from maskloom.masks.patterns.grids.layout import *
from maskloom.masks.patterns.grids.video import *
from maskloom.masks.patterns.grids.windows import *
from maskloom.masks.patterns.multimodal import *
from maskloom.masks.patterns.packed.cross_documents import *
from maskloom.masks.patterns.packed.segments import *
from maskloom.masks.patterns.packed.within import *
from maskloom.masks.patterns.padding import *
from maskloom.masks.patterns.position import *
from maskloom.masks.patterns.relative import *
from maskloom.masks.patterns.shift import *
from maskloom.masks.patterns.transforms import *
from maskloom.masks.simplify import simplify as simplify
