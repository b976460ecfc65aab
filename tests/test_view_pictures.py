"""Views in pixels again, and the boxes that say where they lie."""

import types

import torch

from hf_ssl.view_pictures import image_views, on_canvas, picture_views, view_boxes


def test_image_views():
    """One view or several in a tensor, normalization undone, other tensors left alone."""
    images = torch.rand(10, 4, 3, 8, 8)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    normalized = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    outputs = {
        "pixel_values": normalized[:2],
        "boxes": torch.zeros(4, 10, 5, dtype=torch.int64),
        "local_pixel_values": normalized[2:, ..., :4, :4],
        "teacher_images": normalized[0] * 100,
        "weights": torch.rand(4, 16),
        "masks": torch.rand(4, 1, 8, 8),
    }
    views = image_views(outputs, mean, std)
    assert list(views) == ["view 1", "view 2", *(f"local {i}" for i in range(1, 9)), "teacher images"]
    assert all(view.dtype == torch.uint8 and len(view) == 4 for view in views.values())
    assert (views["view 2"] - images[1] * 255).abs().max() < 0.51
    assert (
        views["local 8"].shape == (4, 3, 4, 4) and (views["local 8"] - images[9, ..., :4, :4] * 255).abs().max() < 0.51
    )
    assert set(views["teacher images"].unique().tolist()) >= {0, 255}
    assert list(image_views({"pixel_values": normalized[:1]}, mean, std)) == ["view"]


def test_boxes_are_those_of_the_views():
    """What the views return, else what lies on the canvas, else what workers cut out, else what is drawn for the sources."""
    asked, draws = [], object()

    def boxes(epoch, index, sizes):
        asked.append(sizes)
        return "drawn"

    views, sources = types.SimpleNamespace(boxes=boxes), [torch.zeros(3, 4, 6), torch.zeros(3, 5, 7)]
    batch = {"epoch": torch.tensor([0, 0]), "index": torch.tensor([0, 1])}
    returned, cut = torch.zeros(2, 3, 5), torch.ones(2, 1, 5)
    assert view_boxes(views, batch | {"boxes": cut}, {"boxes": returned}, sources, draws) is returned
    assert view_boxes(views, batch | {"boxes": cut}, {}, sources, draws) is cut
    assert view_boxes(views, batch, {}, sources, draws) == "drawn"
    assert torch.equal(asked[0], torch.tensor([[4, 6], [5, 7]]))
    views.canvas, views.view_boxes = 8, lambda epoch, index, sizes, draws: (epoch, index, sizes, draws)
    on_canvas = view_boxes(views, batch | {"boxes": cut}, {}, sources, draws)
    assert on_canvas[:2] == (batch["epoch"], batch["index"]) and on_canvas[3] is draws


def test_canvas():
    image = torch.zeros(3, 10, 30, dtype=torch.uint8)
    image[0, :, 15:] = 200
    assert on_canvas(image, None) is image
    shown = on_canvas(image, 24)
    assert shown.shape == (3, 24, 24) and shown[0, 0, 5] == 0 and shown[0, 20, 20] == 200


class FakeViews:
    """Two views whose pixels tell what they were made with."""

    config = types.SimpleNamespace(image_mean=[0.0] * 3, image_std=[1.0] * 3)

    def __call__(self, batch, draws):
        return {"pixel_values": torch.full((2, 1, 3, 4, 4), draws / 255), "boxes": batch["boxes"]}


def test_pictures():
    """Views that make no pictures of themselves have a frame each, others say which."""
    batch, image = {"boxes": torch.ones(1, 2, 5, dtype=torch.int64)}, torch.zeros(3, 6, 8, dtype=torch.uint8)
    plain = picture_views(FakeViews(), batch, [image], 40)
    assert list(plain.views) == ["view 1", "view 2"] and (plain.views["view 2"] == 40).all()
    assert plain.frames == [0, 1] and plain.boxes is batch["boxes"] and plain.sources == [image]
    assert plain.without_box == "made of several images"

    class Painted(FakeViews):
        canvas, pictures_show = 12, "painted"

        def pictures(self, outputs):
            return {"first": outputs["pixel_values"][0], "again": 2 * outputs["pixel_values"][0]}, [0, 0]

    painted = picture_views(Painted(), batch, [image], 40)
    assert list(painted.views) == ["first", "again"] and (painted.views["again"] == 80).all()
    assert painted.frames == [0, 0] and painted.without_box == "painted" and painted.sources[0].shape == (3, 12, 12)
