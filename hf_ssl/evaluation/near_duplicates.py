"""Images of a collection that are nearly the same."""

import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor


MAX_PAIRS = 10_000_000
# Products in float32 propose pairs, whose similarities are computed again in float64; equal images have 1 to nine digits.
MARGIN, TOLERANCE = 1e-5, 1e-9


@torch.no_grad()
def near_duplicates(features: Tensor, threshold: float, *, chunk_size: int = 1024) -> tuple[Tensor, Tensor]:
    """
    All pairs of images whose features have a cosine similarity of at least a threshold.

    Args:
        features (`torch.Tensor` of shape `(N, D)`): Features; need not be normalized.
        threshold (`float`): The least cosine similarity, in (-1, 1].
        chunk_size (`int`, *optional*, defaults to 1024): Images compared with as many others at a time.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: pairs of indices `(P, 2)`, int64, the lower one first, and their similarities
        `(P,)`, float32; the most similar pairs first.

    Raises:
        `ValueError`: the threshold is out of range, features are not finite, or there are more than ten million pairs.
    """
    if not -1 < threshold <= 1:
        raise ValueError(f"threshold={threshold} must lie between -1 and 1.")
    if not features.isfinite().all():
        raise ValueError("`features` contains NaN or infinite values: check the encoder's weights and its inputs.")
    chunks = features.split(chunk_size)
    pairs, similarities, count = [], [], 0
    for i, rows in enumerate(chunks):
        unit = F.normalize(rows.float())
        for j in range(i, len(chunks)):
            products = unit @ F.normalize(chunks[j].float()).T
            found = (products >= threshold - MARGIN).nonzero()
            if i == j:  # each pair once, and no image with itself
                found = found[found[:, 0] < found[:, 1]]
            some = torch.cat(
                [
                    F.cosine_similarity(rows[part[:, 0]].double(), chunks[j][part[:, 1]].double())
                    for part in found.split(chunk_size)
                ]
            )
            found, some = found[some >= threshold - TOLERANCE], some[some >= threshold - TOLERANCE]
            similarities.append(some.clamp(max=1).float())
            pairs.append(found + torch.tensor([i, j], device=found.device) * chunk_size)
            count += len(found)
            if count > MAX_PAIRS:
                raise ValueError(f"More than {MAX_PAIRS:,} pairs are as similar as {threshold}: raise the threshold.")
    all_pairs, all_similarities = torch.cat(pairs), torch.cat(similarities)
    order = all_similarities.argsort(descending=True, stable=True)
    return all_pairs[order], all_similarities[order]


def groups_of(pairs: Tensor, num_images: int) -> list[list[int]]:
    """
    Groups of images that pairs connect, directly or by others.

    Args:
        pairs (`torch.Tensor` of shape `(P, 2)`): What [`near_duplicates`] returns.
        num_images (`int`): Number of all images.

    Returns:
        `list[list[int]]`: groups of two images or more in ascending order, the largest groups first.
    """
    rows, columns = pairs.cpu().numpy().T
    graph = coo_array((torch.ones(len(pairs)).numpy(), (rows, columns)), shape=(num_images, num_images))
    members: dict[int, list[int]] = {}
    for image, group in enumerate(connected_components(graph, directed=False)[1].tolist()):
        members.setdefault(group, []).append(image)
    return sorted((group for group in members.values() if len(group) > 1), key=lambda group: (-len(group), group))


__all__ = ["groups_of", "near_duplicates"]
