"""Patches of two images that belong together: which ones, and where they lie in the images."""

import math

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import create_transform
from torch import nn
from transformers import (
    BeitImageProcessor,
    BitImageProcessor,
    CLIPImageProcessor,
    ConvNextImageProcessor,
    DeiTImageProcessor,
    DINOv3ViTImageProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperImageProcessor,
    TimmWrapperModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hf_ssl.evaluation import (
    ImagePatches,
    LoadedEncoder,
    grid_tokens,
    image_patches,
    match_boxes,
    match_images,
    mutual_nearest_patches,
    similarity_map,
)
from hf_ssl.evaluation.baselines import pixels
from hf_ssl.evaluation.matching import patch_boxes, seen_area
from hf_ssl.evaluation.thumbnails import ThumbnailProcessor
from hf_ssl.views import correspondences, patch_centers


PLAIN = {"do_normalize": False, "resample": 2}
SIDE = 4  # of a patch


# ---- tokens ----


def slow_matches(first, second, ratio=None):
    """One patch after another; `similarities[i][j]` rounded as there."""
    first, second = (F.normalize(tokens.double(), dim=-1) for tokens in (first, second))
    similarities = [[round(float(a @ b), 12) for b in second] for a in first]
    found = []
    for i, row in enumerate(similarities):
        j = max(range(len(row)), key=lambda k: (row[k], -k))
        column = [other[j] for other in similarities]
        if max(range(len(column)), key=lambda k: (column[k], -k)) != i:
            continue
        others = [1 - row[k] for k in range(len(row)) if k != j] + [
            1 - column[k] for k in range(len(column)) if k != i
        ]
        if ratio is None or not others or 1 - row[j] < ratio * min(others):
            found.append((row[j], i, j))
    found.sort(key=lambda pair: -pair[0])
    return [(i, j) for _, i, j in found], [similarity for similarity, *_ in found]


tokens = st.lists(st.tuples(*[st.integers(-2, 2)] * 3), min_size=1, max_size=8).map(lambda rows: torch.tensor(rows))


@settings(deadline=None, max_examples=150)
@given(tokens, tokens, st.sampled_from([None, 0.5, 0.9, 1.0]))
def test_mutual_nearest(first, second, ratio):
    """Few directions, and so many ties: the lower number is the nearest."""
    pairs, similarities = mutual_nearest_patches(first.float(), second.float(), ratio=ratio)
    expected_pairs, expected = slow_matches(first, second, ratio)
    assert pairs.dtype == torch.int64 and similarities.dtype == torch.float32
    assert [tuple(pair) for pair in pairs.tolist()] == expected_pairs
    torch.testing.assert_close(similarities, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("ratio", [None, 0.8])
def test_order_of_the_images(ratio):
    """The pairs are the same ones, whichever image comes first; lengths of tokens change nothing."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(40, 12, generator=generator)
    second = torch.cat([first[10:30] + 0.2 * torch.randn(20, 12, generator=generator), torch.randn(9, 12)])
    pairs, similarities = mutual_nearest_patches(first, second, ratio=ratio)
    assert len(pairs) >= 20 and (similarities.diff() <= 0).all()
    assert {(i + 10, i) for i in range(20)} <= {tuple(pair) for pair in pairs.tolist()}
    swapped, _ = mutual_nearest_patches(second * 3, first * torch.rand(40, 1).add(0.1), ratio=ratio)
    assert torch.equal(swapped.flip(1), pairs)


def test_ratio():
    """The distance to the second nearest patch counts in both images; a patch without a rival passes."""
    angles = torch.tensor([0.0, 0.1, 2.0])
    first = torch.stack([angles.cos(), angles.sin()], dim=1)
    alone = first[[0, 2]]
    assert mutual_nearest_patches(first, alone)[0].tolist() == [[0, 0], [2, 1]]
    assert mutual_nearest_patches(first, first)[0].tolist() == [[0, 0], [1, 1], [2, 2]]
    shifted = torch.tensor([0.06, 2.0])
    second = torch.stack([shifted.cos(), shifted.sin()], dim=1)
    # The nearest of 0.06 is 0.1, and 0 is not much farther: only the second image's patch sees two.
    assert mutual_nearest_patches(first, second)[0].tolist() == [[2, 1], [1, 0]]
    ratio = (1 - math.cos(0.04)) / (1 - math.cos(0.06))
    assert mutual_nearest_patches(first, second, ratio=ratio + 1e-4)[0].tolist() == [[2, 1], [1, 0]]
    assert mutual_nearest_patches(first, second, ratio=ratio - 1e-4)[0].tolist() == [[2, 1]]
    assert mutual_nearest_patches(first[:1], second[:1], ratio=0.01)[0].tolist() == [[0, 0]]
    twice = first[[0, 0]]
    assert mutual_nearest_patches(twice, first)[0].tolist() == [[0, 0]]
    assert mutual_nearest_patches(twice, first, ratio=1.0)[0].shape == (0, 2)


@pytest.mark.parametrize(
    ("first", "second", "options", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), {}, r"tokens of one width.*\(2, 3\) and \(2, 4\)"),
        (torch.ones(2, 2, 3), torch.ones(2, 3), {}, "tokens of one width"),
        (torch.ones(0, 3), torch.ones(2, 3), {}, "not empty"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), {}, "`second` contains NaN"),
        (torch.ones(2, 3), torch.ones(2, 3), {"ratio": 0}, r"ratio=0 must lie in \(0, 1\]"),
        (torch.ones(2, 3), torch.ones(2, 3), {"ratio": 1.2}, r"ratio=1.2 must lie in \(0, 1\]"),
    ],
)
def test_wrong_tokens(first, second, options, message):
    with pytest.raises(ValueError, match=message):
        mutual_nearest_patches(first, second, **options)


# ---- where the processor's pixels come from ----


def of_timm(**config):
    return TimmWrapperImageProcessor({"mean": (0, 0, 0), "std": (1, 1, 1), "interpolation": "bilinear", **config})


def square(side):
    return {"height": side, "width": side}


PROCESSORS = {
    "square": ViTImageProcessor(size=square(48), **PLAIN),
    "rectangle": ViTImageProcessor(size={"height": 40, "width": 64}, **PLAIN),
    "shorter side": ViTImageProcessor(size={"shortest_edge": 48}, **PLAIN),
    "crop": ViTImageProcessor(size={"shortest_edge": 57}, do_center_crop=True, crop_size=square(48), **PLAIN),
    "crop with PIL": ViTImageProcessorPil(
        size={"shortest_edge": 57}, do_center_crop=True, crop_size=square(48), **PLAIN
    ),
    "DeiT": DeiTImageProcessor(size=square(56), crop_size=square(49), **PLAIN),
    "DINOv2": BitImageProcessor(size={"shortest_edge": 60}, crop_size=square(49), **PLAIN),
    "CLIP": CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=square(48), **PLAIN),
    "DINOv3": DINOv3ViTImageProcessor(size=square(48), **PLAIN),
    "crop alone": ViTImageProcessor(do_resize=False, do_center_crop=True, crop_size=square(40), **PLAIN),
    "nothing": ViTImageProcessor(do_resize=False, **PLAIN),
    "padded": ViTImageProcessor(size={"shortest_edge": 40}, do_center_crop=True, crop_size=square(63), **PLAIN),
    "padded with PIL": ViTImageProcessorPil(
        size={"shortest_edge": 40}, do_center_crop=True, crop_size=square(63), **PLAIN
    ),
    "timm": of_timm(input_size=(3, 48, 48), crop_pct=0.8, crop_mode="center"),
    "timm, all of it": of_timm(input_size=(3, 48, 48), crop_pct=1.0, crop_mode="center"),
    "timm, squashed": of_timm(input_size=(3, 48, 48), crop_pct=0.82, crop_mode="squash"),
}


@pytest.mark.parametrize("size", [(70, 97), (97, 70), (83, 83), (111, 60)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_seen_area(name, size):
    """An image whose colors tell places, through the processor: the places that come out are those of the area."""
    height, width = size
    rows, columns = np.mgrid[:height, :width]
    ramp = np.stack([2 * rows, 2 * columns, np.full_like(rows, 255)], axis=-1).astype(np.uint8)
    photo = PIL.Image.fromarray(ramp)
    pixel_values = PROCESSORS[name](images=[photo], return_tensors="pt")["pixel_values"][0].double() * 255
    (top, left, tall, wide), processed = seen_area(PROCESSORS[name], height, width)
    assert processed == pixel_values.shape[1:]
    for axis, (start, length, side) in enumerate(((top, tall, height), (left, wide, width))):
        scale = length / processed[axis]
        places = start + (torch.arange(processed[axis]) + 0.5) * scale
        inside = (places > 3 * max(scale, 1)) & (places < side - 3 * max(scale, 1))  # without what borders do
        found = pixel_values[axis].index_select(axis, inside.nonzero().flatten())
        is_padding = pixel_values[2].index_select(axis, inside.nonzero().flatten()) < 250
        expected = (places[inside, None] if axis == 0 else places[None, inside]).expand_as(found)
        errors = (found / 2 + 0.5 - expected)[~is_padding]
        assert len(errors) > 100
        assert abs(errors.mean()) < 0.06 * max(scale, 1) and errors.abs().max() < 0.6 * max(scale, 1), (name, axis)


def test_timm_is_what_runs():
    """As timm's own transform is asked, its default is known too."""
    config = {"input_size": (3, 32, 32), "crop_pct": 0.875, "interpolation": "bicubic"}
    processor = of_timm(**config)
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 61, 3), dtype=np.uint8))
    expected = create_transform(**processor.data_config, is_training=False)(photo)
    assert torch.equal(processor(images=[photo], return_tensors="pt")["pixel_values"][0], expected)
    area, size = seen_area(processor, 50, 61)
    assert size == (32, 32)
    # 61 x 50 to 43 x 36; 2 and 5.5 pixels are cut off, the half one goes to the even number.
    np.testing.assert_allclose(area, [2 * 50 / 36, 6 * 61 / 43, 32 * 50 / 36, 32 * 61 / 43])


