"""What PW-Self trains on: two large views of each image, some small ones, and which of their patches show the same place."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ...help import documented
from ...views import Draws, MultiViewPipeline, View, correspondences, normalize
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

    def __post_init__(self) -> None:
        if self.canvas < 1:
            raise ValueError(f"canvas={self.canvas} must be at least 1 pixel.")


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

    pictures_show = "every patch of the first view has a color, patches without a match are pale"

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

    def pictures(self, inputs: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[int]]:
        """
        The views, and which patches of them are compared with the first large view, for the eye.

        Args:
            inputs (`dict[str, torch.Tensor]`): What the views of a batch are, as they are returned.

        Returns:
            `tuple[dict[str, torch.Tensor], list[int]]`: all views, and each again in colors: every patch of the first one has
            a color, and patches of the others have that of their match, or are pale; each of shape
            `(batch_size, 3, side, side)`; and the number of the view that each is of, from 0.
        """
        large, small = inputs["pixel_values"], inputs.get("local_pixel_values")
        names = ["global 1", "global 2", *(f"local {i + 1}" for i in range(0 if small is None else len(small)))]
        views = [*large, *(() if small is None else small)]
        matches = [inputs["global_matches"][0], *(() if small is None else inputs["local_matches"][0])]
        places = torch.arange(self.grid[0] * self.grid[1], device=large.device)
        itself = places[None, :, None].expand(1, -1, 2)
        painted = [
            self._paint(view, of_view, self.grid if number < 2 else self.local_grid)
            for number, (view, of_view) in enumerate(zip(views, [itself, *matches], strict=True))
        ]
        pictures = dict(zip(names, views, strict=True)) | {
            f"{name[0].upper()}{name.split()[1]} matches": view for name, view in zip(names, painted, strict=True)
        }
        return pictures, [*range(len(names))] * 2

    def _paint(self, view: Tensor, matches: Tensor, grid: tuple[int, int]) -> Tensor:
        """A view in the colors of the first view's patches that its own are matched with."""
        teacher, student = matches.to(view.device).expand(len(view), -1, -1).unbind(-1)
        colors = place_colors(self.grid).to(view.device)[teacher.clamp(min=0)]
        count = grid[0] * grid[1]
        patches = torch.ones(len(view), count + 1, 3, device=view.device)
        free_places_last = torch.where(student < 0, count, student)[..., None].expand(-1, -1, 3)
        patches = patches.scatter_(1, free_places_last, colors)[:, :count].unflatten(1, grid).permute(0, 3, 1, 2)
        side = view.shape[-1] // grid[0]
        layer = normalize(
            patches.repeat_interleave(side, -2).repeat_interleave(side, -1), self.image_mean, self.image_std
        )
        return view.lerp(layer, 0.6)


def place_colors(grid: tuple[int, int]) -> Tensor:
    """
    A color for each patch of a view: those of neighbors are alike, and no two are the same.

    Args:
        grid (`tuple[int, int]`): Rows and columns of the patches.

    Returns:
        `torch.Tensor` of shape `(rows * columns, 3)`, float32 in [0, 1].
    """
    corners = torch.tensor([[0.0, 0.45, 0.85], [0.95, 0.6, 0.0], [0.0, 0.65, 0.4], [0.85, 0.1, 0.45]])
    corners = corners.T.view(1, 3, 2, 2)
    return interpolate(corners, size=grid, mode="bilinear", align_corners=True).flatten(2)[0].T


__all__ = ["PWSelfViews", "PWSelfViewsConfig", "match_views"]
