"""Heads that methods put on their encoders."""

from torch import nn

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
