"""How well an encoder finds a place again: the patch of one crop that shows what a patch of another crop shows."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from ..data import make_source
from ..views import MultiViewPipeline, View, correspondences
from .features import evaluation_mode


def match_ranks(tokens1: Tensor, tokens2: Tensor, matches: Tensor) -> Tensor:
    """
    For each pair of matched patches, how many patches of the second view are at least as similar (cosine) to the patch of the
    first view as its match is.

    Args:
        tokens1 (`torch.Tensor` of shape `(batch_size, num_patches1, dim)`): Patch tokens of the first views.
        tokens2 (`torch.Tensor` of shape `(batch_size, num_patches2, dim)`): Those of the second views.
        matches (`torch.Tensor` of shape `(batch_size, num_pairs, 2)`, int64): Patches of the first and the second view.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_pairs)`, int64: 0 where the match is the most similar of all. Where all
        tokens are alike nothing is found: the rank is the last.
    """
    similarities = F.normalize(tokens1, dim=-1) @ F.normalize(tokens2, dim=-1).mT
    first, second = matches.unbind(-1)
    rows = similarities.gather(1, first[..., None].expand(-1, -1, similarities.shape[2]))
    is_behind = rows < rows.gather(2, second[..., None])  # numbers that are none are not
    return (~is_behind).sum(2) - 1


def patch_retrieval(
    encoder: PreTrainedModel,
    dataset: Dataset,
    image_mean: list[float],
    image_std: list[float],
    *,
    k: Sequence[int] = (1, 5),
    scale: tuple[float, float] = (0.4, 1.0),
    batch_size: int = 64,
    seed: int = 0,
) -> dict[str, float]:
    """
    Of two random crops of an image, which may be mirrored, every patch of the first one that the second one shows too is
    looked for among the patches of the second one, by the cosine similarity of the encoder's tokens. Which patches show the
    same place is told by PW-Self's rule, see [`~hf_ssl.views.correspondences`]: they may be off by half a patch.

    Args:
        encoder (`PreTrainedModel`):
            A vision transformer whose `last_hidden_state` is a class token and the patches, row by row.
        dataset (`datasets.Dataset`):
            Images, in the column `image`, see [`~hf_ssl.data.load_image_data`].
        image_mean (`list[float]`):
            Mean of each channel that the encoder expects to be subtracted.
        image_std (`list[float]`):
            Standard deviation that it expects to be divided by.
        k (`Sequence[int]`, *optional*, defaults to `(1, 5)`):
            Numbers of nearest patches among which the match counts as found.
        scale (`tuple[float, float]`, *optional*, defaults to `(0.4, 1.0)`):
            Limits of the share of the image's area that a crop keeps.
        batch_size (`int`, *optional*, defaults to 64): Images in a forward pass.
        seed (`int`, *optional*, defaults to 0): Seed of the crops.

    Returns:
        `dict[str, float]`: for each `k` the share of patches that are found, `patch_retrieval_top{k}`, and what chance finds,
        `patch_retrieval_top{k}_chance`, in percent; and the number of patches looked for, `patch_retrieval_queries`.

    Raises:
        `ValueError`: the encoder's tokens are not a class token and the patches of its images, `k` is not among the patches
            of a view, or no crops have a patch in common.
    """
    side, size = (getattr(encoder.config, name, None) for name in ("image_size", "patch_size"))
    if not isinstance(side, int) or not isinstance(size, int) or side % size:
        raise ValueError(
            f"{type(encoder).__name__} has image_size={side} and patch_size={size}: give a vision transformer that cuts its "
            "images into whole patches."
        )
    grid = (side // size, side // size)
    num_patches = grid[0] * grid[1]
    if not k or min(k) < 1 or max(k) > num_patches:
        raise ValueError(f"k={list(k)} must be numbers from 1 to {num_patches}, the patches of a view.")
    view = View(size=side, scale=list(scale), interpolation="bicubic")
    views = MultiViewPipeline({"pixel_values": [view, view]}, image_mean, image_std, seed)
    source: Any = make_source(dataset, views)
    found = torch.zeros(len(k), dtype=torch.int64)
    num_queries = 0
    with evaluation_mode(encoder), torch.inference_mode():
        for start in tqdm(range(0, len(source), batch_size), desc="patches", delay=5, leave=False, disable=None):
            batch = views(source.__getitems__([(0, i) for i in range(start, min(start + batch_size, len(source)))]))
            pixel_values = batch["pixel_values"].to(encoder.device, encoder.dtype)
            tokens1, tokens2 = (encoder(pixel_values=crops).last_hidden_state[:, 1:].float() for crops in pixel_values)
            if tokens1.shape[1] != num_patches:
                raise ValueError(
                    f"{type(encoder).__name__} returns {tokens1.shape[1]} tokens beside the first, for {num_patches} "
                    "patches: only encoders whose tokens are a class token and the patches can be measured."
                )
            *matches, valid = correspondences(batch["boxes"][:, 0], batch["boxes"][:, 1], grid, grid)
            ranks = match_ranks(tokens1, tokens2, torch.stack(matches, dim=-1).to(encoder.device)).cpu()[valid]
            found += torch.stack([(ranks < limit).sum() for limit in k])
            num_queries += len(ranks)
    if not num_queries:
        raise ValueError(f"No two crops of the {len(source)} images have a patch in common; give more images.")
    results: dict[str, float] = {}
    for limit, count in zip(k, found.tolist(), strict=True):
        results[f"patch_retrieval_top{limit}"] = round(100 * count / num_queries, 2)
        results[f"patch_retrieval_top{limit}_chance"] = round(100 * limit / num_patches, 2)
    return results | {"patch_retrieval_queries": num_queries}


__all__ = ["match_ranks", "patch_retrieval"]
