import copy
import logging
import math

import pytest
import timm
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from timm.data import create_transform, resolve_data_config
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoModel,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    TimmWrapperModel,
)

from hf_ssl import ISLConfig, ISLForPreTraining, RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import TimmEncoder, describe_encoder, feature_size, publish, timm_config
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models.batch_norm import SyncBatchNorm, SyncBatchNormAct, init_batch_norm, synchronize_batch_norm

from ..device import DEVICE
from . import test_isl


# ---- the configuration ----


@pytest.mark.parametrize(
    ("name", "image_size", "patch_size", "num_features", "num_prefix_tokens"),
    [
        ("vit_tiny_patch16_224", 224, 16, 192, 1),
        ("vit_tiny_patch16_224", 96, 16, 192, 1),
        ("deit_tiny_distilled_patch16_224", 64, 16, 192, 2),
        ("vit_little_patch16_reg4_gap_256", 64, 16, 320, 4),
        ("vit_relpos_small_patch16_224", 64, 16, 384, 0),  # pools its tokens, and has no other
        ("test_vit", 32, 16, 64, 1),
        # No grid of tokens in a row: feature maps.
        ("resnet18", 33, None, 512, 0),
        ("swin_tiny_patch4_window7_224", 224, None, 768, 0),
        # The feature is wider than the feature map.
        ("mobilenetv3_small_050", 64, None, 1024, 0),
        ("vgg11", 64, None, 4096, 0),
    ],
)
def test_configuration(name, image_size, patch_size, num_features, num_prefix_tokens):
    config = timm_config(f"timm/{name}", image_size)
    assert type(config) is TimmWrapperConfig and config.architecture == name and config.num_labels == 0
    assert config.image_size == image_size and config.patch_size == patch_size
    assert config.num_features == feature_size(config) == num_features
    assert config.num_prefix_tokens == num_prefix_tokens
    takes_size = patch_size is not None or "swin" in name
    assert config.model_args == ({"img_size": image_size} if takes_size else None)
    assert describe_encoder(config) == f"timm's {name} for {image_size}-pixel images"
    with torch.device("meta"):
        output = TimmWrapperModel(config).eval()(torch.empty(2, 3, image_size, image_size))
    assert output.pooler_output.shape == (2, num_features)
    if patch_size is not None:
        num_patches = (image_size // patch_size) ** 2
        assert output.last_hidden_state.shape == (2, num_prefix_tokens + num_patches, num_features)


def test_configuration_leaves_the_random_state_alone():
    before = torch.get_rng_state()
    timm_config("timm/test_vit", 32)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("name", "image_size"), [("vit_tiny_patch16_224", 40), ("levit_128s", 224), ("coat_lite_tiny", 224)]
)
def test_tokens_that_are_no_grid_of_the_image(name, image_size):
    """The last pixels are left out; windows overlap the border; there is a class token that is not declared."""
    config = timm_config(f"timm/{name}", image_size)
    assert config.patch_size is None
    with pytest.raises(ValueError, match="no grid of tokens in a row that covers the whole image"):
        RelViTConfig(backbone_config=config)


@pytest.mark.parametrize(
    ("name", "image_size", "message"),
    [
        (
            "vit_tiny_patch61_224",
            64,
            r"no model 'vit_tiny_patch61_224'; did you mean timm/vit_tiny_patch16_224 or timm/",
        ),
        ("resnet_18", 64, r"did you mean .*timm/resnet18"),
        ("xyz", 64, r"no model 'xyz'\.$"),
        ("", 64, r"no model ''\.$"),
        ("resnet18.a1_in1k", 64, r"pretrained weights 'a1_in1k', .* name it timm/resnet18\.$"),
        ("vit_tiny_patch16_224", 8, r"vit_tiny_patch16_224 does not take images of 8 pixels: \S+"),
        ("efficientformer_l1", 256, r"does not take images of 256 pixels: \S+"),
        ("bat_resnext26ts", 64, r"does not take images of 64 pixels: AssertionError"),
        ("efficientvim_m1", 64, r"no single feature map"),
    ],
)
def test_wrong_names_and_sizes(name, image_size, message):
    with pytest.raises(ValueError, match=message):
        timm_config(f"timm/{name}", image_size)


