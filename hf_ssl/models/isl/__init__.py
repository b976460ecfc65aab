"""ISL: every image is a class of its own, and then shares it with the images that are found to be like it."""

from .configuration_isl import ISLConfig
from .modeling_isl import ISLForPreTraining, ISLOutput
from .views_isl import ISLViews, ISLViewsConfig


__all__ = [
    "ISLConfig",
    "ISLForPreTraining",
    "ISLOutput",
    "ISLViews",
    "ISLViewsConfig",
]
