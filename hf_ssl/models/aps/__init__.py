"""APS: an encoder that sees different patches of the two views of an image."""

from .configuration_aps import APSConfig
from .modeling_aps import APSForPreTraining, APSOutput
from .views_aps import APSViews, APSViewsConfig, sample_patches


__all__ = [
    "APSConfig",
    "APSForPreTraining",
    "APSOutput",
    "APSViews",
    "APSViewsConfig",
    "sample_patches",
]