@pytest.mark.parametrize(
    ("processor", "message"),
    [
        (ConvNextImageProcessor(), "Where ConvNextImageProcessor takes its pixels from is not known here"),
        (BeitImageProcessor(), "Where BeitImageProcessor takes its pixels from"),
        (ThumbnailProcessor(32, [0.5] * 3, [0.5] * 3), "Where ThumbnailProcessor takes its pixels from"),
        (ViTImageProcessor(do_pad=True, pad_size=square(64)), r"ViTImageProcessor pads images \(do_pad=True\)"),
        (ViTImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}), "resizes to size=.*longest_edge"),
        (of_timm(input_size=(3, 32, 32), crop_mode="border"), "Where timm's ResizeKeepRatio takes its pixels from"),
    ],
)
def test_unknown_processors(processor, message):
    with pytest.raises(ValueError, match=message) as error:
        seen_area(processor, 50, 60)
    assert str(error.value).endswith("evaluation_processor.") and "--image_size" in str(error.value)


def test_processor_that_does_otherwise(encoder):
    class Doubling(ViTImageProcessor):
        def preprocess(self, images, **kwargs):
            return super().preprocess([image.resize((64, 64)) for image in images], **kwargs)

    encoder.processor = Doubling(do_resize=False, **PLAIN)
    with pytest.raises(
        ValueError, match=r"Doubling makes an image of \(64, 64\) pixels where its settings say \(32, 32\)"
    ):
        image_patches(encoder, PIL.Image.new("RGB", (32, 32)))


