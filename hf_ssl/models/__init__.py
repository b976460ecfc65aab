"""The methods; importing this package registers them with the Auto classes of transformers."""

from .aps import APSConfig, APSForPreTraining, sample_patches
from .auto import METHODS, Method, get_method, recognize_checkpoint
from .base import SSLConfig, SSLOutput, SSLPreTrainedModel, Step
from .isl import ISLConfig, ISLForPreTraining
from .patchmix import PatchMixConfig, PatchMixForPreTraining, mix_patches
from .pw_self import PWSelfConfig, PWSelfForPreTraining, match_views
from .relvit import RelViTConfig, RelViTForPreTraining


__all__ = [
    "APSConfig",
    "APSForPreTraining",
    "ISLConfig",
    "ISLForPreTraining",
    "METHODS",
    "Method",
    "PatchMixConfig",
    "PatchMixForPreTraining",
    "PWSelfConfig",
    "PWSelfForPreTraining",
    "RelViTConfig",
    "RelViTForPreTraining",
    "SSLConfig",
    "SSLOutput",
    "SSLPreTrainedModel",
    "Step",
    "get_method",
    "match_views",
    "mix_patches",
    "recognize_checkpoint",
    "sample_patches",
]
