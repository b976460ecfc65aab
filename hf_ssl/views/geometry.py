"""Where the patches of a view lie in its source image, and which patches of two views show the same place.

Everything is closed-form arithmetic on boxes (see [`hf_ssl.views.boxes`]) for a whole batch, in float64, and nothing
is read back from the device. A grid is `(rows, columns)`; patch p lies at row p // columns, column p % columns of the
view.
"""

import torch
from torch import Tensor


Grid = tuple[int, int]


def patch_edges(boxes: Tensor, grid: Grid, flip_aware: bool = True) -> tuple[Tensor, Tensor]:
    """
    The intervals of the source that the rows and the columns of a view's patch grid cover.

    Args:
        boxes (`torch.Tensor` of shape `(..., 5)`, int64):
            `(top, left, height, width, flip)` in source pixels.
        grid (`tuple[int, int]`):
            Rows and columns of the view's patch grid.
        flip_aware (`bool`, *optional*, defaults to `True`):
            Whether the first column of a mirrored view lies at the right edge of its box. Otherwise flips are ignored
            and boxes of shape `(..., 4)` will do.

    Returns:
        `tuple` of two `torch.Tensor` of shapes `(..., rows, 2)` and `(..., columns, 2)`, float64: where each row
        begins and ends vertically and each column horizontally, in source pixels.
    """
    top, left, height, width = boxes[..., :4].unbind(-1)
    flip = boxes[..., 4] if flip_aware else torch.zeros_like(top)
    return _intervals(top, height, grid[0], torch.zeros_like(top)), _intervals(left, width, grid[1], flip)


def _intervals(start: Tensor, length: Tensor, count: int, flip: Tensor) -> Tensor:
    """`count` equal parts of `start … start + length`, last one first where `flip` is set: `(..., count, 2)`."""
    place = torch.arange(count, device=start.device)
    place = torch.where(flip[..., None] != 0, count - 1 - place, place)
    ends = place[..., None] + torch.arange(2, device=start.device)
    return start[..., None, None] + length[..., None, None].double() * ends / count


def patch_centers(boxes: Tensor, grid: Grid, flip_aware: bool = True) -> Tensor:
    """
    Where the centers of a view's patches lie in the source.

    Args:
        boxes (`torch.Tensor` of shape `(..., 5)`, int64):
            `(top, left, height, width, flip)` in source pixels.
        grid (`tuple[int, int]`):
            Rows and columns of the view's patch grid.
        flip_aware (`bool`, *optional*, defaults to `True`):
            Whether the first column of a mirrored view lies at the right edge of its box. Otherwise flips are ignored
            and boxes of shape `(..., 4)` will do.

    Returns:
        `torch.Tensor` of shape `(..., rows * columns, 2)`, float64: vertical and horizontal position, in source pixels
        (the center of the source's first pixel is 0.5, 0.5).
    """
    rows, columns = (edges.mean(-1) for edges in patch_edges(boxes, grid, flip_aware))
    return torch.stack(torch.broadcast_tensors(rows[..., :, None], columns[..., None, :]), dim=-1).flatten(-3, -2)


