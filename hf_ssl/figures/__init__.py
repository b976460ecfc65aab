"""Pictures: views of a method, curves, neighbors and similarities before and after training, matched patches, rounds."""

from .common import DPI, require_matplotlib
from .curves import plot_curves
from .matches import plot_matches
from .neighbors import plot_neighbors
from .rounds import plot_rounds
from .similarities import plot_similarities
from .views import plot_views
from .vit import draw_vit, plot_patch_filters, plot_position_similarity


__all__ = [
    "DPI",
    "draw_vit",
    "plot_curves",
    "plot_matches",
    "plot_neighbors",
    "plot_patch_filters",
    "plot_position_similarity",
    "plot_rounds",
    "plot_similarities",
    "plot_views",
    "require_matplotlib",
]
