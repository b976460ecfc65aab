"""Similarity of images to other images, by the features of a frozen encoder.

How [PatchMix](https://huggingface.co/papers/2306.12243) (Shen et al., 2023) looks at what an encoder has learned: features
of an image and of some other images are compared by their cosine, or by the softmax of cosines that its loss models.
"""

import torch
from torch import Tensor

from .search import normalize_pair


@torch.no_grad()
def instance_similarity(queries: Tensor, keys: Tensor, temperature: float | None = None) -> Tensor:
    """
    Compares each query with each key, in float32 or wider, under autocast too.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`): Features of images; need not be normalized.
        keys (`torch.Tensor` of shape `(K, D)`): Features to compare them with, on the same device.
        temperature (`float`, *optional*):
            If set, similarities of a query are the softmax over the keys of cosine / temperature, so that they sum to 1.

    Returns:
        `torch.Tensor` of shape `(Q, K)`: Cosine similarities, from -1 to 1; with a temperature shares, from 0 to 1.

    Raises:
        `ValueError`: If shapes do not fit, features are not finite, or the temperature is not positive.
    """
    if temperature is not None and not temperature > 0:
        raise ValueError(f"`temperature` must be positive, or None for cosine similarities, got {temperature}.")
    queries, keys = normalize_pair(queries, keys, "keys")
    with torch.autocast(queries.device.type, enabled=False):
        # Rounding may lead a little outside.
        cosines = (queries @ keys.T).clamp(-1, 1)
    return cosines if temperature is None else (cosines / temperature).softmax(dim=1)
