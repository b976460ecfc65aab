import json
import random
from itertools import accumulate

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from torchvision.transforms import InterpolationMode

from hf_ssl.data import AugmentedSource, EpochSampler, PhotoSource, TensorSource, collate
from hf_ssl.views import (
    Draws,
    MultiViewPipeline,
    View,
    blocks,
    canvas_weights,
    draw_colors,
    random_erase,
    render,
    render_photo,
    resized_crop,
)
from hf_ssl.views import pipeline as pipeline_module

from ..processes import run_ranks


MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
COLORS = {"jitter": 0.8, "saturation": 0.2, "grayscale": 0.2}
OPERATIONS = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
COUNT = 12


def make_pipeline(size=16, local_size=8, num_local=3, seed=5, **options):
    """Two global views that differ, and local ones."""
    first = View(size=size, scale=[0.4, 1.0], interpolation="bicubic", **COLORS, blur=1.0)
    second = View(size=size, scale=[0.4, 1.0], interpolation="bicubic", **COLORS, blur=0.1, solarize=0.2)
    local = View(size=local_size, scale=[0.05, 0.4], **COLORS, blur=0.5)
    views = {"pixel_values": [first, second], "local_pixel_values": [local] * num_local}
    return MultiViewPipeline(views, MEAN, STD, seed, **options)


def make_erasing(**options):
    pipeline = make_pipeline(**options)
    for group in pipeline.views.values():
        for view in group:
            view.erase = 0.7
    return pipeline


def pictures(count=COUNT, height=20, width=24, seed=0):
    """Smooth color waves with a little noise."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.linspace(0, 1, height)[:, None], torch.linspace(0, 1, width)
    waves = torch.rand(count, 3, 3, 1, 1, generator=generator) * 9
    images = (torch.sin(waves[:, 0] * y + waves[:, 1] * x + waves[:, 2]) + 1) * 110
    return (images + torch.rand(images.shape, generator=generator) * 35).to(torch.uint8)


def make_batch(images, epoch=2):
    return {"images": images, "index": torch.arange(len(images)), "epoch": torch.full((len(images),), epoch)}


def rows_of(batch, rows):
    return {name: values[rows] for name, values in batch.items()}


def assert_close(actual, expected, atol):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def by_torchvision(image, box, view, colors, row):
    """One view of one image: the same decisions, torchvision's functionals, one after the other."""
    top, left, height, width, flip = box.tolist()
    mode = InterpolationMode(view.interpolation)
    pixels = TF.resized_crop(image.float() / 255, top, left, height, width, [view.size] * 2, mode, antialias=True)
    pixels = pixels.clamp(0, 1)
    pixels = TF.hflip(pixels) if flip else pixels
    if colors.jitter_apply[row]:
        for operation in colors.jitter_order[row].tolist():
            pixels = OPERATIONS[operation](pixels, colors.jitter_factors[row, operation].item())
    if colors.gray_apply[row]:
        pixels = TF.rgb_to_grayscale(pixels, 3)
    if colors.blur_apply is not None and colors.blur_apply[row]:
        padded = torch.nn.functional.pad(pixels[None], [40] * 4, mode="replicate")[0]
        pixels = TF.gaussian_blur(padded, [33, 33], [colors.blur_sigma[row].item()] * 2)[:, 40:-40, 40:-40]
    if colors.solarize_apply is not None and colors.solarize_apply[row]:
        pixels = TF.solarize(pixels, 128 / 255)
    return TF.normalize(pixels, MEAN, STD)


