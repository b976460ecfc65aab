"""Heads that methods put on their encoders."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from .batch_norm import SyncBatchNorm


def mlp_head(num_layers: int, in_dim: int, hidden_dim: int, out_dim: int) -> nn.Sequential:
    """
    The projector and predictor of MoCo v3 (Chen, Xie, He: "An Empirical Study of Training Self-Supervised Vision
    Transformers", ICCV 2021): linear layers without bias, each followed by batch norm, and ReLU between them. The last batch
    norm has no weight and no bias.

    Args:
        num_layers (`int`): Linear layers.
        in_dim (`int`): Width of the input.
        hidden_dim (`int`): Width between the layers.
        out_dim (`int`): Width of the output.

    Returns:
        `torch.nn.Sequential`: from `(batch_size, in_dim)` to `(batch_size, out_dim)`.
    """
    widths = [in_dim, *[hidden_dim] * (num_layers - 1), out_dim]
    layers: list[nn.Module] = []
    for i in range(num_layers):
        is_last = i == num_layers - 1
        layers += [nn.Linear(widths[i], widths[i + 1], bias=False), SyncBatchNorm(widths[i + 1], affine=not is_last)]
        if not is_last:
            layers.append(nn.ReLU())
    return nn.Sequential(*layers)


def forward_apart(head: nn.Sequential, batches: Iterable[Tensor]) -> list[Tensor]:
    """
    Pass several batches through a head as if one after the other: batch norm sees each on its own, in their order. All other
    layers take them at once, which saves reading large weights, and adding up gradients of their size, once for each batch.

    Args:
        head (`torch.nn.Sequential`): Its layers; all but batch norm treat images one by one.
        batches (`Iterable[torch.Tensor]`): Batches of shape `(batch_size, in_dim)`, of any sizes. Those that need no
            gradient get none.

    Returns:
        `list[torch.Tensor]`: results of shape `(batch_size, out_dim)`.
    """
    results = list(batches)
    needs_grad = [batch.requires_grad for batch in results]
    for layer in head:
        if isinstance(layer, SyncBatchNorm):
            for i, batch in enumerate(results):
                with torch.set_grad_enabled(needs_grad[i]):
                    results[i] = layer(batch)
            continue
        for grad in (True, False):
            members = [i for i, needed in enumerate(needs_grad) if needed == grad]
            if members:
                with torch.set_grad_enabled(grad):
                    joined = layer(torch.cat([results[i] for i in members]))
                for i, result in zip(members, joined.split([len(results[i]) for i in members]), strict=True):
                    results[i] = result
    return results
