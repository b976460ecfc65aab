"""What an encoder attends to and tells apart, as pictures: compared with what its own outputs give, patch by patch."""

import gradio as gr
import numpy as np
import PIL.Image
import pytest
import torch
from matplotlib import colormaps
from sklearn.decomposition import PCA
from transformers import ResNetConfig, ResNetModel, TimmWrapperConfig, TimmWrapperModel, ViTConfig, ViTModel

from hf_ssl.demo import EncoderShelf
from hf_ssl.demo.encoders import encoder_input
from hf_ssl.demo.inside import inside_tab, show_attention, show_patch_colors
from hf_ssl.demo.page import Page
from hf_ssl.demo.photos import Photo, RefusedPhoto
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.hub.export import save_published

from ..models.test_isl import perturb
from ..training.common import make_model
from .test_training_views import collection_of, noise


VIT = {"hidden_size": 36, "num_hidden_layers": 2, "intermediate_size": 48, "image_size": 16, "patch_size": 4}
TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2, "reg_tokens": 0}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}


def vit(num_attention_heads=3, **overrides):
    return ViTModel(ViTConfig(**{**VIT, "num_attention_heads": num_attention_heads, **overrides}))


def with_nan():
    model = vit()
    model.layers[-1].attention.q_proj.weight.data[0, 0] = torch.nan
    return model


ENCODERS = {
    "vit": vit,
    "many_heads": lambda: vit(18),
    "left_over": lambda: vit(patch_size=5),  # 15 of 16 pixels
    "one_patch": lambda: vit(patch_size=16),
    "nan": with_nan,
    "resnet": lambda: ResNetModel(ResNetConfig(**RESNET)),
    "timm": lambda: TimmWrapperModel(
        TimmWrapperConfig(architecture="vit_little_patch16_reg4_gap_256", model_args=TIMM, num_labels=0)
    ),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("encoders")
    processor = evaluation_processor(16, [0.5] * 3, [0.5] * 3)
    for name, make in ENCODERS.items():
        torch.manual_seed(0)
        model = make()
        perturb(model)
        save_published(model, processor, folder / name)
    export_run(make_model(), processor, folder / "relvit")
    return EncoderShelf([str(folder / name) for name in (*ENCODERS, "relvit")], allow_hub_ids=False)


PHOTO = Photo(noise(16, 16, seed=1), "")
WHITE, BLACK = (Photo(PIL.Image.new("RGB", (16, 16), color), "") for color in ("white", "black"))


def given(photo):
    """What an encoder gets: a photo of its size is only normalized."""
    pixels = torch.from_numpy(np.asarray(photo.image).copy()).permute(2, 0, 1)[None].float()
    return (pixels / 255 - 0.5) / 0.5


def eager_attention(shelf, name, photo):
    """Of the class token, by transformers: (heads, patches); their mean comes first."""
    model = shelf.get(name).trained.model
    model.set_attn_implementation("eager")
    with torch.no_grad():
        weights = model(given(photo), output_attentions=True).attentions[-1][0, :, 0, 1:].numpy()
    model.set_attn_implementation("sdpa")
    return np.concatenate([weights.mean(0, keepdims=True), weights])


def cells(picture, rows=4, columns=4):
    """The colors in the middle of patches: (rows * columns, 3)."""
    pixels = np.asarray(picture.convert("RGB")).astype(int)
    y, x = (
        ((np.arange(n) + 0.5) * side / n).astype(int)
        for n, side in zip((rows, columns), pixels.shape[:2], strict=True)
    )
    return pixels[np.ix_(y, x)].reshape(-1, 3)


def keep(weights, mass):
    """The patches without those that, from the least one on, hold at most 1 - mass together."""
    kept, left_out = np.ones(len(weights), dtype=bool), 0.0
    for patch in np.argsort(weights, kind="stable"):
        left_out += weights[patch] / weights.sum()
        if left_out > 1 - mass:
            break
        kept[patch] = False
    return kept


def test_heat(shelf):
    """Over a black photo there is nothing but the colors of the weights."""
    pictures, words = show_attention(shelf, BLACK, "vit", "heat", 0.6)
    assert [name for _, name in pictures] == ["mean of all heads", "head 1", "head 2", "head 3"]
    assert words == "3 heads; 4 x 4 patches."
    expected = eager_attention(shelf, "vit", BLACK)
    assert expected[1:].std() > 1e-3  # something is looked at more than something else
    for (picture, _), weights in zip(pictures, expected, strict=True):
        assert picture.size == (512, 512)
        scaled = (weights - weights.min()) / (weights.max() - weights.min())
        colors = 255 * colormaps["inferno"](scaled)[:, :3]
        np.testing.assert_allclose(cells(picture), 0.7 * colors, atol=3)


def test_heat_lets_the_photo_shine_through(shelf):
    """In gray, without another color than those of the weights."""
    (dark, _), (bright, _) = (show_attention(shelf, photo, "vit", "heat", 0.6)[0][0] for photo in (BLACK, WHITE))
    colors = [
        colormaps["inferno"]((weights - weights.min()) / np.ptp(weights))[:, :3] * 255
        for weights in (eager_attention(shelf, "vit", photo)[0] for photo in (BLACK, WHITE))
    ]
    np.testing.assert_allclose(cells(bright) - 0.7 * colors[1], 0.3 * 255, atol=3)
    np.testing.assert_allclose(cells(dark) - 0.7 * colors[0], 0, atol=3)


@pytest.mark.parametrize("mass", [0.05, 0.3, 0.6, 0.9, 1])
def test_masks(shelf, mass):
    """Patches of a white photo are white or dark."""
    pictures, _ = show_attention(shelf, WHITE, "vit", "mask", mass)
    masks = np.stack([cells(picture)[:, 0] for picture, _ in pictures])
    assert set(masks.flatten()) <= {255, 51}
    expected = np.stack([keep(weights, mass) for weights in eager_attention(shelf, "vit", WHITE)])
    assert np.array_equal(masks == 255, expected)
    assert expected.all() == (mass == 1) and expected.any(1).all()


def test_many_heads(shelf):
    pictures, words = show_attention(shelf, PHOTO, "many_heads", "heat", 0.6)
    assert len(pictures) == 17 and pictures[-1][1] == "head 16"
    assert words == "18 heads, the first 16 of which are shown; 4 x 4 patches."
    mean = eager_attention(shelf, "many_heads", BLACK)[0]  # of all, not of those that are shown
    colors = 255 * colormaps["inferno"]((mean - mean.min()) / np.ptp(mean))[:, :3]
    drawn = show_attention(shelf, BLACK, "many_heads", "heat", 0.6)[0][0][0]
    np.testing.assert_allclose(cells(drawn), 0.7 * colors, atol=3)


def test_attention_leaves_the_encoder_as_it_is(shelf):
    model = shelf.get("vit").trained.model
    before = model(given(PHOTO)).last_hidden_state
    first = show_attention(shelf, PHOTO, "vit", "heat", 0.6)
    assert model.config._attn_implementation == "sdpa"
    assert torch.equal(model(given(PHOTO)).last_hidden_state, before)
    assert show_attention(shelf, PHOTO, "vit", "heat", 0.6) == first


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet", "resnet, of type resnet, has no class token"),
        ("timm", "timm, of type timm_wrapper, has no class token"),
        ("nan", "must be finite"),
    ],
)
@pytest.mark.parametrize("show", ["heat", "mask"])
def test_encoders_without_attention(shelf, name, message, show):
    """Are no mistake of the visitor."""
    pictures, words = show_attention(shelf, PHOTO, name, show, 0.6)
    assert pictures == [] and words.startswith("**There is no attention to be seen.** ") and message in words