class TestPixels:
    # Large views on a CPU are resized to bytes: off by half of one part in 255, before colors and normalization.
    @pytest.mark.parametrize("size,height,width,atol", [(16, 20, 24, 1e-4), (33, 37, 51, 1e-4), (72, 90, 101, 0.08)])
    def test_equals_torchvision_image_by_image(self, size, height, width, atol, monkeypatch):
        drawn = []

        def keep_colors(view, draws):
            drawn.append((view, draw_colors(view, draws)))
            return drawn[-1][1]

        monkeypatch.setattr(pipeline_module, "draw_colors", keep_colors)
        pipeline, images = make_pipeline(size=size), pictures(height=height, width=width)
        views = pipeline(make_batch(images))
        found = [*views["pixel_values"], *views["local_pixel_values"]]
        assert [len(colors.jitter_apply) for _, colors in drawn] == [COUNT, COUNT, 3 * COUNT]
        plan = [(drawn[0], 0), (drawn[1], 0), *((drawn[2], i * COUNT) for i in range(3))]
        errors = []
        for number, ((view, colors), first) in enumerate(plan):
            for row, image in enumerate(images):
                expected = by_torchvision(image, views["boxes"][row, number], view, colors, first + row)
                # A value next to the threshold may be inverted by one and not by the other.
                solarized = colors.solarize_apply is not None and colors.solarize_apply[first + row]
                errors.append((found[number][row] - expected).abs())
                if not (solarized and atol > 1e-3):
                    assert errors[-1].max() < atol
        assert torch.cat([e.flatten() for e in errors]).mean() < atol / 5

    def test_shapes(self):
        views = make_pipeline()(make_batch(pictures()))
        assert views["pixel_values"].shape == (2, COUNT, 3, 16, 16)
        assert views["local_pixel_values"].shape == (3, COUNT, 3, 8, 8)
        assert views["boxes"].shape == (COUNT, 5, 5) and views["boxes"].dtype == torch.int64
        assert all(views[name].dtype == torch.float32 for name in ("pixel_values", "local_pixel_values"))

    def test_wide_blur(self):
        """Beyond the default limits."""
        view = View(size=20, crop="resize", flip=0.0, blur=1.0, blur_sigma=[6.0, 6.0])
        images = pictures(height=20, width=20)
        views = MultiViewPipeline({"pixel_values": [view]}, [0.0] * 3, [1.0] * 3)(make_batch(images))
        padded = torch.nn.functional.pad(images / 255, [60] * 4, mode="replicate")
        expected = TF.gaussian_blur(padded, [61, 61], [6.0, 6.0])[..., 60:-60, 60:-60]
        assert_close(views["pixel_values"][0], expected, 1e-4)

    def test_views_of_a_sample_differ(self):
        views = make_pipeline(num_local=6)(make_batch(pictures(200)))
        assert len(views["boxes"].flatten(1).unique(dim=0)) == 200
        for i in range(8):
            for j in range(i):
                assert (views["boxes"][:, i] == views["boxes"][:, j]).all(1).float().mean() < 0.05

    @pytest.mark.parametrize("canvas", [30, 72])
    def test_canvas(self, canvas):
        """As if every image were resized first."""
        images = pictures(height=40, width=25)
        views = make_pipeline(canvas=canvas)(make_batch(images))
        resized = torch.nn.functional.interpolate(images, (canvas, canvas), mode="bilinear", antialias=True)
        expected = make_pipeline()(make_batch(resized))
        assert torch.equal(views["boxes"], expected["boxes"])
        assert (views["boxes"][..., :2] + views["boxes"][..., 2:4]).max() <= canvas
        difference = (views["pixel_values"] - expected["pixel_values"]).abs()
        assert difference.mean() < 0.02 and difference.median() < 0.01  # the canvas itself is not rounded to bytes

    def test_erasing(self):
        images = torch.zeros(4000, 3, 10, 12)
        index = torch.arange(4000)
        draws = Draws.for_samples(0, index, index)
        erased = random_erase(images, draws, 0.25)
        changed = (erased != 0).all(1)
        share = changed.flatten(1).any(1).float().mean()
        assert abs(share - 0.25) < 0.03
        rows, columns = changed.any(2), changed.any(1)
        assert torch.equal(changed, rows[:, :, None] & columns[:, None])  # a rectangle
        area = changed[changed.flatten(1).any(1)].flatten(1).sum(1) / 120
        assert area.min() > 0 and area.max() < 0.45
        noise = erased[erased != 0]
        assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02
        view = View(size=10, erase=1.0)
        plain = MultiViewPipeline({"pixel_values": [View(size=10)]}, MEAN, STD)(make_batch(pictures()))
        views = MultiViewPipeline({"pixel_values": [view]}, MEAN, STD)(make_batch(pictures()))
        share = (views["pixel_values"] != plain["pixel_values"]).float().mean((1, 2, 3, 4))
        assert 0.01 < share < 0.33

    def test_blocks_cover_a_batch(self):
        for device in ("cpu", "meta"):
            parts = list(blocks(1000, 3 * 32 * 32, torch.device(device)))
            assert [i for part in parts for i in range(part.start, part.stop)] == list(range(1000))
        assert len(list(blocks(5, 10**9, torch.device("cpu")))) == 5
        assert list(blocks(0, 10, torch.device("cpu"))) == []


