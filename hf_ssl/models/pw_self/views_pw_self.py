"""What PW-Self trains on: two large views of each image, some small ones, and which of their patches show the same place."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...help import documented
from ...views import Draws, MultiViewPipeline, View, correspondences
from .configuration_pw_self import PWSelfConfig


def _view(**values: object) -> View:
    """What all views have in common (DINO's augmentations)."""
    common = {"interpolation": "bicubic", "jitter": 0.8, "saturation": 0.2, "grayscale": 0.2}
    return View(**common | values)  # type: ignore[arg-type]


@documented
@dataclass
class PWSelfViewsConfig:
    """
    The views of PW-Self; the defaults are the authors', for all data.

    Args:
        global1 ([`View`]):
            The first large view.
        global2 ([`View`]):
            The second large view, of the size of the first.
        local ([`View`]):
            The small views.
        canvas (`int`, *optional*, defaults to 256):
            Side of the square that images are resized to before they are cropped, in pixels.
        shared_colors (`bool`, *optional*, defaults to `False`):
            Whether the colors of all images of a batch are changed alike, as in the authors' code.
        image_mean (`list[float]`, *optional*):
            Mean of each channel, in [0, 1].
        image_std (`list[float]`, *optional*):
            Standard deviation of each channel, in [0, 1].
    """

    global1: View = field(default_factory=lambda: _view(scale=[0.4, 1.0], blur=1.0))
    global2: View = field(default_factory=lambda: _view(scale=[0.4, 1.0], blur=0.1, solarize=0.2))
    local: View = field(default_factory=lambda: _view(size=96, scale=[0.05, 0.4], blur=0.5))
    canvas: int = 256
    shared_colors: bool = False
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])


def match_views(
    boxes: Tensor, grid: tuple[int, int], local_grid: tuple[int, int], strict: bool = False
) -> tuple[Tensor, Tensor]:
    """
    The patches of each large view that show what patches of the other views do.

    Args:
        boxes (`torch.Tensor` of shape `(batch_size, 2 + num_local_views, 5)`, int64):
            Where the views lie, `(top, left, height, width, flip)` in pixels of the canvas; the large ones come first.
        grid (`tuple[int, int]`): Rows and columns of the patches of a large view.
        local_grid (`tuple[int, int]`): Those of a small view.
        strict (`bool`, *optional*, defaults to `False`): See [`~hf_ssl.views.correspondences`].

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: matches of large views with each other, `(2, batch_size, num_places, 2)`, and
        with small ones, `(2, num_local_views, batch_size, num_places, 2)`, int64: the patch of the first or second large
        view and that of the other one, from 0, or -1 where a place is free.
    """
    views = boxes.transpose(0, 1)
    large, small = views[:2], views[2:]

    def match(teacher: Tensor, student: Tensor, student_grid: tuple[int, int]) -> Tensor:
        *patches, valid = correspondences(teacher, student, grid, student_grid, strict)
        return torch.where(valid[..., None], torch.stack(patches, dim=-1), -1)

    return match(large, large.flip(0), grid), match(large[:, None], small[None], local_grid)


class PWSelfViews(MultiViewPipeline):
    """
    Turns a batch of images into what [`PWSelfForPreTraining`] is fed with.

    Args:
        config ([`PWSelfViewsConfig`]): The views.
        model_config ([`PWSelfConfig`]): Gives image size, patch size, the number of small views and the kind of geometry.
        seed (`int`, *optional*, defaults to 0): The seed of the run.
    """

    def __init__(self, config: PWSelfViewsConfig, model_config: PWSelfConfig, seed: int = 0):
        backbone = model_config.backbone_config
        large, small = (
            [replace(view, size=view.size or backbone.image_size) for view in views]
            for views in ((config.global1, config.global2), (config.local,))
        )
        self.config = replace(config, global1=large[0], global2=large[1], local=small[0])
        self.strict = model_config.strict_correspondences
        views = {"pixel_values": large}
        if model_config.num_local_views:
            views["local_pixel_values"] = small * model_config.num_local_views
        for name, group in views.items():
            if group[0].side % backbone.patch_size:
                raise ValueError(
                    f"A {'local' if name.startswith('local') else 'global'} view of {group[0].side} pixels cannot be cut "
                    f"into patches of patch_size={backbone.patch_size}: choose another size."
                )
        if large[0].side != backbone.image_size:
            raise ValueError(
                f"global1_size={large[0].side} is not the image_size={backbone.image_size}, whose patches have the centers; "
                "leave it out."
            )
        self.grid, self.local_grid = (
            (group[0].side // backbone.patch_size,) * 2 for group in (large, views.get("local_pixel_values", large))
        )
        super().__init__(
            views,
            config.image_mean,
            config.image_std,
            seed,
            canvas=config.canvas,
            shared_boxes=model_config.geometry == "batch",
            shared_colors=config.shared_colors,
        )

    def __call__(self, batch: dict[str, Tensor], draws: Draws | None = None) -> dict[str, Tensor]:
        """
        Args:
            batch (`dict[str, torch.Tensor]`):
                `index` and `epoch` (int64 of shape `(batch_size,)`) and `images` (uint8 of shape
                `(batch_size, 3, height, width)`), of any size.
            draws ([`Draws`], *optional*):
                Per-batch draws, of one row; needed if the images of a batch are cropped or colored alike.

        Returns:
            `dict[str, torch.Tensor]`: the arguments of [`PWSelfForPreTraining`]: `pixel_values`, float32 of shape
            `(2, batch_size, 3, image_size, image_size)`, `global_matches`, and, if there are small views,
            `local_pixel_values` and `local_matches`, see [`match_views`].
        """
        inputs = super().__call__(batch, draws)
        boxes = inputs.pop("boxes")
        boxes = boxes[:1] if self.shared_boxes else boxes
        inputs["global_matches"], local_matches = match_views(boxes, self.grid, self.local_grid, self.strict)
        if "local_pixel_values" in inputs:
            inputs["local_matches"] = local_matches
        return inputs


__all__ = ["PWSelfViews", "PWSelfViewsConfig", "match_views"]
