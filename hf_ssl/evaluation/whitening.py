"""Whitening: features whose components vary alike and independently over the images that it was fitted on.

As [DINO](https://huggingface.co/papers/2104.14294) (Caron et al., 2021) and PW-Self use it for copy detection.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .search import check_finite, row_parts


# Variances below this share of the largest one are raised to it: their directions are mostly noise.
MIN_VARIANCE = 1e-5


@dataclass(frozen=True)
class Whitening:
    """
    Subtracts a mean and projects, `projection @ (feature - mean)`.

    Args:
        mean (`torch.Tensor` of shape `(D,)`, float64): The mean feature.
        projection (`torch.Tensor` of shape `(D, D)`, float64): Rows are directions, of the largest variance first.
    """

    mean: Tensor
    projection: Tensor

    @classmethod
    @torch.no_grad()
    def fit(cls, features: Tensor, *, center_covariance: bool = False) -> "Whitening":
        """
        Finds the directions in which features vary, and how much. Computed in float64, a few images at a time.

        Args:
            features (`torch.Tensor` of shape `(N, D)`): Features of at least 2 images; may be mapped into memory.
            center_covariance (`bool`, *optional*, defaults to `False`):
                Whether the covariance is that of the centered features. The original code takes second moments of
                features as they are, although it subtracts the mean from those it whitens; published numbers are
                computed so, and the direction of the mean is scaled down in them.

        Raises:
            `ValueError`: If there are fewer than 2 images, features are not finite, or their covariance is zero.
        """
        if features.ndim != 2:
            raise ValueError(f"`features` must have shape (number of images, dim), got {tuple(features.shape)}.")
        count, dim = features.shape
        if count < 2:
            raise ValueError(
                f"Whitening needs `features` of at least 2 images, better of many more than {dim}; got {count}."
            )
        device = torch.device("cpu") if features.device.type == "mps" else features.device  # has no float64
        total = torch.zeros(dim, dtype=torch.float64, device=device)
        for rows in row_parts(count, dim, device):
            part = features[rows].to(device).double()
            check_finite(part, "features")
            total += part.sum(0)
        mean = total / count
        moments = torch.zeros(dim, dim, dtype=torch.float64, device=device)
        for rows in row_parts(count, dim, device):
            part = features[rows].to(device).double()
            part = part - mean if center_covariance else part
            moments.addmm_(part.T, part)
        variances, directions = torch.linalg.eigh(moments / count)
        variances, directions = variances.flip(0), directions.flip(1)
        if variances[0] <= 1e-24 * mean.square().sum():
            raise ValueError(f"`features` of the {count} images are all the same: whiten with images that differ.")
        scales = variances.clamp_min(MIN_VARIANCE * float(variances[0])).rsqrt()
        return cls(mean, scales[:, None] * directions.T)

    @torch.no_grad()
    def apply(self, features: Tensor) -> Tensor:
        """
        Whitens features, a few images at a time.

        Args:
            features (`torch.Tensor` of shape `(N, D)`): Features, on any device.

        Returns:
            `torch.Tensor` of shape `(N, D)`, on the same device: float32, or float64 if `features` are.

        Raises:
            `ValueError`: If the shape does not fit, or features are not finite.
        """
        dim = len(self.mean)
        if features.ndim != 2 or features.shape[1] != dim:
            raise ValueError(
                f"`features` must have shape (number of images, {dim}), as those that whitening was fitted on, got "
                f"{tuple(features.shape)}: extract both with the same encoder and pooling."
            )
        dtype = torch.promote_types(features.dtype, torch.float32)
        whitened = torch.empty(features.shape, dtype=dtype, device=features.device)
        for rows in row_parts(len(features), dim, self.mean.device):
            part = features[rows].to(self.mean.device).double()
            check_finite(part, "features")
            whitened[rows] = ((part - self.mean) @ self.projection.T).to(whitened)
        return whitened


__all__ = ["Whitening"]
