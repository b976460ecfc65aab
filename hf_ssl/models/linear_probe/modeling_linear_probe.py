"""Linear classifiers of features that stay as they are, trained side by side, each with a learning rate of its own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import initialization as init

from ..base import SSLOutput, SSLPreTrainedModel
from .configuration_linear_probe import LinearProbeConfig


class LinearProbesForTraining(SSLPreTrainedModel):
    """
    One linear classifier for each learning rate. All begin with the same weights and see the same features, as each would
    alone.

    The loss is the sum of the classifiers' cross-entropies, each times its learning rate: with SGD, whose steps are linear in
    the gradients, that is the same as an optimizer for each. The optimizer's own learning rate is the share of the peak that
    the schedule allows, and there can be no weight decay and no clipping.

    Args:
        config ([`LinearProbeConfig`]): Its configuration.
    """

    config_class = LinearProbeConfig
    config: LinearProbeConfig
    main_input_name = "features"
    supports_gradient_checkpointing = False
    learning_rates: Tensor

    def __init__(self, config: LinearProbeConfig):
        super().__init__(config)
        count, classes = len(config.learning_rates), config.num_labels or 0
        self.weight = nn.Parameter(torch.empty(count, classes, config.feature_size))
        self.bias = nn.Parameter(torch.empty(count, classes))
        self.register_buffer("learning_rates", torch.empty(count), persistent=False)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if module is not self:
            return
        weight, bias = torch.empty_like(self.weight[0]), torch.empty_like(self.bias[0])
        if self.config.initialization == "normal":
            weight.normal_(std=0.01)
            bias.zero_()
        else:
            bound = self.config.feature_size**-0.5
            weight.uniform_(-bound, bound)
            bias.uniform_(-bound, bound)
        init.copy_(self.weight, weight.expand_as(self.weight))
        init.copy_(self.bias, bias.expand_as(self.bias))
        init.copy_(self.learning_rates, torch.tensor(self.config.learning_rates))

    def forward(self, features: Tensor, labels: Tensor | None = None) -> SSLOutput:
        """
        Args:
            features (`torch.Tensor` of shape `(batch_size, feature_size)`):
                Features of images.
            labels (`torch.Tensor` of shape `(batch_size,)`, int64, *optional*):
                Their classes.

        Returns:
            [`SSLOutput`]: `logits["classification"]` of shape `(batch_size, num_classifiers, num_labels)`; with labels, the
            loss, and the mean cross-entropy as `losses["classification"]`.
        """
        with torch.autocast(features.device.type, enabled=False):  # bfloat16 is for the encoder
            scores = F.linear(features, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(1, self.bias.shape)
        output = SSLOutput(logits={"classification": scores})
        if labels is not None:
            per_image = F.cross_entropy(
                scores.transpose(1, 2), labels[:, None].expand(scores.shape[:2]), reduction="none"
            )
            losses = per_image.mean(0)
            output.loss = (losses * self.learning_rates).sum()  # no product that autocast would round
            output.losses = {"classification": losses.mean()}
        return output


__all__ = ["LinearProbesForTraining"]
