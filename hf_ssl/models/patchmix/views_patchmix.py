"""What PatchMix trains on: two large views of each image, some small ones, and all of them once more, mixed patch by patch.

The mixing is a function of its own, [`mix_patches`], for use elsewhere too.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...help import documented
from ...views import Draws, MultiViewPipeline, View
from .configuration_patchmix import PatchMixConfig


def mix_patches(
    images: Tensor, permutation: Tensor, group_size: int, patch_size: int, smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Mix the images of a batch patch by patch, and tell how similar the mixed images are to all others (Shen et al., arXiv
    2306.12243, section 3).

    Mixed image i is made of the images i, i + 1, … i + m - 1 of the batch, counted in a circle, in equal shares. A patch
    keeps its place: only the image that it is taken from changes, and by a random permutation of the places it is the same
    for all images of the batch.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Images whose sides are multiples of `patch_size`, of any dtype.
        permutation (`torch.Tensor` of shape `(num_patches,)`, int64):
            An order of the patches. The first `num_patches // group_size` of it are taken from image i, the next from image
            i + 1, and so on; those that are left over at the end stay with image i.
        group_size (`int`):
            Images that a mixed image is made of (m).
        patch_size (`int`):
            Side of a patch, in pixels.
        smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of both targets.

    Returns:
        `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`: the mixed images, of the shape of `images`; and two matrices of
        shape `(batch_size, batch_size)`, float32, whose rows sum to 1: how similar mixed image i is to image j, and how
        similar it is to mixed image j. (Left-over patches are not counted, as in the original.)

    Raises:
        `ValueError`: the images cannot be cut into such patches, there are fewer patches than images in a group, the
            permutation is none of these patches, or the batch is smaller than 2m - 1.
    """
    if images.ndim != 4:
        raise ValueError(f"images have shape {tuple(images.shape)}; give (batch_size, channels, height, width).")
    mixed = mix_images(images, permutation, group_size, patch_size)
    # Elsewhere, to look would be to wait.
    if permutation.device.type == "cpu" and permutation.sort().values.tolist() != list(range(len(permutation))):
        raise ValueError(
            f"permutation={permutation.tolist()} does not name each of the {len(permutation)} patches once."
        )
    return mixed, *mixing_targets(len(images), group_size, smoothing, device=images.device)


