"""Pictures of attention, masks and tiles."""

from maskloom.show.plot import plot_attention, plot_mask, plot_tiles, save_figure, visualize_attention_scores

__all__ = ["visualize_attention_scores", "plot_attention", "plot_mask", "plot_tiles", "save_figure"]
