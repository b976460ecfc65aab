"""PatchMix: images mixed patch by patch are as similar as the images they share."""

from .configuration_patchmix import PatchMixConfig
from .modeling_patchmix import PatchMixForPreTraining, PatchMixOutput
from .views_patchmix import PatchMixViews, PatchMixViewsConfig, mix_patches


__all__ = [
    "PatchMixConfig",
    "PatchMixForPreTraining",
    "PatchMixOutput",
    "PatchMixViews",
    "PatchMixViewsConfig",
    "mix_patches",
]