def mix_images(images: Tensor, permutation: Tensor, group_size: int, patch_size: int) -> Tensor:
    """
    The first result of [`mix_patches`], for several views at once.

    Args:
        images (`torch.Tensor` of shape `(..., batch_size, channels, height, width)`): Images; each view is mixed on its own.
        permutation (`torch.Tensor` of shape `(..., num_patches)`, int64): An order of the patches for each view.
        group_size (`int`): Images that a mixed image is made of.
        patch_size (`int`): Side of a patch, in pixels.

    Returns:
        `torch.Tensor` of the shape of `images`.

    Raises:
        `ValueError`: see [`mix_patches`].
    """
    *_, batch_size, _, height, width = images.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"Images of {height}x{width} pixels cannot be cut into patches of {patch_size} pixels.")
    rows, columns = height // patch_size, width // patch_size
    if permutation.shape != (*images.shape[:-4], rows * columns):
        raise ValueError(
            f"permutation has the shape {tuple(permutation.shape)}; {rows}x{columns} patches need "
            f"{(*images.shape[:-4], rows * columns)}."
        )
    _check_group(batch_size, group_size)
    share = rows * columns // group_size
    if share < 1:
        raise ValueError(f"{rows}x{columns} patches cannot be shared among group_size={group_size} images.")

    slots = permutation.argsort(-1)  # where the patch of each place stands in the order
    member = torch.where(slots < share * group_size, slots // share, 0).unflatten(-1, (rows, columns))
    member = member.repeat_interleave(patch_size, -2).repeat_interleave(patch_size, -1)[..., None, None, :, :]
    mixed = images if group_size > 1 else images.clone()
    for i in range(1, group_size):
        mixed = torch.where(member == i, images.roll(-i, dims=-4), mixed)
    return mixed


def mixing_targets(
    batch_size: int,
    group_size: int,
    smoothing: float = 0.0,
    num_keys: int | None = None,
    first_key: int = 0,
    device: torch.device | None = None,
) -> tuple[Tensor, Tensor]:
    """
    How similar mixed images are to images and to mixed images, where those of several processes are compared.

    A mixed image is 1/m similar to each of its m images, and two mixed images are similar in proportion to the images that
    they share: (m - d) / m² for the d-th neighbors.

    Args:
        batch_size (`int`):
            Images that this process has mixed.
        group_size (`int`):
            Images that a mixed image is made of (m); with 1, both targets are those of unmixed images.
        smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing.
        num_keys (`int`, *optional*):
            Images of all processes; unset, those of this one.
        first_key (`int`, *optional*, defaults to 0):
            Where this process's images begin among them.
        device (`torch.device`, *optional*):
            Where the targets are made.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: similarity of mixed image i to image j and to mixed image j, float32 of shape
        `(batch_size, num_keys)`; rows sum to 1.

    Raises:
        `ValueError`: the batch is smaller than 2m - 1.
    """
    _check_group(batch_size, group_size)
    num_keys = batch_size if num_keys is None else num_keys
    index = torch.arange(batch_size, device=device)
    ahead = (index - index[:, None]) % batch_size
    distance = torch.minimum(ahead, batch_size - ahead)
    to_images = (ahead < group_size).float() / group_size
    to_mixed = (group_size - distance).clamp(min=0).float() / group_size**2
    targets = []
    for weights in (to_images, to_mixed):
        target = torch.full((batch_size, num_keys), smoothing / num_keys, device=device)
        target[:, first_key : first_key + batch_size] += (1 - smoothing) * weights
        targets.append(target)
    return targets[0], targets[1]


def _check_group(batch_size: int, group_size: int) -> None:
    if group_size < 1:
        raise ValueError(f"group_size={group_size} must be at least 1.")
    if batch_size < 2 * group_size - 1:
        raise ValueError(
            f"A batch of {batch_size} images is too small to mix them in groups of group_size={group_size}: two mixed images "
            f"would meet twice. Take at least {2 * group_size - 1} images, or smaller groups."
        )


def _view(**values: object) -> View:
    """What all views have in common (MoCo v3's augmentations)."""
    common = {"interpolation": "bicubic", "jitter": 0.8, "saturation": 0.2, "grayscale": 0.2}
    return View(**common | values)  # type: ignore[arg-type]


@documented
@dataclass
class PatchMixViewsConfig:
    """
    The views of PatchMix; the defaults are the authors' for ImageNet-1K.

    Args:
        global1 ([`View`]):
            The first large view, the query among unmixed images.
        global2 ([`View`]):
            The second large view, of the size of the first.
        local ([`View`]):
            The small views.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1].
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1].
    """

    global1: View = field(default_factory=lambda: _view(scale=[0.35, 1.0], blur=1.0))
    global2: View = field(default_factory=lambda: _view(scale=[0.35, 1.0], blur=0.1, solarize=0.2))
    local: View = field(default_factory=lambda: _view(size=96, scale=[0.05, 0.35], blur=0.5))
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


class PatchMixViews(MultiViewPipeline):
    """
    Turns a batch of images into what [`PatchMixForPreTraining`] is fed with.

    Args:
        config ([`PatchMixViewsConfig`]): The views.
        model_config ([`PatchMixConfig`]): Gives image size, patch size, group size and the number of small views.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    def __init__(self, config: PatchMixViewsConfig, model_config: PatchMixConfig, seed: int = 0):
        self.patch_size: int = model_config.backbone_config.patch_size
        self.group_size = model_config.group_size
        image_size: int = model_config.backbone_config.image_size
        large, small = (
            [replace(view, size=view.size or image_size) for view in views]
            for views in ((config.global1, config.global2), (config.local,))
        )
        self.config = replace(config, global1=large[0], global2=large[1], local=small[0])
        views = {"pixel_values": large}
        if model_config.num_local_views:
            views["local_pixel_values"] = small * model_config.num_local_views
            if small[0].side > large[0].side:
                raise ValueError(
                    f"Small views of {small[0].side} pixels are larger than the large ones, of {large[0].side}: set "
                    "--local_size, or --num_local_views 0."
                )
        for name, group in views.items():
            self._check_size(group[0].side, "local" if name.startswith("local") else "global")
        super().__init__(views, config.image_mean, config.image_std, seed)
        # All images of a batch are mixed with one permutation, which is drawn for the batch.
        self.needs_batch_draws = True
        self.min_batch_size = 2 * self.group_size - 1

    def _check_size(self, side: int, name: str) -> None:
        if side % self.patch_size or (side // self.patch_size) ** 2 < self.group_size:
            raise ValueError(
                f"A {name} view of {side} pixels has to be cut into patches of patch_size={self.patch_size}, at least "
                f"group_size={self.group_size} of them: choose another size of view or patch (--local_size for local views)."
            )

    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`), and either sources of one size, `images` (uint8 of
                shape `(batch_size, 3, height, width)`), or `boxes` and the crops that [`~PatchMixViews.render`] made.
            draws ([`Draws`]):
                Per-batch draws, of one row.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`PatchMixForPreTraining`], float32: `pixel_values` and
            `mixed_pixel_values` of shape `(2, batch_size, 3, image_size, image_size)`, and, if there are small views,
            `local_pixel_values` and `mixed_local_pixel_values` of shape `(num_local_views, batch_size, 3, side, side)`.

        Raises:
            `ValueError`: there are no draws, or the batch is too small to be mixed.
        """
        if draws is None:
            raise ValueError(
                "Images are mixed by a permutation that is drawn for the batch: give `draws` (Draws.for_batch)."
            )
        inputs = super().__call__(batch)
        del inputs["boxes"]
        draws = draws.to(batch["index"].device)
        streams = draws.split(self.num_views).keys.split([len(group) for group in self.views.values()])
        for (name, group), keys in zip(self.views.items(), streams, strict=True):
            permutation = Draws(keys).permutation("mix", (group[0].side // self.patch_size) ** 2)
            inputs[f"mixed_{name}"] = mix_images(inputs[name], permutation, self.group_size, self.patch_size)
        return inputs


__all__ = ["PatchMixViews", "PatchMixViewsConfig", "mix_images", "mix_patches", "mixing_targets"]
