import copy

import pytest
import torch
from transformers import AutoModel, SwinConfig, SwinModel

from hf_ssl.backbones import SwinTrunk, check_swin_config, publish_swin, swin_config

from ..device import DEVICE


SMALL = {"embed_dim": 8, "num_heads": [2, 4], "depths": [2, 2], "window_size": 3, "patch_size": 2, "image_size": 12}
SIZES = {
    "one window in the last stage": {},
    "shifted in all stages": {"image_size": 24},
    "shifted by half of an even window": {"image_size": 16, "window_size": 4, "patch_size": 1, "num_heads": [1, 2]},
    "odd depths": {"depths": [1, 3, 1], "num_heads": [2, 2, 4], "image_size": 24},
    "one stage": {"depths": [3], "num_heads": [2], "mlp_ratio": 1.5, "qkv_bias": False},
    "one window in all stages": {"depths": [2], "num_heads": [4], "image_size": 6},
    "other epsilon": {"layer_norm_eps": 0.1},
    "one channel": {"num_channels": 1, "hidden_act": "relu"},
}
of_all_sizes = pytest.mark.parametrize("size", SIZES)


def make_trunk(drop_path_rate=0.0, **overrides):
    """No weight is what it is at the beginning, so that mistakes show."""
    torch.manual_seed(0)
    trunk = SwinTrunk(SwinConfig(**{**SMALL, "attn_implementation": "sdpa", **overrides}), drop_path_rate)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return trunk.double().to(DEVICE)


def make_images(config, batch_size=3):
    generator = torch.Generator().manual_seed(1)
    size = (batch_size, config.num_channels, config.image_size, config.image_size)
    return torch.randn(size, generator=generator, dtype=torch.float64).to(DEVICE)


def stock(trunk):
    """transformers' own class with the weights of the trunk."""
    model = SwinModel(copy.deepcopy(trunk.config)).to(DEVICE, torch.float64).eval()
    model.load_state_dict(trunk.state_dict(), strict=True)
    return model


@of_all_sizes
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_evaluation_is_that_of_transformers(size, attention):
    trunk = make_trunk(drop_path_rate=0.5, **SIZES[size], attn_implementation=attention).eval()
    images = make_images(trunk.config)
    tokens, expected = trunk(images), stock(trunk)(images)
    assert trunk.config._attn_implementation == attention
    torch.testing.assert_close(tokens, expected.last_hidden_state, rtol=0, atol=1e-12)
    torch.testing.assert_close(tokens.mean(1), expected.pooler_output, rtol=0, atol=1e-12)


@of_all_sizes
def test_gradients_are_those_of_transformers(size):
    trunk = make_trunk(**SIZES[size], drop_path_rate=0.0).train()
    images, model = make_images(trunk.config), stock(trunk)
    trunk(images).square().sum().backward()
    model(images).last_hidden_state.square().sum().backward()
    expected = dict(model.named_parameters())
    for name, parameter in trunk.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-9, atol=1e-10, msg=name)


# ---- stochastic depth ----


def without_branches(trunk, image, keep):
    """One image through transformers' class, in whose weights each branch has its factor."""
    model, depth = stock(trunk), sum(trunk.config.depths)
    blocks = [block for stage in model.encoder.layers for block in stage.blocks]
    with torch.no_grad():
        for i, block in enumerate(blocks):
            probability = 1 - 0.6 * i / (depth - 1)
            for last, is_kept in ((block.attention.o_proj, keep[i, 0]), (block.mlp.fc2, keep[i, 1])):
                last.weight *= is_kept / probability
                last.bias *= is_kept / probability
        return model(image[None]).last_hidden_state[0]


@pytest.mark.parametrize("size", ["one window in the last stage", "odd depths"])
def test_stochastic_depth(size):
    """On both branches of each image; what is kept is divided by its probability, growing over the layers of all stages."""
    trunk = make_trunk(drop_path_rate=0.6, **SIZES[size]).train()
    images, depth = make_images(trunk.config, 4), sum(trunk.config.depths)
    keep = torch.rand(depth, 2, 4, generator=torch.Generator().manual_seed(3)) > 0.5
    keep[0] = True  # its probability is 1
    tokens = trunk(images, keep.to(DEVICE)).detach()
    for i, image in enumerate(images):
        expected = without_branches(trunk, image, keep[:, :, i].double())
        torch.testing.assert_close(tokens[i], expected, rtol=0, atol=1e-6)  # the factors are float32


@pytest.mark.parametrize("branch", [0, 1])
def test_dropped_branch_gets_no_gradient(branch):
    trunk = make_trunk(drop_path_rate=0.6).train()
    keep = torch.ones(4, 2, 3, dtype=torch.bool, device=DEVICE)
    keep[3, branch] = False
    trunk(make_images(trunk.config), keep).square().sum().backward()
    block = trunk.encoder.layers[1].blocks[1]
    branches = (block.attention.o_proj.weight, block.mlp.fc2.weight)
    assert not branches[branch].grad.any() and branches[1 - branch].grad.all()