# ---- images ----


class PixelPatchesConfig(PreTrainedConfig):
    model_type = "pixel_patches"
    patch_size = SIDE


class PixelPatches(PreTrainedModel):
    """An encoder whose tokens are the pixels of the patches themselves."""

    config_class = PixelPatchesConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, pixel_values):
        patches = F.unfold(pixel_values - 0.5, self.config.patch_size, stride=self.config.patch_size).mT
        return BaseModelOutput(last_hidden_state=patches * self.weight)


@pytest.fixture
def encoder():
    processor = ViTImageProcessor(do_resize=False, **PLAIN)
    return LoadedEncoder(PixelPatches(PixelPatchesConfig()), processor, "pixel patches", feature="patch_mean")


def blocks(rows, columns, seed=0, side=SIDE):
    """An image of blocks that have one color each."""
    colors = np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), dtype=np.uint8)
    return PIL.Image.fromarray(colors.repeat(side, 0).repeat(side, 1))


def test_shift(encoder):
    """A part of an image: all of its patches are found, where they were."""
    photo = blocks(9, 11)
    part = photo.crop((3 * SIDE, 2 * SIDE, 10 * SIDE, 8 * SIDE))
    matches = match_images(encoder, photo, part, threshold=0.999999)
    assert matches.grids == ((9, 11), (6, 7)) and len(matches) == 42
    assert torch.equal(matches.boxes[0][:, :2] - matches.boxes[1][:, :2], torch.tensor([[8.0, 12.0]]).expand(42, 2))
    assert (matches.boxes[0][:, 2:] == SIDE).all() and (matches.boxes[1][:, 2:] == SIDE).all()
    rows, columns = matches.pairs[:, 1] // 7, matches.pairs[:, 1] % 7
    assert torch.equal(matches.pairs[:, 0], (rows + 2) * 11 + columns + 3)
    assert torch.equal(matches.centers[:, 1], torch.stack([rows, columns], 1) * 4.0 + 2)
    torch.testing.assert_close(matches.similarities, torch.ones(42))


