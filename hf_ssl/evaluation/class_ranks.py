"""Where the true class stands among all, by their scores."""

import torch
from torch import Tensor


def class_ranks(scores: Tensor, labels: Tensor) -> Tensor:
    """
    How many classes rank before the true one: the top-k accuracy is the share of images with less than `k`.

    Args:
        scores (`torch.Tensor` of shape `(..., num_classes)`): Scores of the classes, such as logits or votes.
        labels (`torch.Tensor` of shape `(...)`): True classes, int64.

    Returns:
        `torch.Tensor` of shape `(...)`, int64: of classes with equal scores, those with a lower index rank first. NaN ranks
        before every number; a true class with NaN has the rank `num_classes`, so that it is never found.
    """
    truth = labels[..., None]
    own = scores.gather(-1, truth)
    is_lower = torch.arange(scores.shape[-1], device=scores.device) < truth
    return (~(scores <= own) | (scores == own) & is_lower).sum(-1)


__all__ = ["class_ranks"]
