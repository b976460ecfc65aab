"""What the class token looks at: the weights of transformers' eager attention, without a trace left in the encoder."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    BeitConfig,
    BeitModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from hf_ssl.backbones import publish
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig, T2TViTModel
from hf_ssl.evaluation import LoadedEncoder, attention_maps, attention_masks, crop_to_patches
from hf_ssl.hub import evaluation_processor

from ..models.test_isl import perturb


TINY = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
VIT = {**TINY, "intermediate_size": 32}
# What makes it, and tokens before the patches.
TRANSFORMERS = {
    "vit": (lambda: ViTModel(ViTConfig(**VIT)), 1),
    "deit": (lambda: DeiTModel(DeiTConfig(**VIT)), 2),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**TINY)), 1),
    "registers": (lambda: Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, num_register_tokens=3)), 4),
    "beit": (lambda: BeitModel(BeitConfig(**VIT, use_relative_position_bias=True)), 1),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)), 1),
    "mae": (lambda: ViTMAEModel(ViTMAEConfig(**VIT, mask_ratio=0.0)), 1),
}


def loaded(make, name="an encoder"):
    torch.manual_seed(0)
    model = make()
    perturb(model)
    return LoadedEncoder(model, evaluation_processor(16, [0.5] * 3, [0.5] * 3), name)


def pixels(*size):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))


def eager_attention(encoder, pixel_values):
    """Of the class token to the patches and what comes before them: transformers' own."""
    model = encoder.model
    usual = model.config._attn_implementation
    model.set_attn_implementation("eager")
    attentions = encoder.outputs(pixel_values, output_attentions=True)["attentions"]
    model.set_attn_implementation(usual)
    return attentions[-1][:, :, 0]


@pytest.mark.parametrize("size", [(16, 16), (24, 32), (20, 8)])
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_attention_of_a_stock_model(name, size):
    make, prefix = TRANSFORMERS[name]
    encoder = loaded(make)
    x = pixels(*size)
    before = encoder.outputs(x)["last_hidden_state"]
    assert encoder.model.config._attn_implementation == "sdpa"
    found = attention_maps(encoder, x)
    assert found.shape == (3, 2, size[0] // 4, size[1] // 4) and found.dtype == torch.float32
    assert not found.requires_grad
    expected = eager_attention(encoder, x)
    assert expected.flatten().std() > 1e-3  # something is looked at more than something else
    torch.testing.assert_close(found.flatten(2), expected[:, :, prefix:], rtol=1e-5, atol=1e-6)
    assert encoder.model.config._attn_implementation == "sdpa"
    assert torch.equal(encoder.outputs(x)["last_hidden_state"], before)


def test_attention_of_an_eager_model():
    encoder = loaded(TRANSFORMERS["vit"][0])
    encoder.model.set_attn_implementation("eager")
    x = pixels(16, 16)
    torch.testing.assert_close(attention_maps(encoder, x).flatten(2), eager_attention(encoder, x)[:, :, 1:])
    assert encoder.model.config._attn_implementation == "eager"


def test_left_over_pixels():
    """At the bottom and at the right, as in the authors' script."""
    encoder = loaded(TRANSFORMERS["vit"][0])
    x = pixels(27, 18)
    assert torch.equal(crop_to_patches(encoder, x), x[:, :, :24, :16])
    assert torch.equal(attention_maps(encoder, x), attention_maps(encoder, x[:, :, :24, :16]))
    with pytest.raises(ValueError, match="An image of 3 x 30 pixels is smaller than a patch of 4 x 4"):
        attention_maps(encoder, pixels(3, 30))


def test_attention_of_t2t():
    config = T2TViTConfig(hidden_size=24, num_hidden_layers=3, num_attention_heads=2, token_dim=8, image_size=48)
    encoder = loaded(lambda: publish(T2TViTModel(config)))
    x = pixels(48, 48)
    found = attention_maps(encoder, x)
    assert found.shape == (3, 2, 3, 3)
    tokens = encoder.outputs(x, output_hidden_states=True)["hidden_states"][-2]
    layer = encoder.model.layers[-1]
    normalized = layer.layernorm_before(tokens)
    query, key = (
        projection(normalized).view(3, 10, 2, 12).transpose(1, 2)
        for projection in (layer.attention.q_proj, layer.attention.k_proj)
    )
    expected = (query @ key.mT / 12**0.5).softmax(-1)[:, :, 0, 1:]
    torch.testing.assert_close(found.flatten(2), expected, rtol=1e-5, atol=1e-6)
    assert not layer.attention._forward_pre_hooks


def test_an_error_leaves_nothing_behind():
    encoder = loaded(TRANSFORMERS["vit"][0])
    with pytest.raises(ValueError, match="channel dimension"):
        attention_maps(encoder, torch.zeros(1, 4, 16, 16))
    assert encoder.model.config._attn_implementation == "sdpa"
    assert attention_maps(encoder, pixels(16, 16)).shape == (3, 2, 4, 4)


def test_threads():
    """As in a demo that many people use: all of them get the attention of the last block."""
    encoder = loaded(TRANSFORMERS["vit"][0])
    inputs = [pixels(16, 16) * scale for scale in (0.5, 1, 2, 3)] * 6
    expected = [attention_maps(encoder, x) for x in inputs]
    states = [encoder.outputs(x)["last_hidden_state"] for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        maps = [pool.submit(attention_maps, encoder, x) for x in inputs]
        others = [pool.submit(encoder.outputs, x) for x in inputs]
    assert all(torch.equal(found.result(), of_one) for found, of_one in zip(maps, expected, strict=True))
    for found, of_one in zip(others, states, strict=True):
        torch.testing.assert_close(found.result()["last_hidden_state"], of_one)
    assert encoder.model.config._attn_implementation == "sdpa"


OF_TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 2}
RESNET = {"embedding_size": 4, "hidden_sizes": [4, 6], "depths": [1, 1], "layer_type": "basic"}
SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4], "window_size": 2, "patch_size": 2}


