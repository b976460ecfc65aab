"""
Pictures: views of a method, curves, neighbors and similarities before and after training, matched patches, rounds, confused
classes, maps of features, colors of patches, attention.
"""

from .attention import plot_attention
from .common import DPI, can_draw, require_matplotlib
from .confusion import plot_confusion
from .curves import plot_curves
from .embedding_map import plot_embedding_map, require_umap
from .matches import plot_image_matches, plot_matches
from .neighbors import plot_neighbors
from .patch_colors import plot_patch_colors
from .rankings import Ranking, plot_rankings
from .rounds import plot_rounds
from .similarities import plot_similarities
from .views import plot_views
from .vit import draw_vit, plot_patch_filters, plot_position_similarity


__all__ = [
    "DPI",
    "Ranking",
    "can_draw",
    "draw_vit",
    "plot_attention",
    "plot_confusion",
    "plot_curves",
    "plot_embedding_map",
    "plot_image_matches",
    "plot_matches",
    "plot_neighbors",
    "plot_patch_colors",
    "plot_patch_filters",
    "plot_position_similarity",
    "plot_rankings",
    "plot_rounds",
    "plot_similarities",
    "plot_views",
    "require_matplotlib",
    "require_umap",
]
