"""
Pictures: views of a method, curves, neighbors and similarities before and after training, matched patches, rounds, confused
classes, maps of features, colors of patches.
"""

from .common import DPI, require_matplotlib
from .confusion import plot_confusion
from .curves import plot_curves
from .embedding_map import plot_embedding_map, require_umap
from .matches import plot_matches
from .neighbors import plot_neighbors
from .patch_colors import plot_patch_colors
from .rounds import plot_rounds
from .similarities import plot_similarities
from .views import plot_views
from .vit import draw_vit, plot_patch_filters, plot_position_similarity


__all__ = [
    "DPI",
    "draw_vit",
    "plot_confusion",
    "plot_curves",
    "plot_embedding_map",
    "plot_matches",
    "plot_neighbors",
    "plot_patch_colors",
    "plot_patch_filters",
    "plot_position_similarity",
    "plot_rounds",
    "plot_similarities",
    "plot_views",
    "require_matplotlib",
    "require_umap",
]