def assert_same_tensors(found, expected, atol=1e-4):
    assert found.keys() == expected.keys()
    for name in expected:
        assert_close(found[name], expected[name], atol)


def as_on_an_accelerator(monkeypatch):
    """All images are computed, in large blocks and by products of matrices, and what applies is selected."""
    monkeypatch.setattr("hf_ssl.views.photometric._picks", lambda images: False)
    monkeypatch.setattr(pipeline_module, "_is_large", lambda view, images: False)
    monkeypatch.setattr(pipeline_module, "_block_size", lambda device: pipeline_module._BLOCK)


class TestBlocks:
    """However a batch is cut into blocks, views, boxes, crops, colors and noise stay with their images."""

    @pytest.mark.parametrize("images_in_a_block", [2.5, 5, 24])
    @pytest.mark.parametrize("options", [{}, {"shared_boxes": True}, {"canvas": 18}, {"size": 72}], ids=str)
    def test_images(self, images_in_a_block, options, monkeypatch):
        pipeline, batch, draws = make_erasing(**options), make_batch(pictures()), Draws.for_batch(0, 0)
        expected = pipeline(batch, draws)
        for numbers in (3 * 16 * 16, 3 * 8 * 8):
            monkeypatch.setattr(pipeline_module, "_BLOCK_ON_CPU", int(images_in_a_block * numbers))
            assert_same_tensors(pipeline(batch, draws), expected)

    @pytest.mark.parametrize("images_in_a_block", [5, 30])
    def test_crops_of_photos(self, images_in_a_block, monkeypatch):
        pipeline, batch = make_erasing(), make_batch(pictures())
        boxes = pipeline.boxes(batch["epoch"], batch["index"], torch.tensor([[20, 24]]).expand(COUNT, 2))
        photos = [PILImage.fromarray(image.permute(1, 2, 0).numpy()) for image in batch["images"]]
        rendered = [pipeline.render(photo, own) for photo, own in zip(photos, boxes, strict=True)]
        crops = {name: torch.stack([tensors[name] for tensors in rendered]) for name in rendered[0]}
        batch = {**crops, "boxes": boxes, "index": batch["index"], "epoch": batch["epoch"]}
        expected = pipeline(batch)
        # Each crop is in its place: that of its view and its image.
        plain = make_pipeline()
        for group in plain.views.values():
            for view in group:
                view.jitter = view.grayscale = view.blur = view.solarize = 0.0
        pixels = plain(batch)["local_pixel_values"]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
        assert_close(pixels.transpose(0, 1), (crops["local_pixel_values_crops"] / 255 - mean) / std, 1e-5)
        monkeypatch.setattr(pipeline_module, "_BLOCK_ON_CPU", images_in_a_block * 3 * 8 * 8)
        assert_same_tensors(pipeline(batch), expected)

    def test_equal_views_erase_differently(self):
        view = View(size=16, crop="resize", flip=0.0, erase=1.0)
        batch = make_batch(pictures(1).expand(COUNT, -1, -1, -1))
        views = MultiViewPipeline({"pixel_values": [view] * 3}, MEAN, STD)(batch)["pixel_values"].flatten(0, 1)
        assert all(not torch.equal(views[i], views[j]) for i in range(len(views)) for j in range(i))

    @pytest.mark.parametrize(
        "options", [{}, {"shared_boxes": True, "canvas": 30}, {"canvas": 30}, {"size": 72}], ids=str
    )
    def test_an_accelerator_makes_the_same(self, options, monkeypatch):
        pipeline, batch, draws = make_erasing(**options), make_batch(pictures()), Draws.for_batch(0, 0)
        expected = pipeline(batch, draws)
        as_on_an_accelerator(monkeypatch)
        found = pipeline(batch, draws)
        assert torch.equal(found["boxes"], expected["boxes"])
        assert_close(found["local_pixel_values"], expected["local_pixel_values"], 1e-4)
        difference = (found["pixel_values"] - expected["pixel_values"]).abs()
        assert difference.median() < (0.02 if "size" in options else 1e-6)  # large views are bytes on a CPU

    def test_two_epochs_in_a_batch(self):
        """As at the end of an epoch."""
        pipeline, images = make_pipeline(), pictures()
        mixed = make_batch(images) | {"epoch": torch.arange(COUNT) % 2}
        views = pipeline(mixed)
        for epoch in (0, 1):
            alone = pipeline(make_batch(images, epoch))
            rows = torch.arange(COUNT) % 2 == epoch
            assert torch.equal(views["boxes"][rows], alone["boxes"][rows])
            assert_close(views["pixel_values"][:, rows], alone["pixel_values"][:, rows], 1e-4)

    @pytest.mark.parametrize("is_accelerator", [False, True])
    def test_memory(self, is_accelerator, monkeypatch, tmp_path):
        """Beside what is returned there are boxes, draws and some blocks, and no more of them in a larger batch."""
        if is_accelerator:
            as_on_an_accelerator(monkeypatch)
        monkeypatch.setattr(pipeline_module, "_block_size", lambda device: 1 << 16)
        pipeline = make_pipeline(num_local=8)
        small, large = (make_batch(pictures(count)) for count in (400, 1200))
        peaks = [peak_bytes(lambda: pipeline(batch), tmp_path) for batch in (small, large)]  # noqa: B023
        returned = 4 * 3 * (2 * 16 * 16 + 8 * 8 * 8)  # bytes of the views of an image
        assert (peaks[1] - peaks[0]) / 800 < 1.5 * returned
        assert peaks[1] / 1200 < 3 * returned


