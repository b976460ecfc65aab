import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTForImageClassification,
)

from hf_ssl.backbones import ViTTrunk, vit_config
from hf_ssl.parameter_groups import parameter_groups


RATE, DECAY = 1e-3, 0.05
SMALL = {"image_size": 8, "patch_size": 4}


class Pretraining(nn.Module):
    """As the library's models are built: teacher and student, and heads beside them."""

    def __init__(self):
        super().__init__()
        self.teacher = ViTTrunk(vit_config("vit-micro", **SMALL)).requires_grad_(False)
        self.student = ViTTrunk(vit_config("vit-micro", **SMALL))
        self.layers = nn.ModuleList([nn.Linear(96, 8, bias=False), nn.BatchNorm1d(8)])


def timm_vit():
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=3, num_classes=5)


def settings_of(model, groups):
    """Learning rate and weight decay of each trainable parameter; each is in exactly one group."""
    names = {parameter: name for name, parameter in model.named_parameters() if parameter.requires_grad}
    result = {names[p]: (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    assert sum(len(group["params"]) for group in groups) == len(result) == len(names)
    return result


def test_two_groups_in_order():
    model = Pretraining()
    groups = parameter_groups(model, RATE, DECAY)
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in trainable if p.ndim > 1 and not name.endswith(".bias")]
    others = [p for name, p in trainable if p.ndim <= 1 or name.endswith(".bias")]
    assert len(groups) == 2
    for group, params, weight_decay in zip(groups, (decayed, others), (DECAY, 0.0), strict=True):
        assert all(a is b for a, b in zip(group["params"], params, strict=True))
        assert (group["lr"], group["weight_decay"]) == (RATE, weight_decay)
    # Class token and positions have three dimensions.
    decays = settings_of(model, groups)
    assert decays["student.embeddings.cls_token"] == decays["student.embeddings.position_embeddings"] == (RATE, DECAY)


def test_tokens_may_be_exempt():
    """timm's own list for its ViT, and the same parameters of transformers' ViT."""
    model = timm_vit()
    exempt = {name for name, p in model.named_parameters() if p.ndim <= 1} | model.no_weight_decay() & {
        name for name, _ in model.named_parameters()
    }
    assert {"cls_token", "pos_embed"} <= exempt
    settings = settings_of(model, parameter_groups(model, RATE, DECAY, "layer_matrices"))
    assert {name for name, (_, decay) in settings.items() if decay == 0} == exempt
    model = Pretraining()
    both = [settings_of(model, parameter_groups(model, RATE, DECAY, rule)) for rule in ("matrices", "layer_matrices")]
    changed = {name for name in both[0] if both[0][name] != both[1][name]}
    assert changed == {"student.embeddings.cls_token", "student.embeddings.position_embeddings"}


def test_bias_of_several_dimensions_does_not_decay():
    module = nn.Module()
    module.bias = nn.Parameter(torch.zeros(2, 3))
    module.inner = nn.Module()
    module.inner.bias = nn.Parameter(torch.zeros(2, 3))
    module.inner.bias_table = nn.Parameter(torch.zeros(2, 3))
    decays = settings_of(module, parameter_groups(module, RATE, DECAY))
    assert decays == {"bias": (RATE, DECAY), "inner.bias": (RATE, 0.0), "inner.bias_table": (RATE, DECAY)}


def test_all_decay():
    model = Pretraining()
    groups = parameter_groups(model, RATE, DECAY, "all")
    assert [group["weight_decay"] for group in groups] == [DECAY]
    assert len(settings_of(model, groups)) > 60


def test_empty_groups_are_left_out():
    assert len(parameter_groups(nn.Linear(2, 2, bias=False), RATE, DECAY)) == 1
    assert len(parameter_groups(nn.LayerNorm(2), RATE, DECAY)) == 1
    assert parameter_groups(nn.Linear(2, 2).requires_grad_(False), RATE, DECAY) == []


def test_weight_decay_as_timm():
    model = timm_vit()
    theirs = param_groups_weight_decay(model, DECAY)
    assert [group["weight_decay"] for group in theirs] == [0.0, DECAY]
    for ours, other in zip(parameter_groups(model, RATE, DECAY), reversed(theirs), strict=True):
        assert ours["weight_decay"] == other["weight_decay"]
        assert all(a is b for a, b in zip(ours["params"], other["params"], strict=True))


@pytest.mark.parametrize("layer_decay", [0.65, 0.75, 0.999])
def test_layer_decay_as_timm(layer_decay):
    model = timm_vit()
    theirs = param_groups_layer_decay(model, DECAY, layer_decay=layer_decay)
    names = {parameter: name for name, parameter in model.named_parameters()}
    expected = {
        names[p]: (RATE * group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]
    }
    actual = settings_of(model, parameter_groups(model, RATE, DECAY, layer_decay=layer_decay))
    assert len({rate for rate, _ in actual.values()}) == 5
    assert actual == {name: pytest.approx(pair, rel=1e-12) for name, pair in expected.items()}


def test_recorded_scales():
    """
    Recorded from the authors' code, PatchMix's golden cases `momentum` and `no_momentum_multi_crop`: depth 2, layer
    decay 0.75. The weight decay differs: there, class token and positions do not decay in fine-tuning.
    """
    recorded = {
        "vit.embeddings.cls_token": 0.421875,
        "vit.embeddings.position_embeddings": 0.421875,
        "vit.embeddings.patch_embeddings.projection.weight": 0.421875,
        "vit.embeddings.patch_embeddings.projection.bias": 0.421875,
        "vit.layers.0.": 0.5625,
        "vit.layers.1.": 0.75,
        "vit.layernorm.": 0.75,
        "classifier.": 1.0,
    }
    model = ViTForImageClassification(vit_config("vit-micro", **SMALL, num_hidden_layers=2))
    for name, (rate, _) in settings_of(model, parameter_groups(model, 1.0, DECAY, layer_decay=0.75)).items():
        (scale,) = [scale for start, scale in recorded.items() if name.startswith(start)]
        assert rate == scale, name


def test_levels_of_a_pretraining_model():
    """The frozen teacher has no part in it, and a head whose name looks like a layer is none."""
    model = Pretraining()
    rates = settings_of(model, parameter_groups(model, 1.0, DECAY, layer_decay=0.5))
    levels = {"student.embeddings.": 5, "student.layernorm.": 1, "layers.": 0}
    levels |= {f"student.layers.{i}.": 4 - i for i in range(4)}
    for name, (rate, _) in rates.items():
        (depth,) = [depth for start, depth in levels.items() if name.startswith(start)]
        assert rate == 0.5**depth, name


def test_frozen_layers_count():
    """Freezing the lower half changes no learning rate of the upper."""
    model = ViTTrunk(vit_config("vit-micro", **SMALL))
    free = settings_of(model, parameter_groups(model, 1.0, DECAY, layer_decay=0.5))
    model.embeddings.requires_grad_(False)
    model.layers[:2].requires_grad_(False)
    frozen = settings_of(model, parameter_groups(model, 1.0, DECAY, layer_decay=0.5))
    assert frozen == {name: free[name] for name in frozen}
    assert frozen["layers.2.mlp.fc1.weight"] == (0.25, DECAY)


def test_levels_of_swin():
    """Its layers are the blocks of all stages; patch merging goes with the block before it."""
    config = SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[2, 3], num_heads=[2, 2], window_size=4)
    model = SwinForImageClassification(config)
    levels = {"swin.embeddings.": 6, "swin.layernorm.": 1, "classifier.": 0, "swin.encoder.layers.0.downsample.": 4}
    levels |= {f"swin.encoder.layers.0.blocks.{i}.": 5 - i for i in range(2)}
    levels |= {f"swin.encoder.layers.1.blocks.{i}.": 3 - i for i in range(3)}
    for name, (rate, _) in settings_of(model, parameter_groups(model, 1.0, DECAY, layer_decay=0.5)).items():
        (depth,) = [depth for start, depth in levels.items() if name.startswith(start)]
        assert rate == 0.5**depth, name


