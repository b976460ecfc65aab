"""Batch normalization over the batches of all processes, on CPUs and GPUs."""

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import initialization as init

from ..distributed import all_gather, world_size


class SyncBatchNorm(_BatchNorm):
    """
    Batch norm whose statistics in training are those of the batches of all processes together.

    The processes may have batches of different sizes, but none may be empty. In eval mode, in a single process or
    without a process group it is `torch.nn.BatchNorm1d` (2d, 3d), bit for bit; weights and buffers have the same names
    there. Other than `torch.nn.SyncBatchNorm`, it runs on CPUs as well.

    Each process's count, mean and variance are gathered and merged with the formula of Chan, Golub and LeVeque
    ("Updating formulae and a pairwise algorithm for computing sample variances", 1979), in float32 (float64 for float64
    inputs). It adds what is small, unlike `E[x²] - E[x]²`, which loses every digit if the mean is large.

    Args:
        num_features (`int`):
            Channels.
        eps (`float`, *optional*, defaults to 1e-5):
            Added to the variance.
        momentum (`float` or `None`, *optional*, defaults to 0.1):
            Weight of a batch in the running statistics; `None` for the average over all batches.
        affine (`bool`, *optional*, defaults to `True`):
            Whether there are a weight and a bias.
        track_running_stats (`bool`, *optional*, defaults to `True`):
            Whether there are running statistics. Without them, eval mode uses those of this process's batch.
    """

    def forward(self, input: Tensor) -> Tensor:
        """
        Args:
            input (`torch.Tensor` of shape `(batch_size, num_features, ...)`):
                What to normalize.

        Returns:
            `torch.Tensor` of the shape and dtype of `input`.

        Raises:
            `ValueError`: the input has the wrong shape; in training, there is a single value per channel, or a process
            has none.
        """
        if not self.training or world_size() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        mean, var, total = self._batch_statistics(input)
        if self.track_running_stats:
            self._update_running_statistics(mean.detach(), var.detach(), total)

        per_channel = (-1, *[1] * (input.dim() - 2))
        scale = torch.rsqrt(var + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        output = (input - mean.view(per_channel)) * scale.view(per_channel)
        if self.bias is not None:
            output = output + self.bias.view(per_channel)
        return output.to(input.dtype)

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2 or input.shape[1] != self.num_features:
            raise ValueError(
                f"Expected an input of shape (batch_size, {self.num_features}, ...), got {tuple(input.shape)}."
            )

    def _batch_statistics(self, input: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean and biased variance of each channel over all processes, `(num_features,)`, and the count, `()`."""
        count = input.numel() // self.num_features
        if count == 0:
            raise ValueError(
                "Expected at least one value per channel in every process when training, "
                f"got input size {tuple(input.shape)}."
            )
        values = input if input.dtype == torch.float64 else input.float()
        var, mean = torch.var_mean(values, dim=[0, *range(2, input.dim())], correction=0)
        gathered = all_gather(torch.cat([mean, var, mean.new_full((1,), count)])[None])
        means, variances, counts = gathered.split([self.num_features, self.num_features, 1], dim=1)

        total = counts.sum()
        share = counts / total
        # Differences of the means are small; sums of the means would be rounded at the size of the means.
        mean = means[0] + (share * (means - means[0])).sum(0)
        var = (share * (variances + (means - mean).square())).sum(0)
        return mean, var, total

    @torch.no_grad()
    def _update_running_statistics(self, mean: Tensor, var: Tensor, total: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor: float | Tensor
        if self.momentum is None:
            # A tensor: the CPU would have to wait for a number.
            factor = self.num_batches_tracked.to(mean.dtype).reciprocal()
        else:
            factor = self.momentum
        self.running_mean.mul_(1 - factor).add_(factor * mean)
        self.running_var.mul_(1 - factor).add_(factor * var * (total / (total - 1)))


class SyncBatchNormAct(SyncBatchNorm):
    """
    A [`SyncBatchNorm`] and the activation that timm has in its batch norms.

    Args:
        norm (`timm.layers.BatchNormAct2d`): Its settings, and the activation itself.
    """

    def __init__(self, norm: BatchNormAct2d):
        super().__init__(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
        self.drop, self.act = norm.drop, norm.act

    def forward(self, input: Tensor) -> Tensor:
        """As [`SyncBatchNorm`]; then the activation."""
        output: Tensor = self.act(self.drop(super().forward(input)))
        return output


def synchronize_batch_norm(module: nn.Module) -> None:
    """
    Put a [`SyncBatchNorm`] in the place of every batch norm inside of a module.

    Args:
        module (`torch.nn.Module`): Changed in place; its parameters and buffers keep their names, and stay what they are.
    """
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm):
                if isinstance(child, BatchNormAct2d):
                    norm: SyncBatchNorm = SyncBatchNormAct(child)
                else:
                    norm = SyncBatchNorm(
                        child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats
                    )
                norm.weight, norm.bias = child.weight, child.bias
                norm._buffers.update(child._buffers)
                setattr(parent, name, norm)


def init_batch_norm(module: SyncBatchNorm) -> None:
    """Weight 1, bias 0, and statistics of no batch: for `_init_weights`, which has to set every buffer."""
    if module.affine:
        init.ones_(module.weight)
        init.zeros_(module.bias)
    if module.track_running_stats:
        for buffer, value in ((module.running_mean, 0), (module.running_var, 1), (module.num_batches_tracked, 0)):
            assert buffer is not None
            init.constant_(buffer, value)
