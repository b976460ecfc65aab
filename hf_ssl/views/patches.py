"""Images as grids of square patches, row by row: patch p lies at row p // side, column p % side."""

from torch import Tensor


def split_patches(images: Tensor, patch_size: int) -> Tensor:
    """
    Cut images into patches.

    Args:
        images (`torch.Tensor` of shape `(batch_size, channels, height, width)`):
            Images whose sides are multiples of `patch_size`.
        patch_size (`int`):
            Side of a patch, in pixels.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_patches, channels, patch_size, patch_size)`.
    """
    batch, channels, height, width = images.shape
    if height % patch_size or width % patch_size:
        raise ValueError(f"An image of {height}x{width} pixels cannot be cut into patches of {patch_size} pixels.")
    rows, columns = height // patch_size, width // patch_size
    grid = images.view(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, channels, patch_size, patch_size)


def join_patches(patches: Tensor, rows: int | None = None) -> Tensor:
    """
    Put patches back together; the inverse of [`split_patches`].

    Args:
        patches (`torch.Tensor` of shape `(batch_size, num_patches, channels, patch_size, patch_size)`):
            Patches in row order.
        rows (`int`, *optional*):
            Rows of the grid. Unset, the grid is square.

    Returns:
        `torch.Tensor` of shape `(batch_size, channels, rows * patch_size, columns * patch_size)`.
    """
    batch, count, channels, size, _ = patches.shape
    rows = rows if rows is not None else round(count**0.5)
    if count % rows:
        raise ValueError(f"{count} patches do not fill a grid of {rows} rows.")
    grid = patches.view(batch, rows, count // rows, channels, size, size)
    return grid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, rows * size, count // rows * size)


def permute_patches(patches: Tensor, order: Tensor) -> Tensor:
    """
    Slot k of the result holds patch `order[:, k]`.

    Args:
        patches (`torch.Tensor` of shape `(batch_size, num_patches, ...)`): Patches.
        order (`torch.Tensor` of shape `(batch_size, num_patches)`, int64): A permutation for each image.

    Returns:
        `torch.Tensor` of the shape of `patches`.
    """
    index = order.view(*order.shape, *[1] * (patches.ndim - 2)).expand_as(patches)
    return patches.gather(1, index)