@pytest.mark.parametrize(("name", "side", "grid"), [("vit", 16, 4), ("left_over", 15, 3), ("relvit", 16, 4)])
def test_patch_colors(shelf, name, side, grid):
    """Of the tokens of the trained and of the untrained network, by scikit-learn up to the signs."""
    pictures, words = show_patch_colors(shelf, PHOTO, name)
    assert [caption for _, caption in pictures] == ["the photo", "trained", "untrained"]
    assert words == f"To the encoder, this is an image of {side} x {side} pixels, in {grid} x {grid} patches."
    photo = pictures[0][0]
    assert photo.size == (512 // side * side,) * 2
    seen = np.asarray(PHOTO.image)[:side, :side].astype(int)
    assert np.abs(cells(photo, side, side).reshape(side, side, 3) - seen).max() <= 1
    for (picture, _), encoder in zip(pictures[1:], shelf.get(name), strict=True):
        assert picture.size == photo.size
        with torch.no_grad():
            tokens = encoder.model(given(PHOTO)).last_hidden_state[0, 1:].double().numpy()
        expected = PCA(3, svd_solver="full").fit_transform(tokens)
        colors = cells(picture, grid, grid)
        for channel in range(3):
            inside = (colors[:, channel] > 0) & (colors[:, channel] < 255)
            assert abs(np.corrcoef(colors[inside, channel], expected[inside, channel])[0, 1]) > 0.999


def test_patches_before_and_after_training_differ(shelf):
    (_, trained, untrained), _ = show_patch_colors(shelf, PHOTO, "vit")
    assert trained[0] != untrained[0]


def test_left_over_pixels(shelf):
    """Those at the right and at the bottom, which the encoder does not see, are not shown as if it did."""
    pictures, words = show_attention(shelf, WHITE, "left_over", "mask", 0.5)
    assert words == "3 heads; 3 x 3 patches."
    assert {picture.size for picture, _ in pictures} == {(510, 510)}


@pytest.mark.parametrize("name", ["resnet", "timm"])
def test_patches_of_other_encoders(shelf, name):
    """A feature map of a convolutional network will do."""
    pictures, words = show_patch_colors(shelf, PHOTO, name)
    assert len(pictures) == 3 and words.endswith({"resnet": "in 2 x 2 patches.", "timm": "in 4 x 4 patches."}[name])


@pytest.mark.parametrize(("name", "message"), [("one_patch", "at least three patches"), ("nan", "contains NaN")])
def test_encoders_without_patches(shelf, name, message):
    pictures, words = show_patch_colors(shelf, PHOTO, name)
    assert pictures == [] and words.startswith("**There are no patches to be seen.** ") and message in words


def test_photos_of_any_size(shelf, monkeypatch):
    """Are shown as their processor makes them: squeezed into a square, or without what it cuts away."""
    photo = PIL.Image.new("RGB", (240, 64), "red")
    photo.paste((0, 0, 255), (80, 0, 160, 64))
    (squeezed, _), *_ = show_patch_colors(shelf, Photo(photo, ""), "vit")[0]
    red, blue = (255, 0, 0), (0, 0, 255)
    assert list(map(tuple, cells(squeezed, 1, 3).tolist())) == [red, blue, red]
    monkeypatch.setattr(shelf.get("vit").trained, "processor", evaluation_processor(16, [0.5] * 3, [0.5] * 3, 0.5))
    (cropped, _), *_ = show_patch_colors(shelf, Photo(photo, ""), "vit")[0]
    assert list(map(tuple, cells(cropped, 1, 3).tolist())) == [blue] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"photo": None}, "There is no photo yet"),
        *(({"show": show}, "shown as heat or as mask") for show in (None, "Heat", "", 3, ["heat"])),
        *(
            ({"mass": mass}, "a number from 0.05 to 1")
            for mass in (None, "0.6", True, 0, 0.049, -1, 1.01, np.nan, np.inf, [0.5])
        ),
        ({"encoder": "nobody/knows"}, "no encoder of this name"),
        ({"encoder": ["vit"]}, "chosen by a name"),
    ],
)
def test_refusals(shelf, change, message):
    asked = {"photo": PHOTO, "encoder": "vit", "show": "heat", "mass": 0.6} | change
    with pytest.raises(gr.Error, match=message):
        show_attention(shelf, **asked)
    if "show" not in change and "mass" not in change:
        with pytest.raises(gr.Error, match=message):
            show_patch_colors(shelf, asked["photo"], asked["encoder"])