def of_timm():
    name = "vit_tiny_patch16_224"
    return TimmWrapperModel(TimmWrapperConfig(architecture=name, model_args=OF_TIMM, num_labels=0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetModel(ResNetConfig(**RESNET)), "an encoder, of type resnet, has no class token"),
        (lambda: SwinModel(SwinConfig(**SWIN)), "an encoder, of type swin, has no class token"),
        (lambda: IJepaModel(IJepaConfig(**VIT)), "an encoder, of type ijepa, has no class token"),
        (of_timm, "The attention of an encoder, of type timm_wrapper, cannot be read: use a vision transformer"),
        # Of the patches that are hidden there is no attention.
        (
            lambda: ViTMAEModel(ViTMAEConfig(**VIT, mask_ratio=0.75)),
            "The attention of an encoder, of type vit_mae, cannot",
        ),
    ],
)
def test_refused_encoders(make, message):
    with pytest.raises(ValueError, match=message):
        attention_maps(loaded(make), pixels(16, 16))


# ---- masks ----


def slow_mask(weights, mass):
    """Take the least patches away, one after the other, while the share of what is taken allows it."""
    total, taken = np.sum(np.sort(weights)), np.float32(0)
    kept = np.ones(len(weights), dtype=bool)
    for i in np.argsort(weights, kind="stable"):
        taken += weights[i] / total
        if taken > 1 - mass:
            break
        kept[i] = False
    return kept


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=12).filter(any), st.sampled_from([0.123, 0.337, 0.613, 0.871])
)
def test_masks(numbers, mass):
    """Each map by itself; numbers and shares that no rounding can bring to another side."""
    weights = torch.tensor(numbers).float() + 1 / 3
    found = attention_masks(torch.stack([weights.view(1, -1), torch.ones(1, len(numbers))])[:, None], mass)
    assert found.shape == (2, 1, 1, len(numbers)) and found.dtype == torch.bool
    assert found[0, 0, 0].tolist() == slow_mask(weights.numpy(), mass).tolist()
    assert found[1, 0, 0].tolist() == slow_mask(np.ones(len(numbers), np.float32), mass).tolist()
    kept = weights[found[0, 0, 0]]
    assert kept.sum() >= (mass - 1e-5) * weights.sum()
    assert kept.sum() - kept.min() <= (mass + 1e-5) * weights.sum()


def test_masks_of_few_patches():
    weights = torch.tensor([[0.5, 0.1], [0.1, 0.3]])
    assert attention_masks(weights, 0.45).tolist() == [[True, False], [False, False]]
    assert attention_masks(weights, 0.6).tolist() == [[True, False], [False, True]]
    assert attention_masks(weights, 1.0).all()
    assert attention_masks(torch.tensor([[0.0, 1.0]]), 1.0).tolist() == [[False, True]]
    # Of equal ones the first go first.
    assert attention_masks(torch.ones(1, 4), 0.4).tolist() == [[False, False, True, True]]
    big = attention_masks(F.softmax(torch.randn(2, 3, 30, 40), -1))
    assert big.shape == (2, 3, 30, 40) and big.flatten(2).any(-1).all()


@pytest.mark.parametrize(
    ("weights", "mass", "message"),
    [
        (torch.ones(2, 2), 0, r"mass=0 must lie in \(0, 1\]"),
        (torch.ones(2, 2), 60, r"mass=60 must lie in \(0, 1\]"),
        (torch.tensor([[1.0, -0.1]]), 0.6, "nowhere negative"),
        (torch.tensor([[1.0, torch.nan]]), 0.6, "must be finite"),
        (torch.zeros(2, 2, 2), 0.6, "positive somewhere in each map"),
    ],
)
def test_wrong_masks(weights, mass, message):
    with pytest.raises(ValueError, match=message):
        attention_masks(weights, mass)
