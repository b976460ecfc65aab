"""Configuration of RelViT (Camporese et al., BMVC 2022, arXiv 2206.00481)."""

from dataclasses import field
from typing import Any, ClassVar, Literal

from huggingface_hub.dataclasses import strict

from ...backbones import check_swin_config, check_vit_config, feature_size
from ..base import Feature, SSLConfig


TASKS = ("relations", "positions", "distances", "angles", "classification")
_ENCODER_TYPES = ("vit", "swin", "t2t_vit", "timm_wrapper")


@strict
class RelViTConfig(SSLConfig):
    """
    Configuration of a [`RelViTForPreTraining`]: the encoder, the tasks that its patch tokens solve, and their losses.

    Args:
        backbone_config (`PreTrainedConfig` or `dict`, *optional*):
            Configuration of the encoder: a ViT, a Swin, a T2T-ViT, or a vision transformer of timm.
        feature (`str`, *optional*):
            What evaluations use as the feature of an image. Unset, the class token where it is classified, and else the mean
            of the patch tokens: in upstream pretraining no loss reaches the class token.
        tasks (`list[str]`, *optional*, defaults to `["relations", "positions"]`):
            Which losses are summed: `"relations"` (nine directions between two patches), `"positions"` (which cell a
            patch comes from), `"distances"`, `"angles"` (regressions) and `"classification"`.
        mega_patches (`int`, *optional*):
            Mega-patches on a side of the image: the grid is cut into that many bands of whole patches in each
            direction, at random, and every rectangle is resized to one patch. Unset, ordinary patches.
        use_position_embeddings (`bool`, *optional*):
            Whether the encoder adds position embeddings. Unset, a ViT does not, unless it classifies: a patch's place must
            be told from its content. Other encoders have positions that cannot be switched off.
        add_class_token_to_patches (`bool`, *optional*, defaults to `False`):
            Feed patch token + class token to the patch heads (not with a Swin, which has no class token).
        attention_pattern (`str`, *optional*, defaults to `"full"`):
            `"full"`; `"diagonal"`: every token attends to itself alone; `"diagonal_class_row"`: the same, but the
            class token attends to all (a ViT only).
        drop_path_rate (`float`, *optional*, defaults to 0.0):
            Stochastic depth of the last layer, growing linearly from 0 (a ViT or a Swin).
        projection_dropout (`float`, *optional*, defaults to 0.0):
            Dropout after the patch projection of a ViT. (The other dropouts are fields of `backbone_config`.)
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
        },
        "joint": {
            "tasks": ["classification", "relations", "positions"],
            "patch_augmentation": "none",
        },
    }

    feature: Feature | None = None  # type: ignore[assignment]
    position_interpolation: Literal["size", "scale_factor"] = "scale_factor"
    tasks: list[str] = field(default_factory=lambda: ["relations", "positions"])
    mega_patches: int | None = None
    use_position_embeddings: bool | None = None
    add_class_token_to_patches: bool = False
    attention_pattern: Literal["full", "diagonal", "diagonal_class_row"] = "full"
    drop_path_rate: float | int = 0.0
    projection_dropout: float | int = 0.0
    relation_label_smoothing: float | int = 0.0
    relation_loss_dropout: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self._check_encoder()
        classifies = "classification" in self.tasks
        if self.use_position_embeddings is None:
            self.use_position_embeddings = classifies or self.backbone_config.model_type != "vit"
        if self.feature is None:
            self.feature = self._features()[0 if classifies else -1]
        self._check()

    @property
    def cell_size(self) -> int:
        """Side of the patches that the tasks are about, in pixels."""
        config = self.backbone_config
        size: int = config.patch_size
        if config.model_type == "swin":
            return size * 2 ** (len(config.depths) - 1)
        return 2 * size if config.model_type == "t2t_vit" else size  # its tokens are pooled, every other one

    @property
    def grid_size(self) -> int:
        """Patches on a side of the grid that the heads see."""
        return self.mega_patches or self.backbone_config.image_size // self.cell_size

    @property
    def selection_metric(self) -> str:
        """As the authors choose: the loss on test images, or where they are classified, the accuracy."""
        if "classification" in self.tasks:
            return "validation_accuracy_classification"
        return "validation_loss"

    def _features(self) -> list[Feature]:
        """What the encoder offers as a feature: what is classified first, what the tasks train last."""
        kind = self.backbone_config.model_type
        if kind == "swin":
            return ["pooled"]  # the mean of all tokens
        if kind == "timm_wrapper":
            return ["pooled", "patch_mean"]
        return ["class_token", "patch_mean"]

    def _check_encoder(self) -> None:
        config = self.backbone_config
        if config.model_type == "vit":
            check_vit_config(config, "RelViT")
        elif config.model_type == "swin":
            check_swin_config(config)
        elif config.model_type not in _ENCODER_TYPES:
            raise ValueError(
                f"backbone_config.model_type={config.model_type!r} is not supported by RelViT; use one of "
                f"{', '.join(_ENCODER_TYPES)} (--backbone vit-small, swin-tiny, t2t-vit-14, timm/NAME)."
            )
        elif getattr(config, "patch_size", None) is None:
            raise ValueError(
                f"timm's {config.architecture} computes no grid of tokens in a row that covers the whole image, and RelViT "
                "relates those: use a vision transformer such as timm/vit_tiny_patch16_224, and images of whole patches."
            )
        if config.model_type != "vit":
            self._check_only_with_a_vit(config.model_type)
        if config.image_size % self.cell_size:
            raise ValueError(
                f"image_size={config.image_size} is not a multiple of {self.cell_size} pixels, the size of the patches whose "
                "relations are learned."
            )

    def _check_only_with_a_vit(self, kind: str) -> None:
        """Refuse what other encoders cannot do, or the authors' code ignores with them."""
        remedies = {
            "mega_patches": (self.mega_patches is None, "its images have one size; leave --mega_patches out"),
            "attention_pattern": (self.attention_pattern == "full", "set --attention_pattern full"),
            "projection_dropout": (not self.projection_dropout, "set --projection_dropout 0"),
            "use_position_embeddings": (
                self.use_position_embeddings is not False,
                "its positions cannot be switched off; shuffle the patches instead (--shuffle_patches true)",
            ),
            "drop_path_rate": (
                kind == "swin" or not self.drop_path_rate,
                "there is no stochastic depth in it; set --drop_path_rate 0",
            ),
            "add_class_token_to_patches": (
                kind == "t2t_vit" or not self.add_class_token_to_patches,
                "there is no class token to add; set --add_class_token_to_patches false",
            ),
        }
        for name, (is_fine, remedy) in remedies.items():
            if not is_fine:
                raise ValueError(
                    f"{name}={getattr(self, name)} is not possible with an encoder of type {kind}: {remedy}."
                )

    def _check(self) -> None:
        image_size, cell_size = self.backbone_config.image_size, self.cell_size
        if self.mega_patches is not None and not 2 <= self.mega_patches <= image_size // cell_size:
            raise ValueError(
                f"mega_patches={self.mega_patches} must lie between 2 and the grid's {image_size // cell_size} cells."
            )
        unknown = [task for task in self.tasks if task not in TASKS]
        if unknown or not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"tasks={self.tasks} must name at least one of {', '.join(TASKS)}, each once.")
        if self.feature not in self._features():
            raise ValueError(f"feature={self.feature!r}: this encoder has {', '.join(map(repr, self._features()))}.")
        if self.grid_size < 2:
            raise ValueError(
                f"image_size={image_size} with patches of {cell_size} pixels leaves no two patches to relate on a side; use "
                "larger images or smaller patches."
            )
        width = feature_size(self.backbone_config)
        if "relations" in self.tasks and width < 9:
            raise ValueError(f"An encoder of width {width} is too narrow for nine scorers.")
        for name in ("drop_path_rate", "projection_dropout", "relation_label_smoothing", "relation_loss_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")


__all__ = ["TASKS", "RelViTConfig"]
