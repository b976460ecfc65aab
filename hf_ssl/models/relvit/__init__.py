"""RelViT: patches learn where their neighbors are."""

from .configuration_relvit import RelViTConfig
from .modeling_relvit import RelViTForPreTraining
from .views_relvit import RelViTViews, RelViTViewsConfig


__all__ = ["RelViTConfig", "RelViTForPreTraining", "RelViTViews", "RelViTViewsConfig"]
