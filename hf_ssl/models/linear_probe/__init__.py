"""Linear probing: classifiers of features that stay as they are."""

from .configuration_linear_probe import LinearProbeConfig
from .modeling_linear_probe import LinearProbesForTraining
from .views_linear_probe import LinearProbeViews, LinearProbeViewsConfig


__all__ = ["LinearProbeConfig", "LinearProbeViews", "LinearProbeViewsConfig", "LinearProbesForTraining"]
