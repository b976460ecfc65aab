"""The datasets that are known by a short name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DatasetInfo:
    """
    Where a dataset lies on the Hub and what its columns and splits are called.

    Args:
        path (`str`):
            Hub id of the dataset.
        config (`str`, *optional*):
            Configuration of the dataset; `None` where it has only one.
        image_column (`str`):
            Column that holds the images.
        label_column (`str`):
            Column that holds the class ids.
        train_split (`str`):
            Split to train on.
        test_split (`str`):
            Labeled split to evaluate on.
        native_size (`int`, *optional*):
            Height and width of every image in pixels; `None` for photos, whose sizes differ.
    """

    path: str
    config: str | None
    image_column: str
    label_column: str
    train_split: str
    test_split: str
    native_size: int | None


DATASETS: dict[str, DatasetInfo] = {
    "cifar10": DatasetInfo("uoft-cs/cifar10", None, "img", "label", "train", "test", 32),
    "cifar100": DatasetInfo("uoft-cs/cifar100", None, "img", "fine_label", "train", "test", 32),
    "svhn": DatasetInfo("ufldl-stanford/svhn", "cropped_digits", "image", "label", "train", "test", 32),
    "flowers102": DatasetInfo("dpdl-benchmark/oxford_flowers102", None, "image", "label", "train", "test", None),
    "tiny-imagenet": DatasetInfo("zh-plus/tiny-imagenet", None, "image", "label", "train", "valid", 64),
    "imagenet100": DatasetInfo("clane9/imagenet-100", None, "image", "label", "train", "validation", None),
    # The test split of ImageNet has no labels.
    "imagenet-1k": DatasetInfo("ILSVRC/imagenet-1k", None, "image", "label", "train", "validation", None),
}