def intersection(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """
    The part of the source that two boxes share.

    Args:
        boxes1 (`torch.Tensor` of shape `(..., 4)` or `(..., 5)`, int64):
            `(top, left, height, width)` in source pixels; a flip flag is ignored.
        boxes2 (`torch.Tensor` of shape `(..., 4)` or `(..., 5)`, int64):
            The other boxes of the same source; leading dimensions broadcast.

    Returns:
        `torch.Tensor` of shape `(..., 4)`, int64: the shared boxes, of height or width 0 where the boxes are apart or only
        touch.
    """
    start = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    end = torch.minimum(boxes1[..., :2] + boxes1[..., 2:4], boxes2[..., :2] + boxes2[..., 2:4])
    size = (end - start).clamp(min=0)
    return torch.cat([start, size], dim=-1)


def correspondences(
    boxes1: Tensor, boxes2: Tensor, grid1: Grid, grid2: Grid, strict: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Which patch of one view shows the same place as which patch of another, by the rule of PW-Self (Javidani et al.,
    "PW-Self: Patch-Wise Self-Supervised Visual Representation Learning", arXiv 2310.18651) as its released code has
    it, one overflow mended (see `strict`).

    On each axis of each view, the part that the two boxes share begins at a whole cell of the grid and is a whole
    number of cells long; both are rounded on their own, halves to the even number. The longer of the two runs of cells
    is thinned out evenly to the length of the shorter one, and the two are matched in the order of the source. Where
    the boxes share at most half a cell of either view, on either axis, nothing is matched.

    The shapes do not depend on the boxes: there is a place for each of the pairs that two grids can have at most, and
    a mask says which places are taken. A mean over the class token and the matched patches is then, for a whole batch,
    `(class_loss + (patch_loss * valid).sum(-1)) / (1 + valid.sum(-1))`, where `patch_loss` compares the patches
    gathered by the two index tensors.

    Args:
        boxes1 (`torch.Tensor` of shape `(..., 5)`, int64):
            `(top, left, height, width, flip)` of the first views, in source pixels.
        boxes2 (`torch.Tensor` of shape `(..., 5)`, int64):
            Those of the second views, in the same sources; leading dimensions broadcast.
        grid1 (`tuple[int, int]`):
            Rows and columns of the first views' patch grid.
        grid2 (`tuple[int, int]`):
            Rows and columns of the second views' patch grid.
        strict (`bool`, *optional*, defaults to `False`):
            Begin and length, both rounded up, may reach one cell beyond the grid (where both end on half cells; grids
            of odd sides, nearly always). That cell is dropped. In the released code it is only dropped where the view
            is not mirrored; otherwise the authors' slice wraps around and nothing is matched at all. `True` reproduces
            this.

    Returns:
        `tuple` of three `torch.Tensor` of shape `(..., num_places)`, where `num_places` is the smaller number of rows
        times the smaller number of columns: the patches of the first view and those of the second, int64, counted
        from 0 without the class token and 0 where the place is free; and which places are taken, bool. The taken
        places, in order, are the pairs in the authors' order.
    """
    shared = intersection(boxes1, boxes2)
    rows1, rows2, rows_valid = _match_axis(boxes1, boxes2, shared, grid1, grid2, 0, strict)
    columns1, columns2, columns_valid = _match_axis(boxes1, boxes2, shared, grid1, grid2, 1, strict)
    columns1 = torch.where(boxes1[..., 4:] != 0, grid1[1] - 1 - columns1, columns1)
    columns2 = torch.where(boxes2[..., 4:] != 0, grid2[1] - 1 - columns2, columns2)

    valid = rows_valid[..., :, None] & columns_valid[..., None, :]
    index1 = torch.where(valid, rows1[..., :, None] * grid1[1] + columns1[..., None, :], 0)
    index2 = torch.where(valid, rows2[..., :, None] * grid2[1] + columns2[..., None, :], 0)
    return index1.flatten(-2), index2.flatten(-2), valid.flatten(-2)


def _match_axis(
    boxes1: Tensor, boxes2: Tensor, shared: Tensor, grid1: Grid, grid2: Grid, axis: int, strict: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """
    Matched rows (`axis` 0) or columns (1) of both views, in the order of the source and as if neither were mirrored,
    and which places are taken: `(..., num_places)` each.
    """
    first1, count1 = _shared_cells(boxes1, shared, grid1, axis, strict)
    first2, count2 = _shared_cells(boxes2, shared, grid2, axis, strict)
    kept = torch.minimum(count1, count2)
    place = torch.arange(min(grid1[axis], grid2[axis]), device=kept.device)
    cells1 = first1[..., None] + _spread(count1, kept, place)
    cells2 = first2[..., None] + _spread(count2, kept, place)
    return cells1, cells2, place < kept[..., None]


def _shared_cells(boxes: Tensor, shared: Tensor, grid: Grid, axis: int, strict: bool) -> tuple[Tensor, Tensor]:
    """
    The first cell of the shared part on one axis and the number of cells (below 1: none), as if the view were not
    mirrored: `(...)` each.
    """
    cells, start, length = grid[axis], boxes[..., axis], boxes[..., axis + 2].double()
    first = ((shared[..., axis] - start) / length * cells).round().long()
    count = (shared[..., axis + 2] / length * cells).round().long()
    if strict and axis == 1:
        # Mirrored, the slice of columns is (cells - end, cells - first). Where end is cells + 1 it begins at -1, which
        # numpy reads as cells - 1: empty, since first is then at least 1.
        count = torch.where((boxes[..., 4] != 0) & (first + count > cells), 0, count)
    return first, torch.minimum(count, cells - first)


def _spread(count: Tensor, kept: Tensor, place: Tensor) -> Tensor:
    """
    `floor(numpy.linspace(0, count - 1, kept))[place]`, with numpy's own rounding (a division, a product, and the last
    point exact): of shape `(..., len(place))`, of no meaning from place `kept` on.
    """
    step = (count - 1).double() / (kept - 1).clamp(min=1)
    spread = (place * step[..., None]).floor().long()
    is_end = (place > 0) & (place == kept[..., None] - 1)
    return torch.where(is_end, count[..., None] - 1, spread)


def overlap_ratio(boxes1: Tensor, boxes2: Tensor, selected1: Tensor, grid: Grid, flip_aware: bool = False) -> Tensor:
    """
    The share of each patch of the second view that the selected patches of the first one leave uncovered, for the
    selective sampling of APS (Shen et al., "Asymmetric Patch Sampling for Contrastive Learning", arXiv 2306.02854).

    Patches are rectangles, so the map is `1 - Oy S Oxᵀ`: S marks the selected patches, and Oy and Ox hold the shares
    of each row and each column of the second grid that lie in each row and each column of the first one.

    Args:
        boxes1 (`torch.Tensor` of shape `(..., 5)`, int64):
            `(top, left, height, width, flip)` of the first views, in source pixels.
        boxes2 (`torch.Tensor` of shape `(..., 5)`, int64):
            Those of the second views, in the same sources; leading dimensions broadcast.
        selected1 (`torch.Tensor` of shape `(..., num_selected)`, int64):
            The selected patches of the first views; leading dimensions broadcast.
        grid (`tuple[int, int]`):
            Rows and columns of the patch grid of both views.
        flip_aware (`bool`, *optional*, defaults to `False`):
            Whether to account for mirrored views. The authors' code ignores flips (then boxes of shape `(..., 4)` will
            do).

    Returns:
        `torch.Tensor` of shape `(..., rows * columns)`, float64: shares from 0 to 1; below 1e-6 they are 0.
    """
    rows1, columns1 = patch_edges(boxes1, grid, flip_aware)
    rows2, columns2 = patch_edges(boxes2, grid, flip_aware)
    selected = torch.zeros(*selected1.shape[:-1], grid[0] * grid[1], dtype=torch.float64, device=selected1.device)
    selected = selected.scatter_(-1, selected1, 1.0).unflatten(-1, grid)
    covered = _covered_share(rows2, rows1) @ selected @ _covered_share(columns2, columns1).mT
    ratio = (1 - covered).flatten(-2)
    return torch.where(ratio < 1e-6, 0.0, ratio)


def _covered_share(intervals: Tensor, covers: Tensor) -> Tensor:
    """Share of each of n intervals, `(..., n, 2)`, that lies in each of m others, `(..., m, 2)`: `(..., n, m)`."""
    start = torch.maximum(intervals[..., :, None, 0], covers[..., None, :, 0])
    end = torch.minimum(intervals[..., :, None, 1], covers[..., None, :, 1])
    return (end - start).clamp(min=0) / (intervals[..., 1] - intervals[..., 0])[..., None]


def sampling_probabilities(ratio: Tensor, power: float) -> Tensor:
    """
    Probabilities proportional to `ratio ** power`: the more of a patch is uncovered, the likelier it is sampled (APS,
    arXiv 2306.02854). [`Draws.weighted_choice`] draws the patches.

    Args:
        ratio (`torch.Tensor` of shape `(..., num_patches)`): The uncovered share of each patch, see [`overlap_ratio`].
        power (`float`): How strongly uncovered patches are preferred; 0 samples uniformly.

    Returns:
        `torch.Tensor` of the shape of `ratio`: probabilities with sum 1, or all 0 where no patch is uncovered.
    """
    weights = ratio**power
    return weights / weights.sum(-1, keepdim=True).clamp(min=torch.finfo(weights.dtype).tiny)