# ---- how it begins ----


TINY_VIT = {"img_size": 16, "patch_size": 4, "embed_dim": 36, "depth": 2, "num_heads": 3}
# Of which no batch norm begins with zeros, as timm's do: the tester wants every gradient at the first step.
# Images leave maps of more than one pixel: of those, torch's bfloat16 convolution on CPUs leaves gradients unset.
TINY_RESNET = {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 24], "zero_init_last": False}
# Neither class token nor register; the patches' mean is normalized.
TINY_GAP = {**TINY_VIT, "reg_tokens": 0, "init_values": 0.1}
# Without class token, and with attention that pools.
TINY_MAP = {**TINY_VIT, "weight_init": "jax"}
ARCHITECTURES = {
    "vit": ("vit_tiny_patch16_224", TINY_VIT, 36),
    "gap": ("vit_little_patch16_reg4_gap_256", TINY_GAP, 36),
    "map": ("vit_base_patch16_siglip_224", TINY_MAP, 36),
    "resnet": ("resnet18", TINY_RESNET, 24),
    # Batch norm and activation in one, and buffers that are not saved.
    "regnet": ("regnetx_002", None, 368),
    "swin": (
        "swin_tiny_patch4_window7_224",
        {"img_size": 16, "patch_size": 2, "window_size": 4, "embed_dim": 12, "depths": [2, 2], "num_heads": [2, 4]},
        24,
    ),
}


def make_config(name):
    architecture, model_args, width = ARCHITECTURES[name]
    is_vit = name in ("vit", "gap", "map")
    return TimmWrapperConfig(
        architecture=architecture,
        model_args=copy.deepcopy(model_args),
        num_labels=0,
        image_size={"regnet": 32, "resnet": 64}.get(name, 16),
        num_features=width,
        patch_size=4 if is_vit else None,
        num_prefix_tokens=1 if name == "vit" else 0,
    )


def make_encoder(name, seed=0):
    torch.manual_seed(seed)
    return TimmEncoder(make_config(name))


def timm_model(name, seed=0, **model_args):
    """timm's own."""
    torch.manual_seed(seed)
    architecture, own, _ = ARCHITECTURES[name]
    return timm.create_model(architecture, num_classes=0, **{**(own or {}), **model_args})


def photos(name):
    side = make_config(name).image_size
    return torch.randn(4, 3, side, side, generator=torch.Generator().manual_seed(1)).to(DEVICE)


def methods(name):
    """Models that train the encoder, made with seed 0, and their encoders."""
    made = []
    if name in ("vit", "gap", "map"):
        for tasks in (["relations", "positions"], ["classification", "angles"]):
            torch.manual_seed(0)
            model = RelViTForPreTraining(RelViTConfig(backbone_config=make_config(name), tasks=tasks, num_labels=3))
            made.append((model, model.student))
    torch.manual_seed(0)
    model = ISLForPreTraining(ISLConfig(backbone_config=make_config(name)))
    return [*made, (model, model.student.backbone)]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initialization_is_timm_s(name):
    """In a model that is to be trained too, whose heads begin as PyTorch's layers do."""
    expected = timm_model(name).state_dict()
    for encoder in (make_encoder(name), *(encoder for _, encoder in methods(name))):
        actual = encoder.timm_model.state_dict()
        assert actual.keys() == expected.keys()
        assert all(torch.equal(actual[key], expected[key]) for key in expected)
    for model, encoder in methods(name):
        own = set(encoder.modules())
        for module in model.modules():
            if isinstance(module, nn.Linear) and module not in own:
                bound = module.in_features**-0.5
                assert 0.8 * bound < module.weight.abs().max() <= bound


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_buffers_that_no_file_holds(name, tmp_path):
    expected = dict(timm_model(name).named_buffers())
    encoder = make_encoder(name)
    encoder.save_pretrained(tmp_path)
    for model in (encoder, TimmEncoder.from_pretrained(tmp_path), publish(encoder)):
        buffers = dict(model.timm_model.named_buffers())
        assert buffers.keys() == expected.keys()
        assert all(torch.equal(buffers[key], expected[key]) for key in expected)