def test_all_branches_are_kept_unless_it_is_said():
    trunk = make_trunk(drop_path_rate=0.6)
    images = make_images(trunk.config)
    expected = trunk.eval()(images)
    assert torch.equal(trunk.train()(images), expected), "neither given nor drawn"
    keep = torch.ones(4, 2, 3, dtype=torch.bool, device=DEVICE)
    assert not torch.allclose(trunk(images, keep), expected), "kept ones are scaled"


def test_rate_of_the_configuration_is_not_used():
    assert make_trunk(drop_path_rate=0.3).drop_path_rates == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert SwinTrunk(SwinConfig(**SMALL, drop_path_rate=0.9)).drop_path_rates == [0.0] * 4


@pytest.mark.parametrize("name", ["hidden_dropout_prob", "attention_probs_dropout_prob"])
def test_dropout(name):
    trunk = make_trunk(**{name: 0.5}, attn_implementation="eager")
    images = make_images(trunk.config)
    assert not torch.equal(trunk.train()(images), trunk(images))
    assert torch.equal(trunk.eval()(images), trunk(images))


# ---- sizes ----


@pytest.mark.parametrize("shape", [(24, 24), (12, 24), (24, 12), (11, 11)])
def test_images_of_other_sizes(shape):
    """transformers' class would take them, with padding."""
    trunk = make_trunk()
    with pytest.raises(ValueError, match=f"12 x 12 pixels, not {shape[0]} x {shape[1]}"):
        trunk(torch.zeros(1, 3, *shape, dtype=torch.float64, device=DEVICE))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"image_size": 14}, "--image_size 12"),
        ({"image_size": 6}, "--image_size 12"),
        ({"image_size": (12, 12)}, "images are square"),
        ({"patch_size": (2, 2)}, "images are square"),
        ({"image_size": 0}, "image_size=0"),
        ({"patch_size": -2}, "patch_size=-2"),
        ({"window_size": 0}, "window_size=0"),
        ({"use_absolute_embeddings": True}, "use_absolute_embeddings"),
        ({"num_heads": [3, 4]}, "num_heads"),
        ({"num_heads": [2, 4, 8]}, "num_heads"),
        ({"num_heads": [0, 4]}, "num_heads"),
        ({"depths": [], "num_heads": []}, "depths"),
        ({"depths": [2, 0]}, "depths"),
    ],
)
def test_wrong_sizes(field, message):
    check_swin_config(SwinConfig(**SMALL))
    with pytest.raises(ValueError, match=message):
        check_swin_config(SwinConfig(**{**SMALL, **field}))


def test_named_size():
    config = swin_config("swin-tiny", image_size=224)
    check_swin_config(config)
    with torch.device("meta"):
        trunk = SwinTrunk(config)
    assert sum(p.numel() for p in trunk.parameters()) == 27_519_354  # as of the authors, without the head
    assert trunk(torch.empty(1, 3, 224, 224, device="meta")).shape == (1, 49, 768)
    with pytest.raises(ValueError, match="--image_size 224"):
        check_swin_config(swin_config("swin-tiny", image_size=256))


# ---- the published encoder ----


@of_all_sizes
def test_published_folder(size, tmp_path):
    trunk = make_trunk(drop_path_rate=0.5, **SIZES[size]).float().train()
    before = torch.get_rng_state()
    encoder = publish_swin(trunk)
    assert torch.equal(before, torch.get_rng_state())
    assert type(encoder) is SwinModel and not encoder.training and trunk.training
    encoder.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is SwinModel and not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    images = make_images(trunk.config).float()
    expected = trunk.eval()(images)
    for model in (encoder, loaded.to(DEVICE)):
        torch.testing.assert_close(model(images).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(model(images).pooler_output, expected.mean(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_published_in_float32(dtype):
    """With buffers of its own that no file holds; what becomes of the copy is nothing to the trunk."""
    trunk = make_trunk().to(dtype)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    encoder = publish_swin(trunk)
    assert encoder.dtype == torch.float32 and {p.dtype for p in encoder.parameters()} == {torch.float32}
    fresh, theirs = dict(SwinModel(SwinConfig(**SMALL)).named_buffers()), dict(trunk.named_buffers())
    buffers = dict(encoder.named_buffers())
    assert buffers.keys() == fresh.keys() and len(buffers) == 4 and not fresh.keys() & encoder.state_dict().keys()
    for name, buffer in buffers.items():
        assert buffer.dtype == torch.int64 and torch.equal(buffer.cpu(), fresh[name])
        assert buffer.data_ptr() != theirs[name].data_ptr()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
    assert all(torch.equal(before[name], tensor) for name, tensor in trunk.state_dict().items())
