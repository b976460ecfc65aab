"""A published encoder takes over what a trained one holds."""

from torch import nn


def fill_from(published: nn.Module, trained: nn.Module) -> None:
    """
    Copy all parameters and buffers, those that are not saved too.

    Args:
        published (`torch.nn.Module`): On the meta device; in float32 afterwards, where `trained` is.
        trained (`torch.nn.Module`): Has the same parameters and buffers, by name.
    """
    weights = {
        name: tensor.detach().float().clone() if tensor.is_floating_point() else tensor.clone()
        for name, tensor in trained.state_dict().items()
    }
    published.load_state_dict(weights, strict=True, assign=True)
    for name, buffer in trained.named_buffers():
        if name not in weights:
            owner, _, attribute = name.rpartition(".")
            setattr(published.get_submodule(owner), attribute, buffer.clone())