@pytest.mark.parametrize("name", ["vit", "map", "resnet", "regnet", "swin"])
def test_what_a_file_lacks_begins_as_in_a_new_model(name, tmp_path):
    from safetensors.torch import load_file, save_file

    encoder = make_encoder(name)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            tensor.add_(1)
    encoder.save_pretrained(tmp_path, save_original_format=False)
    kept = load_file(tmp_path / "model.safetensors")
    dropped = sorted(kept)[::3]
    remaining = {key: tensor for key, tensor in kept.items() if key not in dropped}
    save_file(remaining, tmp_path / "model.safetensors", metadata={"format": "pt"})
    torch.manual_seed(0)
    loaded, info = TimmEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == set(dropped)
    expected = timm_model(name).state_dict()
    for key, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, kept[key] if key in remaining else expected[key.removeprefix("timm_model.")]), key


@pytest.mark.parametrize("name", ["vit", "gap", "map"])
def test_pooling_parameters(name):
    """Those without a gradient where only the patches count."""
    encoder = make_encoder(name).to(DEVICE)
    before = torch.get_rng_state()
    pooling = {id(parameter) for parameter in encoder.pooling_parameters()}
    assert torch.equal(before, torch.get_rng_state())
    encoder(photos(name)).last_hidden_state.square().sum().backward()
    names = [key for key, parameter in encoder.named_parameters() if id(parameter) in pooling]
    assert names == [key for key, parameter in encoder.named_parameters() if parameter.grad is None]
    prefix = {"vit": None, "gap": "timm_model.fc_norm.", "map": "timm_model.attn_pool."}[name]
    assert bool(names) == (prefix is not None) and all(key.startswith(prefix) for key in names)


# ---- the published folder ----


SIDES = {"vit": 16, "gap": 16, "map": 16, "resnet": 48, "regnet": 32, "swin": 16}


def published(name, folder, crop_ratio=None, interpolation="bilinear"):
    """A run's folder, of a model whose weights and statistics are not those of the beginning."""
    torch.manual_seed(0)
    if name in ("vit", "gap", "map"):
        model = RelViTForPreTraining(RelViTConfig(backbone_config=make_config(name)))
        student = model.student
    else:
        model = ISLForPreTraining(ISLConfig(backbone_config=make_config(name)))
        student = model.student.backbone
    test_isl.perturb(student)
    mean, std = [0.3, 0.5, 0.7], [0.1, 0.2, 0.4]
    export_run(model, evaluation_processor(SIDES[name], mean, std, crop_ratio, interpolation), folder)
    return model, student


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_published_folder(name, tmp_path, caplog):
    """transformers and timm load it, and get what was trained."""
    _, student = published(name, tmp_path)
    pixel_values = photos(name).cpu()
    expected = copy.deepcopy(student).eval()(pixel_values)
    with caplog.at_level(logging.WARNING):
        loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        from_timm = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert type(loaded) is TimmWrapperModel and not caplog.records
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    output = loaded(pixel_values)
    torch.testing.assert_close(output.last_hidden_state, expected.last_hidden_state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.pooler_output, expected.pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(from_timm(pixel_values), output.pooler_output, rtol=1e-5, atol=1e-5)
    tokens = from_timm.forward_features(pixel_values)
    torch.testing.assert_close(tokens, output.last_hidden_state, rtol=1e-5, atol=1e-5)
    classifier = timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=3).eval()
    assert classifier(pixel_values).shape == (4, 3)
    classifier = TimmWrapperForImageClassification.from_pretrained(tmp_path, num_labels=3)
    assert classifier(pixel_values).logits.shape == (4, 3)


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_published_run_can_go_on(name, tmp_path):
    model, _ = published(name, tmp_path)
    loaded = type(model).from_pretrained(tmp_path / "pretraining")
    assert loaded.config.to_dict().keys() == model.config.to_dict().keys()
    for key, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], tensor), key


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(("crop_ratio", "mode"), [(0.875, "center"), (0.9, "center"), (1.0, "squash")])
@pytest.mark.parametrize("size", [(427, 640), (640, 427), (300, 300), (333, 501)])
def test_transform_is_that_of_timm(crop_ratio, mode, interpolation, size, tmp_path):
    """Of the folder's processor, and of its `pretrained_cfg`, which timm reads."""
    published("resnet", tmp_path, crop_ratio, interpolation)
    photo = Image.fromarray(load_sample_image("china.jpg")).resize(size[::-1])
    model = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    settings = resolve_data_config({}, model=model)
    assert settings["crop_mode"] == mode and settings["interpolation"] == interpolation
    assert (*settings["mean"], *settings["std"]) == (0.3, 0.5, 0.7, 0.1, 0.2, 0.4)
    expected = create_transform(**settings)(photo)
    actual = AutoImageProcessor.from_pretrained(tmp_path)(photo, return_tensors="pt").pixel_values[0]
    assert actual.shape == expected.shape == (3, 48, 48)
    difference = (actual - expected).abs() * torch.tensor([0.1, 0.2, 0.4])[:, None, None] * 255
    assert difference.max() <= 2.01