def test_flip(encoder):
    photo = blocks(6, 8)
    matches = match_images(encoder, photo, photo.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT))
    assert len(matches) == 48
    first, second = matches.centers.unbind(1)
    torch.testing.assert_close(first[:, 0], second[:, 0])
    torch.testing.assert_close(first[:, 1], 32 - second[:, 1])


@pytest.mark.parametrize("factor", [2, 3.7])
def test_resize_and_crop(encoder, factor):
    """The same image, larger: what the processor does to either is undone, and places are in pixels of each."""
    encoder.processor = ViTImageProcessor(
        size={"shortest_edge": 40}, do_center_crop=True, crop_size=square(32), do_normalize=False, resample=2
    )
    photo = blocks(10, 15)
    large = photo.resize((round(60 * factor), round(40 * factor)), PIL.Image.Resampling.NEAREST)
    matches = match_images(encoder, photo, large, threshold=0.95)
    assert matches.grids == ((8, 8), (8, 8)) and len(matches) >= 60
    torch.testing.assert_close(matches.areas[0], torch.tensor([4.0, 14, 32, 32], dtype=torch.float64))
    torch.testing.assert_close(matches.areas[1], factor * matches.areas[0], rtol=0, atol=0.5)
    torch.testing.assert_close(matches.boxes[1], factor * matches.boxes[0], rtol=0, atol=0.5)


def test_options_are_passed_on(encoder):
    first, second = blocks(6, 8), blocks(7, 7, seed=1)
    tokens = [image_patches(encoder, photo).tokens.flatten(0, 1) for photo in (first, second)]
    every, kept = match_images(encoder, first, second), match_images(encoder, first, second, ratio=0.5, threshold=0.99)
    pairs, similarities = mutual_nearest_patches(*tokens)
    assert torch.equal(every.pairs, pairs) and torch.equal(every.similarities, similarities)
    pairs, similarities = mutual_nearest_patches(*tokens, ratio=0.5)
    assert torch.equal(kept.pairs, pairs[similarities >= 0.99]) and 0 < len(kept) < len(pairs) < len(every)
    assert len(match_images(encoder, first, second, threshold=1.0)) == 0
    with pytest.raises(ValueError, match="threshold=50 must be a cosine similarity, from -1 to 1"):
        match_images(encoder, first, second, threshold=50)


