"""Pictures: views of a method, curves of a run, neighbors and similarities before and after training, matched patches."""

from .common import DPI, require_matplotlib
from .curves import plot_curves
from .matches import plot_matches
from .neighbors import plot_neighbors
from .similarities import plot_similarities
from .views import plot_views


__all__ = [
    "DPI",
    "plot_curves",
    "plot_matches",
    "plot_neighbors",
    "plot_similarities",
    "plot_views",
    "require_matplotlib",
]