def test_transform_of_every_size():
    """timm divides and rounds down, where a processor holds whole numbers."""
    from hf_ssl.hub.export import timm_transform

    for ratio in (0.875, 0.9, 0.95, 227 / 256):
        for side in range(8, 513):
            processor = evaluation_processor(side, [0.5] * 3, [0.5] * 3, ratio)
            written = timm_transform(processor)
            assert math.floor(side / written["crop_pct"]) == processor.size["shortest_edge"], (ratio, side)


# ---- batch norm with an activation ----


def make_norms(**settings):
    torch.manual_seed(0)
    norm = BatchNormAct2d(6, **settings)
    with torch.no_grad():
        for tensor in norm.state_dict().values():
            tensor.add_(torch.rand(tensor.shape)) if tensor.is_floating_point() else tensor.add_(3)
    module = nn.Sequential(copy.deepcopy(norm))
    synchronize_batch_norm(module)
    return norm, module[0]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"eps": 0.1, "momentum": 0.3},
        {"momentum": None},
        {"act_layer": "silu"},
        {"apply_act": False},
        {"act_layer": "leaky_relu", "act_kwargs": {"negative_slope": 0.3}, "inplace": False},
    ],
)
def test_batch_norm_with_activation(settings, training):
    """In a single process, it is timm's."""
    norm, synchronized = (module.train(training) for module in make_norms(**settings))
    assert type(synchronized) is SyncBatchNormAct and synchronized.act is not None
    x = torch.randn(5, 6, 3, 3, generator=torch.Generator().manual_seed(1))
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    outputs = [module(value) for module, value in zip((norm, synchronized), inputs, strict=True)]
    assert torch.equal(*outputs)
    for output in outputs:
        output.square().sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad) and torch.equal(norm.weight.grad, synchronized.weight.grad)
    assert norm.state_dict().keys() == synchronized.state_dict().keys()
    for key, tensor in norm.state_dict().items():
        assert torch.equal(synchronized.state_dict()[key], tensor), key


