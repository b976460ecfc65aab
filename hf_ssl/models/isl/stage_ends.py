"""When the stages of a round end: pure functions of what has been measured."""

from collections.abc import Sequence
from dataclasses import dataclass

from .configuration_isl import ISLConfig


# Of the rule by quality. An epoch is better than the best one so far if its quality is higher by this share.
_MIN_GAIN = 0.02
# Links per image, as a share of those that a round aims at, and the agreement, that the best epoch must have.
_MIN_YIELD, _MIN_AGREEMENT = 0.1, 0.5
_MIN_EPOCHS = {True: 10, False: 3}  # in the first round, later
# A discriminator that has won: a loss below this, for so many epochs.
_SATURATED_LOSS, _SATURATED_EPOCHS = 0.05, 10
_SMOOTHING = 0.6  # weight of the epochs before
# A pass of mining that adds fewer new links than this share of them is the last.
_MIN_NEW_LINKS = 0.001


@dataclass
class GANEpoch:
    """
    What is measured after an epoch of the training of generator and discriminator.

    Args:
        discriminator_loss (`float`): Mean over the epoch.
        generator_loss (`float`): Mean over the epoch.
        alignment (`float`): Mean cosine of probe images and their proxies.
        links_per_image (`float`): Links that mining would make for each probe image.
        agreement (`float`): Share of those that lead to one of the images nearest to the probe image itself.
        quality (`float`): The smaller of links per image and those aimed at, times agreement; smoothed over epochs.
    """

    discriminator_loss: float
    generator_loss: float
    alignment: float
    links_per_image: float
    agreement: float
    quality: float


def smoothed_quality(previous: GANEpoch | None, links_per_image: float, agreement: float, aim: float) -> float:
    """
    Quality of the links that generator and discriminator would make.

    Args:
        previous ([`GANEpoch`], *optional*): The epoch before, of the same round.
        links_per_image (`float`): Links that mining would make for each probe image.
        agreement (`float`): Share of those that agree with the encoder.
        aim (`float`): Links per image that a round aims at; more are not better.

    Returns:
        `float`.
    """
    quality = min(links_per_image, aim) * agreement
    return quality if previous is None else _SMOOTHING * previous.quality + (1 - _SMOOTHING) * quality


def best_epoch(epochs: Sequence[GANEpoch]) -> int:
    """The epoch of the best quality; of equal ones, that of the best alignment. Counted from 0."""
    return max(range(len(epochs)), key=lambda i: (epochs[i].quality, epochs[i].alignment))


def why_gan_ends(epochs: Sequence[GANEpoch], is_first_round: bool, total_steps: int, config: ISLConfig) -> str | None:
    """
    Whether the training of generator and discriminator ends after the last of these epochs.

    Args:
        epochs (`Sequence[GANEpoch]`): The epochs of this round.
        is_first_round (`bool`): Whether it is the first round.
        total_steps (`int`): Steps of the generator, over all rounds.
        config ([`ISLConfig`]): Says by which rule.

    Returns:
        `str`, *optional*: the reason; None if it goes on.
    """
    if config.gan_stop == "official" and official_gan_stop([e.generator_loss for e in epochs], is_first_round):
        return "the authors' rule"
    if config.gan_stop == "quality":
        tail = epochs[-_SATURATED_EPOCHS:]
        if len(tail) == _SATURATED_EPOCHS and all(e.discriminator_loss < _SATURATED_LOSS for e in tail):
            return "the discriminator has won"
        best = epochs[best_epoch(epochs)]
        enough = len(epochs) >= _MIN_EPOCHS[is_first_round] and total_steps >= config.gan_min_steps
        sound = best.links_per_image >= _MIN_YIELD * config.neighbors_per_round and best.agreement >= _MIN_AGREEMENT
        if enough and sound and epochs_without_gain(epochs) >= config.gan_patience:
            return "no better quality"
    return "gan_max_epochs" if len(epochs) >= config.gan_max_epochs else None


def epochs_without_gain(epochs: Sequence[GANEpoch]) -> int:
    """Epochs since the quality was last higher, by more than 2 %, than it had been when that was last so."""
    reference, last = -1.0, 0
    for number, epoch in enumerate(epochs):
        if reference < 0 or epoch.quality > reference * (1 + _MIN_GAIN):
            reference, last = epoch.quality, number
    return len(epochs) - 1 - last


def official_gan_stop(losses: Sequence[float], is_first_round: bool) -> bool:
    """
    The rule of the authors' code: the generator's loss has been below 1, is not the lowest of the last three, and was lowest
    before those. In the first round at least ten epochs, and the last loss not above 1.

    Args:
        losses (`Sequence[float]`): The generator's mean loss in each epoch of this round.
        is_first_round (`bool`): Whether it is the first round.

    Returns:
        `bool`: whether the training ends.
    """
    if is_first_round and (len(losses) < 10 or losses[-1] > 1):
        return False
    if min(losses) > 1 or losses[-1] == min(losses[-3:]):
        return False
    return min(losses) not in losses[-3:]


def has_enough_neighbors(num_links: int, num_images: int, round_number: int, neighbors_per_round: float) -> bool:
    """
    Whether mining has found what a round aims at.

    Args:
        num_links (`int`): Links, in both directions.
        num_images (`int`): Images.
        round_number (`int`): The round, from 0.
        neighbors_per_round (`float`): Neighbors of an image, in the mean, that a round adds.

    Returns:
        `bool`.
    """
    return num_links / num_images > (round_number + 1) * neighbors_per_round


def why_mining_ends(
    new_links: Sequence[int], num_links: int, num_images: int, round_number: int, config: ISLConfig
) -> str | None:
    """
    Whether mining ends after a pass over the images.

    Args:
        new_links (`Sequence[int]`): Links that each pass of this round has added.
        num_links (`int`): Links that there are now.
        num_images (`int`): Images.
        round_number (`int`): The round, from 0.
        config ([`ISLConfig`]): The aim, and the most passes.

    Returns:
        `str`, *optional*: the reason; None if it goes on.
    """
    if has_enough_neighbors(num_links, num_images, round_number, config.neighbors_per_round):
        return "enough neighbors"
    if new_links[-1] == 0 or new_links[-1] < _MIN_NEW_LINKS * num_links:
        return "hardly any new links"
    return "mining_max_passes" if len(new_links) >= config.mining_max_passes else None