def test_what_is_left_over_of_a_patch(encoder):
    """At the bottom and at the right; the patches do not grow for it."""
    photo = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 256, (35, 50, 3), dtype=np.uint8))
    patches = image_patches(encoder, photo)
    assert patches.grid == (8, 12) and patches.area.tolist() == [0, 0, 32, 48]
    assert patches.boxes[13].tolist() == [4, 4, 4, 4]
    expected = torch.from_numpy(np.asarray(photo)[4:8, 4:8].copy()).permute(2, 0, 1).flatten() / 255 - 0.5
    torch.testing.assert_close(patches.tokens[1, 1], expected)


def test_kinds_of_images(encoder):
    photo = blocks(3, 5)
    expected = image_patches(encoder, photo)
    tensor = torch.from_numpy(np.asarray(photo).copy()).permute(2, 0, 1)
    assert torch.equal(image_patches(encoder, tensor).tokens, expected.tokens)
    assert torch.equal(image_patches(encoder, photo.convert("RGBA")).tokens, expected.tokens)
    gray = image_patches(encoder, photo.convert("L")).tokens
    assert gray.shape == expected.tokens.shape
    narrow = image_patches(encoder, torch.zeros(3, 40, 4, dtype=torch.uint8))  # whose channels could be guessed wrong
    assert narrow.grid == (10, 1)
    for wrong in (tensor.float(), tensor[0], tensor[None], np.asarray(photo), "photo.jpg"):
        with pytest.raises(
            TypeError, match=r"An image is a PIL image or a uint8 tensor of shape \(3, height, width\)"
        ):
            image_patches(encoder, wrong)


def test_similarity_map(encoder):
    """What is clicked at is found again; the map is that of the patch under the point."""
    photo = blocks(9, 11)
    part = photo.crop((3 * SIDE, 2 * SIDE, 10 * SIDE, 8 * SIDE))
    first, second = (image_patches(encoder, image) for image in (photo, part))
    found = similarity_map(first, second, (5.2 * SIDE, 4.9 * SIDE))
    assert found.shape == (6, 7) and found.dtype == torch.float32
    assert divmod(found.argmax().item(), 7) == (3, 1)
    expected = F.cosine_similarity(first.tokens[5, 4], second.tokens, dim=-1)
    torch.testing.assert_close(found, expected)
    back = similarity_map(second, first, (0, 0))
    assert divmod(back.argmax().item(), 11) == (2, 3)


def test_points():
    patches = ImagePatches(torch.zeros(2, 3, 5), torch.tensor([10.0, -4.0, 20.0, 30.0]))
    points = {(10, 0): 0, (19.9, 5.9): 0, (10, 6): 1, (20, 25.9): 5, (29.9, -4): 3}
    assert {point: patches.patch_at(point) for point in points} == points
    boxes = patches.boxes
    assert all(patches.patch_at((boxes[i, :2] + boxes[i, 2:] / 2).tolist()) == i for i in range(6))
    for point in ((9.9, 0), (30, 0), (15, -5), (15, 26)):
        with pytest.raises(ValueError, match=r"lies outside of .* rows 10 to 30, columns -4 to 26"):
            patches.patch_at(point)


# ---- encoders ----


def loaded(model, side=32):
    return LoadedEncoder(model, ViTImageProcessor(size=square(side)), "an encoder")