def test_dropout_of_a_batch_norm_with_activation():
    norm = BatchNormAct2d(6, drop_layer=lambda: nn.Dropout(0.5))
    module = nn.Sequential(copy.deepcopy(norm))
    synchronize_batch_norm(module)
    x, outputs = torch.randn(5, 6, 3, 3), []
    for candidate in (norm, module):
        torch.manual_seed(2)
        outputs.append(candidate(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("norm_class", [nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d])
@pytest.mark.parametrize(("affine", "tracking"), [(True, True), (False, True), (True, False), (False, False)])
def test_synchronizing_keeps_what_a_norm_lacks(norm_class, affine, tracking):
    """A weight and a bias, or running statistics."""
    norm = norm_class(6, eps=0.1, momentum=0.3, affine=affine, track_running_stats=tracking)
    module = nn.Sequential(copy.deepcopy(norm))
    synchronize_batch_norm(module)
    synchronized = module[0]
    assert isinstance(synchronized, SyncBatchNorm)
    for option in ("num_features", "eps", "momentum", "affine", "track_running_stats"):
        assert getattr(synchronized, option) == getattr(norm, option), option
    assert synchronized.state_dict().keys() == norm.state_dict().keys()
    init_batch_norm(synchronized)  # only what there is
    x = torch.randn(5, 6, *([] if norm_class is nn.BatchNorm1d else [3, 3]))
    for training in (True, False):
        assert torch.equal(synchronized.train(training)(x), norm.train(training)(x))


@pytest.mark.parametrize("name", ["resnet", "regnet"])
def test_synchronizing_keeps_parameters(name):
    """The same objects: an optimizer that holds them goes on."""
    model = timm_model(name)
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    activations = {key: module.act for key, module in model.named_modules() if isinstance(module, BatchNormAct2d)}
    synchronize_batch_norm(model)
    assert all(parameter is parameters[key] for key, parameter in model.named_parameters())
    assert all(buffer is buffers[key] for key, buffer in model.named_buffers())
    assert len(dict(model.named_parameters())) == len(parameters) and len(dict(model.named_buffers())) == len(buffers)
    assert not any(isinstance(module, nn.BatchNorm2d | BatchNormAct2d) for module in model.modules())
    for key, act in activations.items():
        assert model.get_submodule(key).act is act
    assert bool(activations) == (name == "regnet")
    assert any(type(module) is SyncBatchNorm for module in model.modules()) == (name == "resnet")


def test_frozen_statistics_stay_so():
    module = nn.Sequential(FrozenBatchNormAct2d(6))
    synchronize_batch_norm(module)
    assert type(module[0]) is FrozenBatchNormAct2d


# ---- RelViT ----


def test_batch_norm_of_a_vision_transformer():
    """RelViT trains it synchronized, and publishes timm's own."""
    backbone = timm_config("timm/xcit_nano_12_p16_224", 32)
    backbone.model_args |= {"embed_dim": 16, "depth": 1, "num_heads": 2}
    backbone.num_features = 16
    model = RelViTForPreTraining(RelViTConfig(backbone_config=backbone))

    def norms(module):
        return [type(child) for child in module.modules() if isinstance(child, nn.modules.batchnorm._BatchNorm)]

    published = norms(model.export_encoder())
    assert published and set(published) == {nn.BatchNorm2d}
    assert norms(model) == [SyncBatchNorm] * len(published)
    assert model(torch.randn(2, 3, 32, 32)).loss.isfinite()


# ---- ISL ----


class TestISLTimm(test_isl.TestISL):
    """With a ResNet of timm."""

    encoder_class, encoder_module = TimmWrapperModel, "transformers."
    name = "resnet"
    # A process without hf_ssl loads timm's encoders in test_relvit.py.
    test_export_without_the_library = None
    test_classifier_without_the_library = None
    test_remote_code_is_refused_unless_trusted = None

    def config(self, **overrides):
        return ISLConfig(**{"backbone_config": make_config(self.name), "projection_dim": 12, **overrides})

    @pytest.fixture
    def model(self):
        torch.manual_seed(0)
        model = ISLForPreTraining(self.config())
        model.make_bank(test_isl.NUM_IMAGES, seed=1)
        model.bank.neighbors.add(*torch.tensor(test_isl.PAIRS).unbind(1))
        return model.to(DEVICE)
