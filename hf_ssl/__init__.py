"""Self-supervised vision methods as one Hugging Face library."""

from .models import (
    METHODS,
    APSConfig,
    APSForPreTraining,
    ISLConfig,
    ISLForPreTraining,
    PatchMixConfig,
    PatchMixForPreTraining,
    PWSelfConfig,
    PWSelfForPreTraining,
    RelViTConfig,
    RelViTForPreTraining,
    SSLOutput,
    SSLPreTrainedModel,
    get_method,
    match_views,
    mix_patches,
    sample_patches,
)


__version__ = "0.1.0.dev0"

__all__ = [
    "APSConfig",
    "APSForPreTraining",
    "ISLConfig",
    "ISLForPreTraining",
    "METHODS",
    "PatchMixConfig",
    "PatchMixForPreTraining",
    "PWSelfConfig",
    "PWSelfForPreTraining",
    "RelViTConfig",
    "RelViTForPreTraining",
    "SSLOutput",
    "SSLPreTrainedModel",
    "get_method",
    "match_views",
    "mix_patches",
    "sample_patches",
]