def test_grids_of_encoders():
    """Rectangles, merged patches, feature maps; tokens lie where they should."""
    vit = ViTModel(ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4))
    resnet = ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic"))
    swin = SwinModel(SwinConfig(embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=2, patch_size=2))
    x = torch.randn(2, 3, 16, 32)
    for model, grid in ((vit, (4, 8)), (resnet, (2, 4)), (swin, (4, 8))):
        encoder = loaded(model)
        found = grid_tokens(encoder, x)
        assert found.shape[:3] == (2, *grid)
        states = encoder.outputs(x)["last_hidden_state"]
        expected = states.flatten(2).mT if model is resnet else states[:, 1:] if model is vit else states
        assert torch.equal(found.flatten(1, 2), expected)
    assert grid_tokens(loaded(vit), torch.zeros(1, 3, 18, 31)).shape[1:3] == (4, 7)
    with pytest.raises(
        ValueError, match=r"The 35 tokens that an encoder makes of an image of 18 x 27 pixels are no grid"
    ):
        grid_tokens(loaded(swin), torch.zeros(1, 3, 18, 27))
    with pytest.raises(ValueError, match="pixels, of type hf_ssl_pixels, has no tokens of patches"):
        image_patches(pixels(16), PIL.Image.new("RGB", (20, 20)))


@pytest.mark.parametrize(
    ("architecture", "model_args", "grid"),
    [
        (
            "vit_tiny_patch16_224",
            {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2},
            (4, 4),
        ),
        ("resnet18", {"layers": [1] * 4, "channels": [8, 8, 8, 12]}, (2, 2)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 64, "window_size": 2, "embed_dim": 12, "depths": [1] * 4},
            (2, 2),
        ),
    ],
)
def test_encoders_of_timm(architecture, model_args, grid):
    side = 32 if "vit" in architecture else 64
    model = TimmWrapperModel(TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=0))
    encoder = loaded(model, side)
    tokens = grid_tokens(encoder, torch.randn(1, 3, side, side))
    assert tokens.shape[:3] == (1, *grid) and tokens.shape[3] == model.timm_model.num_features
    assert image_patches(encoder, PIL.Image.new("RGB", (100, 80))).area.tolist() == [0, 0, 80, 100]


# ---- geometry ----


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_match_boxes(data):
    """Two crops of one image: the pairs of PW-Self, and patches of a pair lie close to each other in the image."""
    boxes, grids = [], []
    for _ in range(2):
        height, width = data.draw(st.integers(30, 80)), data.draw(st.integers(30, 80))
        corner = data.draw(st.integers(0, 20)), data.draw(st.integers(0, 20))
        boxes.append(torch.tensor([*corner, height, width, data.draw(st.integers(0, 1))]))
        grids.append((data.draw(st.integers(1, 7)), data.draw(st.integers(1, 7))))
    matches = match_boxes(*boxes, tuple(grids))
    *patches, valid = correspondences(*boxes, *grids)
    assert matches.similarities is None and matches.grids == tuple(grids)
    assert torch.equal(matches.pairs, torch.stack(patches, dim=-1)[valid])
    for i in range(2):
        assert torch.equal(matches.areas[i], boxes[i][:4].double())
        expected = patch_centers(boxes[i], grids[i])[matches.pairs[:, i]]
        torch.testing.assert_close(matches.centers[:, i], expected)
        assert torch.equal(matches.boxes[i], patch_boxes(boxes[i], grids[i])[matches.pairs[:, i]])
        assert (matches.boxes[i][:, 2:] > 0).all()


def test_match_boxes_of_a_mirrored_crop():
    whole = torch.tensor([0, 0, 40, 60, 0])
    matches = match_boxes(whole, torch.tensor([0, 0, 40, 60, 1]), ((2, 3), (2, 3)))
    assert matches.pairs.tolist() == [[0, 2], [1, 1], [2, 0], [3, 5], [4, 4], [5, 3]]
    assert torch.equal(*matches.boxes) and matches.boxes[0][1].tolist() == [0, 20, 20, 20]
    assert len(match_boxes(torch.tensor([0, 0, 10, 10, 0]), torch.tensor([20, 20, 10, 10, 0]), ((2, 2), (2, 2)))) == 0
    with pytest.raises(ValueError, match=r"\(top, left, height, width, flip\) of one crop each; got shapes \(4,\)"):
        match_boxes(whole[:4], whole, ((2, 3), (2, 3)))
