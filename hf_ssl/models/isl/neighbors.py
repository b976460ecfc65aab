"""Which images are neighbors of which: a symmetric relation that only grows."""

import torch
from torch import Tensor, nn

from ...views import Draws


_SPARE_SLOTS = 1 << 16


class NeighborSets(nn.Module):
    """
    For each image the set of its neighbors, without the image itself, as one sorted list of numbers
    `image * num_images + neighbor`: adding is a merge, a row is a slice, and all of it lies on the device.

    Args:
        num_images (`int`):
            Number of images.
    """

    links: Tensor
    offsets: Tensor

    def __init__(self, num_images: int):
        super().__init__()
        self.num_images = num_images
        self.register_buffer("links", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("offsets", torch.zeros(num_images + 1, dtype=torch.int64), persistent=False)
        self._slots: dict[int, int] = {}

    def __len__(self) -> int:
        """Number of links; a pair of neighbors has two, one in each direction."""
        return len(self.links)

    def set_links(self, links: Tensor) -> None:
        """
        Replace the relation.

        Args:
            links (`torch.Tensor` of shape `(num_links,)`, int64): `image * num_images + neighbor`, sorted, each once.
        """
        self.links = links.to(self.offsets.device)
        firsts = torch.arange(self.num_images + 1, device=self.links.device) * self.num_images
        self.offsets = torch.searchsorted(self.links, firsts)
        self._slots.clear()

    def add(self, images: Tensor, neighbors: Tensor) -> int:
        """
        Make pairs of images neighbors of each other.

        Args:
            images (`torch.Tensor` of shape `(num_pairs,)`, int64): One of each pair.
            neighbors (`torch.Tensor` of shape `(num_pairs,)`, int64): The other, never the same.

        Returns:
            `int`: links that are new; reads from the device.
        """
        links = torch.cat([images * self.num_images + neighbors, neighbors * self.num_images + images]).unique()
        links = links[~self._contains(links)]
        if not len(links):
            return 0
        # Both lists are sorted: the place of a new link is its own number plus that of the old ones before it.
        merged = self.links.new_empty(len(self.links) + len(links))
        is_old = torch.ones_like(merged, dtype=torch.bool)
        places = torch.searchsorted(self.links, links) + torch.arange(len(links), device=links.device)
        is_old[places] = False
        merged[places], merged[is_old] = links, self.links
        self.set_links(merged)
        return len(links)

    def _contains(self, links: Tensor) -> Tensor:
        if not len(self.links):
            return torch.zeros_like(links, dtype=torch.bool)
        places = torch.searchsorted(self.links, links).clamp_(max=len(self.links) - 1)
        return self.links[places] == links

    def counts(self, images: Tensor) -> Tensor:
        """
        Number of neighbors of each image.

        Args:
            images (`torch.Tensor` of shape `(batch_size,)`, int64): Images.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, int64.
        """
        return self.offsets[images + 1] - self.offsets[images]

    def of(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """
        All neighbors of a batch of images, one after the other. Their number is not read from the device: there are as
        many slots as the images of the longest lists would need, and some are empty.

        Args:
            images (`torch.Tensor` of shape `(batch_size,)`, int64): Images.

        Returns:
            `tuple[torch.Tensor, torch.Tensor, torch.Tensor]`, each of shape `(num_slots,)`: the place in the batch of
            the image of each slot, its neighbor in ascending order (both int64, any valid number where the slot is empty),
            and whether the slot is used (bool).
        """
        ends = self.counts(images).cumsum(0)
        # On a CPU reading a number costs nothing; elsewhere the longest lists bound what may be needed.
        num_slots = int(ends[-1]) if ends.device.type == "cpu" else self._most_slots(len(images))
        slots = torch.arange(num_slots, device=images.device)
        used = slots < ends[-1]
        rows = torch.searchsorted(ends, slots, right=True).clamp_(max=len(images) - 1)
        # Counted from the end of a row's list.
        places = self.offsets[images[rows] + 1] - ends[rows] + slots
        neighbors = self.links[torch.where(used, places, 0)] % self.num_images
        return rows, neighbors, used

    def _most_slots(self, batch_size: int) -> int:
        """What the images of the longest lists need, and some more for images that come twice; read from the device once."""
        if batch_size not in self._slots:
            counts = self.offsets.diff()
            longest = int(counts.topk(min(batch_size, self.num_images)).values.sum())
            self._slots[batch_size] = min(batch_size * int(counts.max()), longest + _SPARE_SLOTS)
        return self._slots[batch_size]

    def draw_neighbor(self, images: Tensor, draws: Draws) -> Tensor:
        """
        A neighbor of each image, uniformly.

        Args:
            images (`torch.Tensor` of shape `(batch_size,)`, int64): Images.
            draws ([`Draws`]): One row for each.

        Returns:
            `torch.Tensor` of shape `(batch_size,)`, int64; of an image without neighbors, the image itself.
        """
        if not len(self.links):
            return images
        counts = self.counts(images)
        number = draws.integers("neighbor", high=counts)
        drawn = self.links[torch.where(counts > 0, self.offsets[images] + number, 0)] % self.num_images
        return torch.where(counts > 0, drawn, images)

    def draw_others(self, images: Tensor, draws: Draws, count: int) -> Tensor:
        """
        Images that are neither an image itself nor a neighbor of it, uniformly and with replacement: as if images were drawn
        until enough of them are others.

        Args:
            images (`torch.Tensor` of shape `(batch_size,)`, int64): Images.
            draws ([`Draws`]): One row for each.
            count (`int`): How many to draw for each.

        Returns:
            `torch.Tensor` of shape `(batch_size, count)`, int64; of an image that has no others, the image itself.
        """
        counts = self.counts(images)
        others = (self.num_images - 1 - counts)[:, None]
        drawn = draws.integers("others", count, high=others)
        # With what is left out sorted, e[0] < e[1] < …, the n-th image that is left is n + (number of j with e[j] - j <= n).
        rows, neighbors, used = self.of(images)
        own_rows = images[rows]
        number = torch.arange(len(rows), device=images.device) - (counts.cumsum(0) - counts)[rows]
        is_before = (neighbors < own_rows) & used
        own_number = torch.zeros_like(images).index_add_(0, rows, is_before.long())
        # The lists of all images as one: each has a range of numbers for itself.
        ranges = torch.arange(len(images), device=images.device) * self.num_images
        end = len(images) * self.num_images
        left_out = neighbors - number - (neighbors > own_rows).long() + ranges[rows]
        left_out = torch.cat([torch.where(used, left_out, end), images - own_number + ranges]).sort().values
        before = torch.searchsorted(left_out, drawn + ranges[:, None], right=True)
        before = before - torch.searchsorted(left_out, ranges)[:, None]
        return torch.where(others > 0, drawn + before, images[:, None])
