"""The generator that proposes what a neighbor of an image may look like, and the discriminator that judges it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


_SLOPE = 0.01  # of the leaky ReLU


class Generator(nn.Module):
    """
    Makes a proxy of an image's positive of its triplet. It has no random input.

    Args:
        dim (`int`): Length of the vectors.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(3 * dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.fc3 = nn.Linear(dim, dim)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """
        Args:
            anchor (`torch.Tensor` of shape `(batch_size, dim)`): Features of the images.
            positive (`torch.Tensor` of shape `(batch_size, dim)`): What the bank holds of their positives.
            negative (`torch.Tensor` of shape `(batch_size, dim)`): What it holds of their negatives.

        Returns:
            `torch.Tensor` of shape `(batch_size, dim)`: proxies, of unit length.
        """
        x = F.leaky_relu(self.fc1(torch.cat([anchor, positive, negative], dim=1)), _SLOPE)
        x = self.fc3(F.leaky_relu(self.fc2(x), _SLOPE))
        return x / x.norm(dim=1, keepdim=True)


class Discriminator(nn.Module):
    """
    Judges whether a triplet is one of images, and not one with a proxy.

    Args:
        dim (`int`): Length of the vectors.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.fc1 = nn.Linear(3 * dim, dim)
        self.fc2 = nn.Linear(dim, dim // 2)
        self.fc3 = nn.Linear(dim // 2, 1)

    def forward(self, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """
        Args:
            anchor (`torch.Tensor` of shape `(batch_size, dim)`): Features of the images.
            positive (`torch.Tensor` of shape `(batch_size, dim)`): Positives, or proxies in their place.
            negative (`torch.Tensor` of shape `(batch_size, dim)`): Negatives, or proxies in their place.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`: scores in [0, 1]; 1 is for triplets without a proxy.
        """
        x = F.leaky_relu(self.fc1(torch.cat([anchor, positive, negative], dim=1)), _SLOPE)
        x = F.leaky_relu(self.fc2(x), _SLOPE)
        return self.fc3(x)[:, 0].sigmoid()


def discriminator_loss(
    discriminator: Discriminator, anchor: Tensor, positive: Tensor, negative: Tensor, proxy: Tensor
) -> Tensor:
    """
    ½ BCE of the triplets, to be told true, and ¼ BCE of each kind with a proxy, to be told false: the proxy in the place of
    the negative, and in that of the positive.

    Args:
        discriminator ([`Discriminator`]): The discriminator.
        anchor, positive, negative, proxy (`torch.Tensor` of shape `(batch_size, dim)`): Triplets and their proxies.

    Returns:
        `torch.Tensor` of shape `()`; log 2 where the discriminator cannot tell.
    """
    proxy = proxy.detach()
    of_true = _bce(discriminator(anchor, positive, negative), 1.0)
    of_false = _bce(discriminator(anchor, positive, proxy), 0.0) + _bce(discriminator(anchor, proxy, negative), 0.0)
    return (of_true + of_false / 2) / 2


def generator_loss(
    discriminator: Discriminator, anchor: Tensor, positive: Tensor, negative: Tensor, proxy: Tensor
) -> Tensor:
    """
    ½ BCE of each kind of triplet with a proxy, to be told true.

    Args:
        discriminator ([`Discriminator`]): The discriminator, after its step.
        anchor, positive, negative, proxy (`torch.Tensor` of shape `(batch_size, dim)`): Triplets and their proxies.

    Returns:
        `torch.Tensor` of shape `()`.
    """
    scores = discriminator(anchor, positive, proxy), discriminator(anchor, proxy, negative)
    return (_bce(scores[0], 1.0) + _bce(scores[1], 1.0)) / 2


def _bce(scores: Tensor, target: float) -> Tensor:
    return F.binary_cross_entropy(scores, torch.full_like(scores, target))
