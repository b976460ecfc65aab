"""A vector for every training image, and the softmax over all of them, of which only a block is held at a time."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .neighbors import NeighborSets


# Similarities that are computed at a time: few enough for the caches of a CPU; elsewhere they bound the memory.
_BLOCK_ON_CPU, _BLOCK = 1 << 19, 1 << 24


def bank_blocks(rows: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """
    Cut a bank into blocks that a batch is compared with.

    Args:
        rows (`torch.Tensor` of shape `(num_images, dim)`): The bank.
        batch_size (`int`): Vectors that each block is compared with.

    Returns:
        `tuple[torch.Tensor]`: views of the rows, in order.
    """
    similarities = _BLOCK_ON_CPU if rows.device.type == "cpu" else _BLOCK
    return rows.split(max(1, similarities // max(1, batch_size)))


class _BankSoftmax(torch.autograd.Function):
    """
    Of the softmax P of the similarities z of features to the bank: the logarithm of its denominator, and its Kullback-Leibler
    divergence from the softmax Q of the similarities w of reference vectors. One pass over the blocks of the bank, in which
    sums are rescaled whenever a greater similarity is met (Milakov and Gimelshein, "Online normalizer calculation for
    softmax", 2018). Since the gradient of both is an expectation under P, it is summed in the same pass:
    with u = z - w, KL = E[u] - lse(z) + lse(w), and its derivative with respect to z is P (u - E[u]).
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, rows: Tensor, temperature: float, references: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        queries = features / temperature
        with_kl = references is not None
        differences = queries if references is None else (features - references) / temperature
        highest = queries.new_full((len(queries), 1), -math.inf)
        reference_highest = highest.clone()
        # Sums of the numerators of P, and of these times u; each alone, and times the rows of the bank.
        weights = torch.zeros_like(highest)
        weighted_rows = torch.zeros_like(queries)
        reference_weights = torch.zeros_like(highest)
        u_sum, u_rows = torch.zeros_like(highest), torch.zeros_like(queries)
        for block in bank_blocks(rows, len(queries)):
            z = queries @ block.T
            new_highest = torch.maximum(highest, z.amax(1, keepdim=True))
            rescale = (highest - new_highest).exp_()
            if with_kl:
                u = differences @ block.T
                w = z - u
                new_reference_highest = torch.maximum(reference_highest, w.amax(1, keepdim=True))
                reference_weights *= (reference_highest - new_reference_highest).exp_()
                reference_weights += w.sub_(new_reference_highest).exp_().sum(1, keepdim=True)
                reference_highest = new_reference_highest
            p = z.sub_(new_highest).exp_()
            weights = weights * rescale + p.sum(1, keepdim=True)
            weighted_rows = torch.addmm(weighted_rows * rescale, p, block)
            if with_kl:
                u = u.mul_(p)
                u_sum = u_sum * rescale + u.sum(1, keepdim=True)
                u_rows = torch.addmm(u_rows * rescale, u, block)
            highest = new_highest
        log_denominator = highest + weights.log()
        mean_row, mean_u = weighted_rows / weights, u_sum / weights
        kl = mean_u - log_denominator + reference_highest + reference_weights.log()
        ctx.save_for_backward(mean_row / temperature, (u_rows / weights - mean_u * mean_row) / temperature)
        return log_denominator[:, 0], kl[:, 0] if with_kl else torch.zeros_like(log_denominator[:, 0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, lse_grad: Tensor, kl_grad: Tensor) -> tuple[Tensor, None, None, None]:
        of_lse, of_kl = ctx.saved_tensors
        return lse_grad[:, None] * of_lse + kl_grad[:, None] * of_kl, None, None, None


def bank_softmax(
    features: Tensor, rows: Tensor, temperature: float, references: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """
    The softmax of similarities to all of a bank, without ever holding all of them.

    Args:
        features (`torch.Tensor` of shape `(batch_size, dim)`):
            What is compared with the bank; gets a gradient. Its dtype, float32 or float64, is that of the computation.
        rows (`torch.Tensor` of shape `(num_images, dim)`):
            The bank; a constant.
        temperature (`float`):
            What similarities are divided by.
        references (`torch.Tensor` of shape `(batch_size, dim)`, *optional*):
            Vectors whose softmax each feature's is compared with; constants.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`, both of shape `(batch_size,)`: log Σ_j exp(f·m_j / T), and KL(P ‖ Q) of the
        softmax P of the feature and Q of its reference, or 0 without references.
    """
    # apply() is untyped.
    result: tuple[Tensor, Tensor] = _BankSoftmax.apply(features, rows, temperature, references)
    return result


class MemoryBank(nn.Module):
    """
    One vector for each training image, and the image's neighbors. It is not part of the model's weights: it belongs to the
    images, and is saved beside them in checkpoints.

    Args:
        num_images (`int`): Number of training images.
        dim (`int`): Length of the vectors.
        seed (`int`, *optional*, defaults to 0): Seed of the vectors of the beginning, uniform in ±1 / √(dim / 3).
    """

    rows: Tensor

    def __init__(self, num_images: int, dim: int, seed: int = 0):
        super().__init__()
        bound = (dim / 3) ** -0.5
        rows = torch.rand(num_images, dim, generator=torch.Generator().manual_seed(seed))
        self.register_buffer("rows", rows.mul_(2 * bound).sub_(bound), persistent=False)
        self.neighbors = NeighborSets(num_images)

    def __len__(self) -> int:
        return len(self.rows)

    def is_filled(self) -> bool:
        """Whether every image has been met: its vector then has unit length. Reads from the device."""
        return bool(((self.rows.norm(dim=1) - 1).abs() < 1e-3).all())

    @torch.no_grad()
    def update(self, index: Tensor, features: Tensor, momentum: float) -> None:
        """
        Move the vectors of a batch towards its features, to the unit sphere.

        Args:
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Images; one that comes twice has one feature.
            features (`torch.Tensor` of shape `(batch_size, dim)`): Their features, of unit length.
            momentum (`float`): Weight of what the bank holds.
        """
        mixed = momentum * self.rows[index] + (1 - momentum) * features.to(self.rows.dtype)
        self.rows[index] = mixed / mixed.norm(dim=1, keepdim=True)

    def own_log_probability(self, index: Tensor, features: Tensor, temperature: float) -> Tensor:
        """
        The logarithm of the part of the softmax's numerator that is for an image's own set: itself and its neighbors.

        Args:
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Images.
            features (`torch.Tensor` of shape `(batch_size, dim)`): Their features.
            temperature (`float`): What similarities are divided by.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`: log Σ_{j in set} exp(f·m_j / T).
        """
        own = (features * self.rows[index]).sum(1) / temperature
        if not len(self.neighbors):
            return own
        places, others, used = self.neighbors.of(index)
        similarity = (features[places] * self.rows[others]).sum(1) / temperature
        similarity = similarity.masked_fill(~used, -math.inf)
        highest = own.detach().scatter_reduce(0, places, similarity.detach(), "amax")
        total = (own - highest).exp().index_add(0, places, (similarity - highest[places]).exp())
        return highest + total.log()

    @torch.no_grad()
    def choose_neighbor(self, index: Tensor, most_similar: bool = True) -> Tensor:
        """
        The neighbor of each image whose vector is most, or least, similar to the image's own.

        Args:
            index (`torch.Tensor` of shape `(batch_size,)`, int64): Images.
            most_similar (`bool`, *optional*, defaults to `True`): Which end of the list.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, int64: the first of several equal ones; of one without neighbors, the
            image itself.
        """
        places, others, used = self.neighbors.of(index)
        similarity = (self.rows[index[places]] * self.rows[others]).sum(1) * (1 if most_similar else -1)
        similarity = similarity.masked_fill(~used, -math.inf)
        best = similarity.new_full((len(index),), -math.inf).scatter_reduce(0, places, similarity, "amax")
        is_best = used & (similarity == best[places])
        none = len(self)
        chosen = torch.full_like(index, none).scatter_reduce(0, places, torch.where(is_best, others, none), "amin")
        return torch.where(chosen < none, chosen, index)
