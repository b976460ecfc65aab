"""Self-supervised vision methods as one Hugging Face library."""

from .models import METHODS, RelViTConfig, RelViTForPreTraining, SSLOutput, SSLPreTrainedModel, get_method


__version__ = "0.1.0.dev0"

__all__ = [
    "METHODS",
    "RelViTConfig",
    "RelViTForPreTraining",
    "SSLOutput",
    "SSLPreTrainedModel",
    "get_method",
]
