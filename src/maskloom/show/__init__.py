"""Pictures of attention, masks and tiles, drawn with matplotlib, which is imported with the first one, and pages to explore."""

from maskloom.show.attention_map import attention
from maskloom.show.comparison import compare
from maskloom.show.density_map import density
from maskloom.show.explorer.page import page
from maskloom.show.figures import save_figure
from maskloom.show.mask_map import mask
from maskloom.show.plot import visualize_attention_scores
from maskloom.show.tile_map import tiles

__all__ = ["mask", "tiles", "attention", "density", "compare", "page", "save_figure", "visualize_attention_scores"]
