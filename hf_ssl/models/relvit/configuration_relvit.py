"""Configuration of RelViT (Camporese et al., BMVC 2022, arXiv 2206.00481)."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from ...backbones import check_vit_config
from ..base import Feature, SSLConfig


TASKS = ("relations", "positions", "distances", "angles", "classification")


@strict
class RelViTConfig(SSLConfig):
    """
    Configuration of a [`RelViTForPreTraining`]: the encoder, the tasks that its patch tokens solve, and their losses.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder (a ViT).
        tasks (`list[str]`, *optional*, defaults to `["relations", "positions"]`):
            Which losses are summed: `"relations"` (nine directions between two patches), `"positions"` (which cell a
            patch comes from), `"distances"`, `"angles"` (regressions) and `"classification"`.
        mega_patches (`int`, *optional*):
            Mega-patches on a side of the image: the grid is cut into that many bands of whole patches in each
            direction, at random, and every rectangle is resized to one patch. Unset, ordinary patches.
        use_position_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the encoder adds position embeddings. They are off in upstream pretraining: a patch's place must be
            told from its content.
        add_class_token_to_patches (`bool`, *optional*, defaults to `False`):
            Feed patch token + class token to the patch heads.
        attention_pattern (`str`, *optional*, defaults to `"full"`):
            `"full"`; `"diagonal"`: every token attends to itself alone; `"diagonal_class_row"`: the same, but the
            class token attends to all.
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last layer, growing linearly from 0.
        projection_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the patch projection. (The other dropouts are fields of `backbone_config`.)
        relation_label_smoothing (`float`, *optional*, defaults to 0.0):
            Label smoothing of the relation loss.
        relation_loss_dropout (`float`, *optional*, defaults to 0.0):
            Dropout on the elements of the smoothed relation loss, in training; without smoothing it does nothing, as
            in the original.
        num_labels (`int`, *optional*):
            Classes of the classification task.
    """

    model_type = "relvit"
    modes: ClassVar[dict[str, dict[str, Any]]] = {
        "upstream": {
            "tasks": ["relations", "positions"],
            "use_position_embeddings": False,
            "feature": "patch_mean",  # upstream no loss reaches the class token
        },
        "joint": {
            "tasks": ["classification", "relations", "positions"],
            "use_position_embeddings": True,
            "feature": "class_token",
            "patch_augmentation": "none",
        },
    }

    feature: Feature = "patch_mean"
    position_interpolation: Literal["size", "scale_factor"] = "scale_factor"
    tasks: list[str] = field(default_factory=lambda: ["relations", "positions"])
    mega_patches: int | None = None
    use_position_embeddings: bool = False
    add_class_token_to_patches: bool = False
    attention_pattern: Literal["full", "diagonal", "diagonal_class_row"] = "full"
    drop_path_rate: float | int = 0.0
    projection_dropout: float | int = 0.0
    relation_label_smoothing: float | int = 0.0
    relation_loss_dropout: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check()

    @property
    def grid_size(self) -> int:
        """Cells on a side of the patch grid that the heads see."""
        return self.mega_patches or self.backbone_config.image_size // self.backbone_config.patch_size

    def _check(self) -> None:
        check_vit_config(self.backbone_config, "RelViT")
        image_size, patch_size = self.backbone_config.image_size, self.backbone_config.patch_size
        if self.mega_patches is not None and not 2 <= self.mega_patches <= image_size // patch_size:
            raise ValueError(
                f"mega_patches={self.mega_patches} must lie between 2 and the grid's {image_size // patch_size} cells."
            )
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={self.tasks} must name at least one of {', '.join(TASKS)}, each once.")
        if self.grid_size < 2:
            raise ValueError(
                f"image_size={image_size} with patch_size={patch_size} leaves no two patches to relate on a side; use "
                "larger images or smaller patches."
            )
        if "relations" in self.tasks and self.backbone_config.hidden_size < 9:
            raise ValueError(
                f"backbone_config.hidden_size={self.backbone_config.hidden_size} is too small for nine scorers."
            )
        for name in ("drop_path_rate", "projection_dropout", "relation_label_smoothing", "relation_loss_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")


__all__ = ["TASKS", "RelViTConfig"]