def test_photos_that_a_processor_does_not_take(shelf, monkeypatch):
    def refuse(**_):
        raise ValueError("too narrow")

    monkeypatch.setattr(shelf.get("vit").trained, "processor", refuse)
    for show in (
        lambda: show_attention(shelf, PHOTO, "vit", "heat", 0.6),
        lambda: show_patch_colors(shelf, PHOTO, "vit"),
    ):
        with pytest.raises(gr.Error, match="too narrow"):
            show()


# ---- the tab ----


@pytest.fixture(scope="module")
def page(shelf, tmp_path_factory):
    collection = collection_of([noise(9, 8), noise(8, 9)], tmp_path_factory.mktemp("collection"))
    with Page(analytics_enabled=False) as page:
        encoder = encoder_input(shelf)
        switched = encoder.change(lambda: None, api_visibility="private")
        with gr.Tab("Look inside") as tab:
            inside_tab(shelf, collection, encoder, switched, tab)
    return page


def test_endpoints(page):
    """With the names that the documentation gives them, and nothing else."""
    named = page.get_api_info()["named_endpoints"]
    inputs = {name: [item["parameter_name"] for item in endpoint["parameters"]] for name, endpoint in named.items()}
    assert inputs == {
        "/attention": ["photo", "encoder", "show", "mass"],
        "/patch_colors": ["photo", "encoder"],
        "/training_views": ["photo", "method", "seed"],
    }
    assert [len(endpoint["returns"]) for endpoint in named.values()] == [2, 2, 3]


@pytest.mark.parametrize(
    ("photo", "message"), [(None, "There is no photo yet"), (RefusedPhoto("It is a mess."), "It is a mess")]
)
def test_the_page_says_in_place_what_is_missing(page, photo, message):
    """Where a client is refused, a visitor has only taken the photo away, or will choose another one."""
    for name, num_pictures in (("attention", 1), ("patch_colors", 1), ("training_views", 2)):
        (public,) = (block_fn for block_fn in page.fns.values() if block_fn.api_name == name)
        same = [one for one in page.fns.values() if one.outputs == public.outputs and one is not public]
        others = [component.value for component in public.inputs[1:]]
        assert len(same) >= 4  # a change of inputs, another encoder, the first example, another one
        for block_fn in same:
            *pictures, words = block_fn.fn(photo, *others)
            assert pictures == [None] * num_pictures and message in words
        with pytest.raises(gr.Error, match=message):
            public.fn(photo, *others)
        assert same[0].fn(PHOTO, *others) == public.fn(PHOTO, *others)
