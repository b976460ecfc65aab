import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_ssl.views import join_patches, permute_patches, split_patches


def numbered(batch, channels, height, width):
    """Images whose pixels all differ."""
    return torch.arange(batch * channels * height * width).view(batch, channels, height, width)


@settings(deadline=None, max_examples=30)
@given(*[st.integers(1, 4)] * 5)
def test_row_order_and_round_trip(batch, channels, rows, columns, size):
    images = numbered(batch, channels, rows * size, columns * size)
    patches = split_patches(images, size)
    assert patches.shape == (batch, rows * columns, channels, size, size)
    for row in range(rows):
        for column in range(columns):
            expected = images[:, :, row * size : (row + 1) * size, column * size : (column + 1) * size]
            assert torch.equal(patches[:, row * columns + column], expected)
    assert torch.equal(join_patches(patches, rows), images)


def test_square_grid_needs_no_rows():
    images = numbered(2, 3, 12, 12)
    assert torch.equal(join_patches(split_patches(images, 4)), images)


def test_images_in_other_memory_orders():
    images = numbered(2, 3, 8, 12)
    expected = split_patches(images, 4)
    assert torch.equal(split_patches(images.contiguous(memory_format=torch.channels_last), 4), expected)
    assert torch.equal(split_patches(images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2), 4), expected)
    innermost = expected.permute(1, 2, 3, 4, 0).contiguous().permute(4, 0, 1, 2, 3)
    assert torch.equal(join_patches(innermost, 2), images)


def test_no_images():
    patches = split_patches(torch.zeros(0, 3, 8, 8), 4)
    assert patches.shape == (0, 4, 3, 4, 4)
    assert join_patches(patches).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("shape", [(5,), (5, 3), (5, 3, 2, 2)])
def test_permute(shape):
    patches = torch.arange(2 * torch.Size(shape).numel()).view(2, *shape)
    order = torch.tensor([[2, 0, 1, 4, 3], [4, 3, 2, 1, 0]])
    permuted = permute_patches(patches, order)
    for image in range(2):
        for slot in range(5):
            assert torch.equal(permuted[image, slot], patches[image, order[image, slot]])


def test_errors():
    with pytest.raises(ValueError, match="10x8 pixels cannot be cut into patches of 4 pixels"):
        split_patches(torch.zeros(1, 3, 10, 8), 4)
    with pytest.raises(ValueError, match="8x10 pixels cannot be cut"):
        split_patches(torch.zeros(1, 3, 8, 10), 4)
    with pytest.raises(ValueError, match="7 patches do not fill a grid of 3 rows"):
        join_patches(torch.zeros(1, 7, 3, 4, 4))