def peak_bytes(function, folder):
    """Most bytes that are allocated at a time during a call."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    events = sorted((event for event in events if event["name"] == "[memory]"), key=lambda event: event["ts"])
    return max(accumulate(event["args"]["Bytes"] for event in events))


class TestPerSampleDraws:
    """A view is a function of (seed, epoch, index, view): its box to the bit, its pixels to float rounding."""

    @staticmethod
    def assert_rows(views, rows, some):
        assert torch.equal(some["boxes"], views["boxes"][rows])
        for name in ("pixel_values", "local_pixel_values"):
            assert_close(some[name], views[name][:, rows], 1e-4)

    def test_batch_composition(self):
        pipeline, batch = make_pipeline(), make_batch(pictures())
        views = pipeline(batch)
        for rows in ([3], [11, 0, 5], list(range(COUNT))[::-1], [4] * 3):
            self.assert_rows(views, rows, pipeline(rows_of(batch, torch.tensor(rows))))

    def test_colors_do_not_depend_on_the_batch(self):
        """Bit for bit, as what is drawn is what counts: flat images show every factor."""
        view = View(size=8, **COLORS, blur=0.5, solarize=0.3)
        index = torch.arange(1000)
        whole = draw_colors(view, Draws.for_samples(1, index * 0, index))
        for rows in (slice(0, 1), slice(13, 30), slice(1, 1000, 7)):
            some = draw_colors(view, Draws.for_samples(1, index[rows] * 0, index[rows]))
            for name, values in vars(whole).items():
                assert torch.equal(getattr(some, name), values[rows]), name

    def test_epoch_seed_and_view_matter(self):
        images = pictures()
        boxes = make_pipeline()(make_batch(images))["boxes"]
        assert not torch.equal(make_pipeline()(make_batch(images, epoch=3))["boxes"], boxes)
        assert not torch.equal(make_pipeline(seed=6)(make_batch(images))["boxes"], boxes)
        assert torch.equal(make_pipeline()(make_batch(images))["boxes"], boxes)

    @pytest.mark.parametrize("batch_size,num_workers", [(5, 0), (4, 2), (COUNT, 1)])
    def test_order_batch_size_and_workers(self, batch_size, num_workers):
        found = views_of_an_epoch(batch_size, num_workers)
        assert_same_views(found, views_of_an_epoch(3, 0))

    def test_processes(self):
        alone = views_of_an_epoch(6, 0)
        ranks = run_ranks(views_of_a_rank, 2)
        assert [len(rank) for rank in ranks] == [COUNT // 2] * 2
        found = {index: [torch.from_numpy(values) for values in pair] for index, pair in (ranks[0] | ranks[1]).items()}
        assert_same_views(found, alone)

    def test_photos(self):
        """Crops made photo by photo in a worker are those of the same boxes."""
        sizes = [(40, 30), (25, 61), (33, 33), (50, 50)]
        photos = [pictures(1, *size, seed=i)[0].permute(1, 2, 0).numpy() for i, size in enumerate(sizes)]
        dataset = Dataset.from_dict({"image": photos}, features=Features({"image": Image()}))
        pipeline = make_pipeline()
        source = PhotoSource(dataset.cast_column("image", Image(decode=False)), pipeline)
        batch = source.__getitems__([(2, i) for i in range(4)])
        views = pipeline(batch)
        for i, photo in enumerate(photos):
            alone = make_batch(torch.from_numpy(photo).permute(2, 0, 1)[None])
            alone["index"] += i
            expected = pipeline(alone)
            assert torch.equal(views["boxes"][i], expected["boxes"][0])
            for name in ("pixel_values", "local_pixel_values"):
                assert (views[name][:, i] - expected[name][:, 0]).abs().median() < 0.02

    @pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
    def test_photos_are_resized_as_the_view_says(self, interpolation):
        photo = PILImage.fromarray(pictures(1, 70, 50)[0].permute(1, 2, 0).numpy())
        box = torch.tensor([3, 4, 60, 40, 1])
        expected = resized_crop(photo, box, 12, interpolation)
        assert torch.equal(render_photo(photo, box, View(size=12, interpolation=interpolation)), expected)
        other = {"bilinear": "bicubic", "bicubic": "bilinear"}[interpolation]
        assert not torch.equal(resized_crop(photo, box, 12, other), expected)

    def test_photos_on_a_canvas(self):
        pipeline = make_pipeline(canvas=32, shared_boxes=True)
        photo = PILImage.fromarray(pictures(1, 70, 50)[0].permute(1, 2, 0).numpy())
        sizes = torch.tensor([[70, 50]])
        (boxes,) = pipeline.boxes(torch.tensor([2]), torch.tensor([0]), sizes)
        rendered = pipeline.render(photo, boxes)
        assert list(rendered) == ["images"] and rendered["images"].shape == (3, 32, 32)
        batch = {"images": rendered["images"][None], "boxes": boxes[None], "index": sizes[:, 0], "epoch": sizes[:, 0]}
        assert pipeline(batch, Draws.for_batch(0, 0))["boxes"].shape == (1, 5, 5)

    def test_global_generators_are_not_touched(self):
        pipeline = make_pipeline()
        states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()
        first = pipeline(make_batch(pictures()))
        assert random.getstate() == states[0] and (np.random.get_state()[1] == states[1]).all()
        assert torch.equal(torch.get_rng_state(), states[2])
        random.seed(9), np.random.seed(9), torch.manual_seed(9)
        second = pipeline(make_batch(pictures()))
        assert all(torch.equal(first[name], second[name]) for name in first)


def views_of_an_epoch(batch_size, num_workers, shard=None):
    """Box and pixels of the local views of each sample by its index, as data loading delivers them."""
    source = AugmentedSource(TensorSource(pictures()), make_pipeline())
    sampler = EpochSampler(COUNT, seed=batch_size)  # another order for every batch size
    loader = DataLoader(source, batch_size, sampler=sampler, num_workers=num_workers, collate_fn=collate)
    if shard is not None:
        loader = shard(loader)
    return {
        int(index): (batch["boxes"][i], batch["local_pixel_values"][:, i])
        for batch in loader
        for i, index in enumerate(batch["index"])
    }


def views_of_a_rank():
    """The share of one of two processes, by accelerate."""
    from accelerate import Accelerator

    views = views_of_an_epoch(3, 0, Accelerator(cpu=True).prepare)
    return {index: [values.numpy() for values in pair] for index, pair in views.items()}


def assert_same_views(found, expected):
    assert found.keys() == expected.keys()
    for index, (boxes, pixels) in expected.items():
        assert torch.equal(found[index][0], boxes)
        assert_close(found[index][1], pixels, 1e-4)


class TestSharedBoxes:
    def test_all_images_of_a_batch_are_cut_alike(self):
        pipeline, batch = make_pipeline(shared_boxes=True), make_batch(pictures(1).expand(COUNT, -1, -1, -1))
        views = pipeline(batch, Draws.for_batch(0, step=4))
        assert (views["boxes"] == views["boxes"][:1]).all()
        assert len(views["boxes"][0].unique(dim=0)) == 5  # the views are not
        pixels = views["pixel_values"][0]
        assert all(not torch.equal(pixels[i], pixels[0]) for i in range(1, COUNT))  # nor the colors

    def test_they_are_those_of_the_batch(self):
        pipeline, batch = make_pipeline(shared_boxes=True), make_batch(pictures())
        keys = [{"step": 4}, {"step": 5}, {"step": 4, "micro_batch": 1}, {"step": 4, "rank": 1}]
        found = [pipeline(batch, Draws.for_batch(0, **key))["boxes"] for key in keys]
        assert all(not torch.equal(found[i], found[j]) for i in range(4) for j in range(i))
        assert torch.equal(pipeline(batch, Draws.for_batch(0, 4))["boxes"], found[0])
        some = rows_of(batch, torch.tensor([7, 2]))
        assert torch.equal(pipeline(some, Draws.for_batch(0, 4))["boxes"], found[0][:2])

    @pytest.mark.parametrize("size", [16, 72])
    def test_pixels_are_those_of_boxes_of_each(self, size):
        pipeline, images = make_pipeline(size=size, shared_boxes=True, canvas=80), pictures()
        views = pipeline(make_batch(images), Draws.for_batch(0, 0))
        view = pipeline.views["pixel_values"][0]
        canvas = canvas_weights(20, 24, 80, images.device) if size == 16 else None
        images = images if size == 16 else TF.resize(images, [80, 80])
        together = render(images, views["boxes"][:1, 0], view, canvas)
        each = render(images, views["boxes"][:, 0], view, canvas)
        assert_close(together, each, 1e-5)

    def test_without_draws(self):
        with pytest.raises(ValueError, match=r"give `draws` \(Draws.for_batch\).*--augment_on device"):
            make_pipeline(shared_boxes=True)(make_batch(pictures()))


class TestDegenerateInputs:
    def test_ratios_out_of_reach(self):
        view = View(size=8, ratio=[0.1, 0.2])
        for height, width in ((1, 1), (1, 50), (50, 1)):
            views = MultiViewPipeline({"pixel_values": [view]}, MEAN, STD)(make_batch(pictures(4, height, width)))
            assert (views["boxes"][..., 2:4] >= 1).all() and views["pixel_values"].isfinite().all()

    @pytest.mark.parametrize("canvas", [None, 20])
    @pytest.mark.parametrize("height,width", [(1, 1), (1, 50), (50, 1), (2, 3)])
    def test_tiny_images(self, height, width, canvas):
        views = make_pipeline(canvas=canvas)(make_batch(pictures(height=height, width=width)))
        assert views["pixel_values"].isfinite().all() and views["local_pixel_values"].isfinite().all()
        if height == width == 1 and canvas is None:
            assert (views["boxes"][..., :4] == torch.tensor([0, 0, 1, 1])).all()
            pixels = views["pixel_values"].flatten(-2)
            assert_close(pixels, pixels[..., :1].expand_as(pixels), 1e-4)

    @pytest.mark.parametrize("options", [{}, {"shared_boxes": True}, {"canvas": 30}], ids=str)
    @pytest.mark.parametrize("size", [16, 72])
    def test_empty_batch(self, size, options):
        views = make_pipeline(size=size, **options)(make_batch(pictures(0)), Draws.for_batch(0, 0))
        assert views["pixel_values"].shape == (2, 0, 3, size, size) and views["boxes"].shape == (0, 5, 5)

    @pytest.mark.parametrize("size", [16, 72])
    def test_whole_image_crops(self, size):
        view = View(size=size, scale=[1.0, 1.0], ratio=[1.0, 1.0], flip=0.0)
        images = pictures(height=30, width=30)
        views = MultiViewPipeline({"pixel_values": [view]}, [0.0] * 3, [1.0] * 3)(make_batch(images))
        assert (views["boxes"] == torch.tensor([0, 0, 30, 30, 0])).all()
        expected = TF.resize(images / 255, [size, size], antialias=True)
        assert_close(views["pixel_values"][0], expected, 2 / 255)

    @pytest.mark.parametrize("height,width", [(8, 8), (8, 40), (11, 30), (40, 41)])
    @pytest.mark.parametrize("size", [16, 72])
    def test_center_crops_larger_than_the_image(self, size, height, width):
        view = View(size=size, crop="center_crop", flip=0.0)
        images = pictures(height=height, width=width)
        views = MultiViewPipeline({"pixel_values": [view]}, [0.0] * 3, [1.0] * 3)(make_batch(images))
        assert_close(views["pixel_values"][0], TF.center_crop(images / 255, [size, size]), 1e-5)

    def test_resize(self):
        view = View(size=16, crop="resize", flip=1.0)
        images = pictures(height=37, width=50)
        views = MultiViewPipeline({"pixel_values": [view]}, [0.0] * 3, [1.0] * 3)(make_batch(images))
        expected = TF.hflip(TF.resize(images / 255, [16, 16], antialias=True))
        assert_close(views["pixel_values"][0], expected, 1e-4)

    def test_padded_crop(self):
        view = View(size=20, crop="padded_crop", padding=6, flip=0.0)
        pipeline = MultiViewPipeline({"pixel_values": [view]}, [0.0] * 3, [1.0] * 3)
        images = pictures(height=20, width=20)
        views = pipeline(make_batch(images))
        padded = TF.pad(images, [6] * 4) / 255
        for image, (top, left, *_), pixels in zip(padded, views["boxes"][:, 0], views["pixel_values"][0], strict=True):
            assert_close(pixels, image[:, top + 6 : top + 26, left + 6 : left + 26], 1e-6)
        with pytest.raises(ValueError, match="needs images of 20x20 pixels, these have 24x20; use"):
            pipeline(make_batch(pictures(height=24, width=20)))

    @pytest.mark.parametrize("size", [16, 72])
    def test_memory_order_does_not_matter(self, size):
        pipeline, images = make_pipeline(size=size), pictures()
        expected = pipeline(make_batch(images))
        wide = pictures(height=20, width=24).repeat_interleave(2, 3)
        for other in (images.contiguous(memory_format=torch.channels_last), wide[..., ::2]):
            assert not other.is_contiguous()
            assert_close(pipeline(make_batch(other))["pixel_values"], expected["pixel_values"], 1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
    def test_other_dtypes_are_refused(self, dtype):
        with pytest.raises(TypeError, match=f"images have dtype {dtype}; give torch.uint8"):
            make_pipeline()(make_batch(pictures().to(dtype)))

    @pytest.mark.parametrize("shape", [(4, 1, 8, 8), (4, 8, 8), (4, 3, 0, 8)])
    def test_other_shapes_are_refused(self, shape):
        with pytest.raises(ValueError, match=r"images have shape .*; give \(batch_size, 3, height, width\)"):
            make_pipeline()(make_batch(torch.zeros(shape, dtype=torch.uint8)))

    def test_sizes_of_a_tensor_must_agree(self):
        with pytest.raises(ValueError, match=r"'pixel_values' have the sizes \[16, 8\]"):
            MultiViewPipeline({"pixel_values": [View(size=16), View(size=8)]}, MEAN, STD)


def test_nothing_is_read_back():
    """On tensors without values, where reading one is an error."""
    batch = {name: values.to("meta") for name, values in make_batch(pictures()).items()}
    for options in ({}, {"canvas": 32}, {"canvas": 32, "shared_boxes": True}):
        views = make_pipeline(**options)(batch, Draws.for_batch(0, 0, device="meta"))
        assert views["pixel_values"].device.type == "meta"


class TestRefused:
    """Mistakes in the making of a pipeline, and inputs that would go wrong silently."""

    @pytest.mark.parametrize(
        "mean,std,message",
        [
            ([0.5], STD, r"image_mean=\[0.5\] must hold three numbers"),
            (MEAN, [1.0, 1.0], r"image_std=\[1.0, 1.0\] must hold three numbers"),
            (MEAN, [1.0, 0.0, 1.0], r"image_std=\[1.0, 0.0, 1.0\] must be positive"),
        ],
    )
    def test_statistics(self, mean, std, message):
        with pytest.raises(ValueError, match=message):
            MultiViewPipeline({"pixel_values": [View(size=8)]}, mean, std)

    def test_no_views(self):
        with pytest.raises(ValueError, match="There are no views to make"):
            MultiViewPipeline({}, MEAN, STD)

    @pytest.mark.parametrize("name", ["epoch", "index"])
    def test_keys_of_other_types(self, name):
        batch = make_batch(pictures())
        with pytest.raises(TypeError, match=f"{name} has dtype torch.int32; give torch.int64"):
            make_pipeline()(batch | {name: batch[name].int()})

    def test_photos_that_share_boxes_without_a_canvas(self):
        zeros = torch.zeros(2, dtype=torch.int64)
        with pytest.raises(ValueError, match="only on a canvas: give `canvas`"):
            make_pipeline(shared_boxes=True).boxes(zeros, zeros, torch.tensor([[20, 30], [30, 20]]))


@pytest.mark.parametrize("source", [14, 20, 33])
@pytest.mark.parametrize("crop,canvas", [("center_crop", 10), ("center_crop", 24), ("padded_crop", 16)])
def test_crops_on_a_canvas(crop, canvas, source):
    """What is a box's place, and what is outside, is a matter of the canvas."""
    view = View(size=16, crop=crop, flip=0.0)
    images = pictures(height=source, width=source)
    views = MultiViewPipeline({"pixel_values": [view]}, [0.0] * 3, [1.0] * 3, canvas=canvas)(make_batch(images))
    resized = TF.resize(images / 255, [canvas, canvas], antialias=True)
    padded = TF.pad(resized, [16] * 4)
    for image, box, pixels in zip(padded, views["boxes"][:, 0], views["pixel_values"][0], strict=True):
        top, left, height, width, _ = box.tolist()
        assert (height, width) == (16, 16)
        assert_close(pixels, image[:, top + 16 : top + 32, left + 16 : left + 32], 1e-4)


@pytest.mark.parametrize("size", [16, 72])
def test_autocast_changes_nothing(size):
    pipeline, batch = make_pipeline(size=size), make_batch(pictures())
    expected = pipeline(batch)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same_tensors(pipeline(batch), expected, 0)


def test_default_dtype_changes_nothing():
    pipeline, batch = make_pipeline(), make_batch(pictures())
    expected = pipeline(batch)
    try:
        torch.set_default_dtype(torch.float64)
        found = pipeline(batch)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_tensors(found, expected)