def test_ten_layers_are_in_order():
    """By number, not by name."""
    model = ViTTrunk(vit_config("vit-micro", **SMALL, num_hidden_layers=11))
    rates = settings_of(model, parameter_groups(model, 1.0, DECAY, layer_decay=0.5))
    assert [rates[f"layers.{i}.mlp.fc1.weight"][0] for i in range(11)] == [0.5 ** (11 - i) for i in range(11)]


def test_group_order_with_layer_decay():
    """The top comes first, whose learning rate Trainer logs; in each level the parameters that decay come first."""
    groups = parameter_groups(Pretraining(), RATE, DECAY, layer_decay=0.5)
    keys = [(group["lr"], group["weight_decay"]) for group in groups]
    assert keys == sorted(keys, reverse=True)
    assert keys[:2] == [(RATE, DECAY), (RATE, 0.0)]
    assert torch.optim.AdamW(groups).param_groups[0]["lr"] == RATE


def test_errors():
    model = Pretraining()
    with pytest.raises(ValueError, match="weight_decay_rule='some' is unknown; use one of matrices, "):
        parameter_groups(model, RATE, DECAY, "some")
    for layer_decay in (0.0, -0.5, 1.5, float("nan")):
        with pytest.raises(ValueError, match=r"layer_decay=.* must be in \(0, 1\]"):
            parameter_groups(model, RATE, DECAY, layer_decay=layer_decay)
    resnet = ResNetForImageClassification(ResNetConfig(embedding_size=4, hidden_sizes=[4], depths=[1]))
    for unknown in (nn.Linear(2, 2), resnet):
        with pytest.raises(ValueError, match=f"{type(unknown).__name__} has no trainable encoder layers"):
            parameter_groups(unknown, RATE, DECAY, layer_decay=0.5)
        assert parameter_groups(unknown, RATE, DECAY)
