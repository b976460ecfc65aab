"""The training of generator and discriminator: their optimizers, a step, and the tensors that this is made of."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ...views import full_precision
from .mining import Triplets
from .proxies import Discriminator, Generator, discriminator_loss, generator_loss


class ProxyTraining:
    """
    Trains both networks, which are frozen whenever this does not.

    Args:
        generator ([`Generator`]): The generator.
        discriminator ([`Discriminator`]): The discriminator.
        learning_rate (`float`): Adam's, for both.
        betas (`tuple[float, float]`): Adam's decay rates.
        accelerator (`accelerate.Accelerator`): Takes the mean of the gradients of several processes.
    """

    def __init__(
        self,
        generator: Generator,
        discriminator: Discriminator,
        learning_rate: float,
        betas: tuple[float, float],
        accelerator: Accelerator,
    ):
        self.generator, self.discriminator = generator, discriminator
        self.networks: dict[str, nn.Module] = {"generator": generator, "discriminator": discriminator}
        self.optimizers = {
            name: torch.optim.Adam(network.parameters(), lr=learning_rate, betas=betas)
            for name, network in self.networks.items()
        }
        self.accelerator = accelerator

    def step(self, triplets: Triplets) -> tuple[Tensor, Tensor]:
        """
        One step of the discriminator, and one of the generator against what it has become.

        Args:
            triplets ([`Triplets`]): The triplets of a batch.

        Returns:
            `tuple[torch.Tensor, torch.Tensor]` of shape `()`: the loss of each.
        """
        generator, discriminator = self.generator, self.discriminator
        with full_precision(triplets.anchor.device):
            anchor, positive, negative = triplets
            proxy = generator(anchor, positive, negative)
            d_loss = discriminator_loss(discriminator, anchor, positive, negative, proxy)
            self._optimize("discriminator", d_loss)
            discriminator.requires_grad_(False)
            g_loss = generator_loss(discriminator, anchor, positive, negative, proxy)
            self._optimize("generator", g_loss)
            discriminator.requires_grad_(True)
        return d_loss.detach(), g_loss.detach()

    def _optimize(self, name: str, loss: Tensor) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.networks[name].parameters() if p.grad is not None]
        if self.accelerator.num_processes > 1:
            mean = self.accelerator.reduce(torch.cat([g.flatten() for g in gradients]), "mean")
            for gradient, part in zip(gradients, mean.split([g.numel() for g in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))
        optimizer.step()

    @contextmanager
    def trainable(self) -> Iterator[None]:
        """Within this, the networks take gradients; after it, they have none that Trainer could take for the encoder's."""
        for network in self.networks.values():
            network.requires_grad_(True)
        try:
            yield
        finally:
            for name, network in self.networks.items():
                self.optimizers[name].zero_grad()
                network.requires_grad_(False)

    def tensors(self) -> dict[str, Tensor]:
        """
        Returns:
            `dict[str, torch.Tensor]`: weights of both networks and state of both optimizers by name, not copied.
        """
        tensors: dict[str, Tensor] = {}
        for name, network in self.networks.items():
            tensors |= {f"{name}.{key}": value for key, value in network.state_dict().items()}
            for number, state in self.optimizers[name].state_dict()["state"].items():
                tensors |= {f"{name}_optimizer.{number}.{key}": value for key, value in state.items()}
        return tensors

    def set_tensors(self, tensors: dict[str, Tensor]) -> None:
        """
        Go back to what [`~ProxyTraining.tensors`] gave.

        Args:
            tensors (`dict[str, torch.Tensor]`): By name; they are copied.
        """
        for name, network in self.networks.items():
            state: dict[int, dict[str, Tensor]] = {}
            weights = {}
            for full_name, tensor in tensors.items():
                owner, _, key = full_name.partition(".")
                if owner == name:
                    weights[key] = tensor
                elif owner == f"{name}_optimizer":
                    number, _, key = key.partition(".")
                    state.setdefault(int(number), {})[key] = tensor.clone()
            network.load_state_dict(weights)
            optimizer = self.optimizers[name]
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


__all__ = ["ProxyTraining"]
