import copy
import os
import re
import subprocess
import sys

import pytest
import torch
from transformers import SwinConfig, TimmWrapperConfig, ViTConfig

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import swin_config, t2t_vit_config
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig
from hf_ssl.models.relvit import RelViTViews, RelViTViewsConfig
from hf_ssl.models.relvit.configuration_relvit import TASKS
from hf_ssl.models.relvit.convert_relvit import to_official
from hf_ssl.models.relvit.modeling_relvit import pool_tokens

from ..device import DEVICE
from ..parity.cases import find_cases
from ..parity.test_relvit_targets import check_law
from .common import SSLModelTester


BACKBONE = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 12,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
    "pooler_act": "linear",
}
SWIN = {"embed_dim": 12, "depths": [2, 2], "num_heads": [2, 3], "window_size": 3, "patch_size": 2, "image_size": 12}
T2T = {"image_size": 64, "token_dim": 8, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}


def timm_vit(architecture="vit_tiny_patch16_224", num_prefix_tokens=1, **overrides):
    """A vision transformer of timm, as small as the ViT; what [`hf_ssl.backbones.timm_config`] reads off a model."""
    model_args = {"img_size": 12, "patch_size": 4, "embed_dim": 36, "depth": 2, "num_heads": 3}
    sizes = {"image_size": 12, "patch_size": 4, "num_features": 36, "num_prefix_tokens": num_prefix_tokens}
    return TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=0, **{**sizes, **overrides})


def timm_gap():
    """Without class token; what is classified is the normalized mean of the patches."""
    config = timm_vit("vit_little_patch16_reg4_gap_256", num_prefix_tokens=0)
    config.model_args = {**config.model_args, "reg_tokens": 0}
    return config


UPSTREAM = {}
JOINT = {**RelViTConfig.modes["joint"], "tasks": list(TASKS), "num_labels": 5}
JOINT.pop("patch_augmentation")
# What the tests below are run for: backbone and other settings.
MODELS = {
    "vit upstream": (ViTConfig(**BACKBONE), {"drop_path_rate": 0.3}),
    "vit joint": (ViTConfig(**BACKBONE), JOINT),
    "vit mega-patches": (ViTConfig(**BACKBONE), {"mega_patches": 2}),
    "swin upstream": (SwinConfig(**SWIN), {"drop_path_rate": 0.3}),
    "swin joint": (SwinConfig(**SWIN), JOINT),
    "t2t upstream": (T2TViTConfig(**T2T), UPSTREAM),
    "t2t joint": (T2TViTConfig(**T2T), JOINT),
    "t2t transformer": (T2TViTConfig(**T2T, token_module="transformer"), {"add_class_token_to_patches": True}),
    "timm upstream": (timm_vit(), UPSTREAM),
    "timm joint": (timm_vit(), JOINT),
    "timm gap upstream": (timm_gap(), UPSTREAM),
    "timm gap joint": (timm_gap(), JOINT),
}


def make_config(name, **overrides):
    backbone, settings = MODELS[name]
    return RelViTConfig(**{"backbone_config": copy.deepcopy(backbone), **settings, **overrides})


def make_model(name, **overrides):
    torch.manual_seed(0)
    return RelViTForPreTraining(make_config(name, **overrides)).to(DEVICE)


LOADING = """
import sys, torch
from transformers import AutoModel

inputs, results = torch.load("inputs.pt", weights_only=True), {}
for folder, (pixel_values, needs_trust) in inputs.items():
    model = AutoModel.from_pretrained(folder, **({"trust_remote_code": True} if needs_trust else {}))
    output = model(pixel_values)
    results[folder] = [output.last_hidden_state.detach(), output.pooler_output.detach()]
assert not any(name.split(".")[0] == "hf_ssl" for name in sys.modules)
torch.save(results, "results.pt")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Each published encoder, images, and the tokens and the feature that one other process, without hf_ssl, made of them
    with its folder; by name."""
    folder, inputs, encoders = tmp_path_factory.mktemp("published"), {}, {}
    for name in MODELS:
        encoders[name] = encoder = make_model(name).cpu().export_encoder()
        encoder.save_pretrained(folder / name)
        side = encoder.config.image_size
        inputs[name] = (torch.randn(4, 3, side, side), encoder.config.model_type == "t2t_vit")
    torch.save(inputs, folder / "inputs.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOADING]
    subprocess.run(command, check=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    results = torch.load(folder / "results.pt", weights_only=True)
    return {name: (encoders[name], inputs[name][0], results[name]) for name in MODELS}


class RelViTTester(SSLModelTester):
    """Tiny; the classes below are collected."""

    model_class = RelViTForPreTraining
    name = ""
    wrong_values = {
        "tasks": ["relations", "colors"],
        "attention_pattern": "row",
        "drop_path_rate": 1.0,
        "relation_label_smoothing": -0.1,
        "mega_patches": 4,
        "feature": "mean",
    }

    def config(self, **overrides):
        return make_config(self.name, **overrides)

    def batch(self, model):
        generator = torch.Generator().manual_seed(0)
        side, cell_size = model.config.grid_size, model.config.cell_size
        batch = {
            "pixel_values": torch.randn(6, 3, cell_size * side, cell_size * side, generator=generator),
            "patch_order": torch.stack([torch.randperm(side * side, generator=generator) for _ in range(6)]),
        }
        if "classification" in model.config.tasks:
            batch["labels"] = torch.randint(model.config.num_labels, (6,), generator=generator)
        return {name: tensor.to(DEVICE) for name, tensor in batch.items()}

    def loss(self, model, batch):
        torch.manual_seed(7)  # of the dropout in the performers
        return super().loss(model, batch)

    def test_export_without_the_library(self, elsewhere):
        encoder, pixel_values, (tokens, pooled) = elsewhere[self.name]
        expected = encoder(pixel_values)
        torch.testing.assert_close(tokens, expected.last_hidden_state)
        torch.testing.assert_close(pooled, expected.pooler_output)

    def test_published_encoder_is_what_was_trained(self, model):
        """All tokens, and what is classified."""
        model.eval()
        encoder = model.export_encoder()
        pixel_values = self.photos(encoder)
        output, (tokens, classified, _) = encoder(pixel_values), model.encode(pixel_values)
        torch.testing.assert_close(output.last_hidden_state, tokens, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(output.pooler_output, classified, rtol=1e-5, atol=1e-5)


class TestRelViTUpstream(RelViTTester):
    name = "vit upstream"

    def test_positions_do_not_matter(self, model):
        """Without position embeddings, shuffling the patches changes no loss."""
        model.eval()
        batch = self.batch(model)
        from hf_ssl.views import join_patches, permute_patches, split_patches

        patches = split_patches(batch["pixel_values"], 4)
        shuffled = join_patches(permute_patches(patches, batch["patch_order"]))
        plain = model(pixel_values=batch["pixel_values"])
        moved = model(pixel_values=shuffled, patch_order=batch["patch_order"])
        torch.testing.assert_close(plain.loss, moved.loss)

    def test_published_table_is_zero(self, model):
        assert not model.export_encoder().embeddings.position_embeddings.any()
        assert model.student.embeddings.position_embeddings.any()


class TestRelViTJoint(RelViTTester):
    name = "vit joint"

    def test_labels_are_needed(self, model):
        with pytest.raises(ValueError, match="needs labels"):
            model(pixel_values=self.batch(model)["pixel_values"])


class TestRelViTMegaPatches(RelViTTester):
    name = "vit mega-patches"


class TestRelViTSwin(RelViTTester):
    name = "swin upstream"


class TestRelViTSwinJoint(RelViTTester):
    name = "swin joint"


class TestRelViTT2T(RelViTTester):
    """With dropout, which its performers have."""

    name, encoder_module = "t2t upstream", "hf_ssl.backbones."


class TestRelViTT2TJoint(TestRelViTT2T):
    name = "t2t joint"


class TestRelViTT2TTransformer(TestRelViTT2T):
    name = "t2t transformer"


class TestRelViTTimm(RelViTTester):
    name = "timm upstream"

    def test_activation_checkpointing(self, model):
        """It is timm's own."""
        blocks = model.student.timm_model.blocks
        batch, calls = self.batch(model), []
        model.train()
        blocks[1].register_forward_pre_hook(lambda *_: calls.append(None))
        results = []
        for checkpointed in (False, True):
            if checkpointed:
                model.activation_checkpointing_enable()
            loss = self.loss(model, batch)
            loss.backward()
            results.append([loss.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
            model.zero_grad()
        for plain, other in zip(*results, strict=True):
            torch.testing.assert_close(plain, other, rtol=1e-5, atol=1e-7)
        assert len(calls) == 3, "run twice for the same gradient"
        model.activation_checkpointing_disable()
        self.loss(model, batch).backward()
        assert len(calls) == 4


class TestRelViTTimmJoint(TestRelViTTimm):
    name = "timm joint"


class TestRelViTTimmGap(TestRelViTTimm):
    name = "timm gap upstream"

    def test_unused_pooling_is_frozen(self, model):
        """Of several processes, each would wait for its gradients."""
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {"student.timm_model.fc_norm.weight", "student.timm_model.fc_norm.bias"}


class TestRelViTTimmGapJoint(TestRelViTTimm):
    name = "timm gap joint"


def test_wrong_grid_is_named():
    model = RelViTForPreTraining(RelViTConfig(backbone_config=ViTConfig(**BACKBONE)))
    with pytest.raises(ValueError, match="16 patches.*3x3"):
        model(pixel_values=torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"image_size": 13}, "multiple of patch_size=4"),
        ({"image_size": 4}, "no two patches"),
        ({"hidden_size": 8, "num_attention_heads": 2}, "too narrow"),
    ],
)
def test_backbone_that_does_not_fit(field, message):
    with pytest.raises(ValueError, match=message):
        RelViTConfig(backbone_config=ViTConfig(**{**BACKBONE, **field}))


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="'resnet' is not supported"):
        RelViTConfig(backbone_config={"model_type": "resnet"})


def test_teacher_is_refused():
    model = RelViTForPreTraining(RelViTConfig(backbone_config=ViTConfig(**BACKBONE)))
    with pytest.raises(ValueError, match="no teacher"):
        model.export_encoder("teacher")


def test_smoothed_relation_loss_dropout():
    """Dropout acts on the smoothed loss in training only, and not at all without smoothing."""
    torch.manual_seed(0)
    for smoothing, random in ((0.1, True), (0.0, False)):
        config = RelViTConfig(
            backbone_config=ViTConfig(**BACKBONE),
            tasks=["relations"],
            relation_label_smoothing=smoothing,
            relation_loss_dropout=0.5,
        )
        model = RelViTForPreTraining(config)
        pixel_values = torch.randn(2, 3, 12, 12)
        assert (model(pixel_values).loss != model(pixel_values).loss).item() is random
        model.eval()
        assert model(pixel_values).loss == model(pixel_values).loss


@pytest.mark.parametrize("site", ["projection", "positions", "attention", "attention_branch", "gelu", "mlp_branch"])
def test_each_dropout_site(site):
    """Each of the original's dropouts, alone, changes what the encoder computes in training, and nothing in evaluation."""
    model = RelViTForPreTraining(RelViTConfig(backbone_config=ViTConfig(**BACKBONE), use_position_embeddings=True))
    student = model.student
    pixel_values = torch.randn(2, 3, 12, 12)
    expected = student(pixel_values)
    layer = student.layers[0]
    calls = []

    class Recorder(torch.nn.Module):
        """Stands in for a dropout and zeroes what passes its n-th call."""

        def __init__(self, zeroed):
            super().__init__()
            self.zeroed = zeroed

        def forward(self, x):
            calls.append(x.shape)
            return x * 0 if len(calls) - 1 == self.zeroed else x

    if site == "projection":
        student.projection_dropout = Recorder(0)
    elif site == "positions":
        student.embeddings.dropout = Recorder(0)
    elif site == "attention":
        layer.attention.attention_dropout = 0.9
    else:
        layer.dropout = Recorder(["attention_branch", "gelu", "mlp_branch"].index(site))
    student.train()
    assert not torch.allclose(student(pixel_values), expected)
    if site in ("attention_branch", "gelu", "mlp_branch"):
        # In the order of the original: after the attention's projection, after the GELU, after the second linear layer.
        assert calls == [(2, 10, 36), (2, 10, 48), (2, 10, 36)]


def test_no_dropout_of_positions_that_are_not_added():
    backbone = ViTConfig(**BACKBONE, hidden_dropout_prob=0.5)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=backbone))
    pixel_values = torch.randn(2, 3, 12, 12)
    assert torch.equal(model.student.embed(pixel_values), model.student.embed(pixel_values))


def test_dropouts_reach_the_encoder():
    backbone = ViTConfig(**BACKBONE, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=backbone, projection_dropout=0.5))
    tokens = torch.randn(2, 3, 12, 12)
    model.train()
    assert not torch.equal(model.student(tokens), model.student(tokens))
    model.eval()
    assert torch.equal(model.student(tokens), model.student(tokens))


# ---- other encoders: what they are by default, what they cannot do ----


@pytest.mark.parametrize(
    ("name", "use_position_embeddings", "features"),
    [
        ("vit upstream", False, ["patch_mean", "class_token"]),
        ("vit joint", True, ["class_token", "patch_mean"]),
        ("vit mega-patches", False, ["patch_mean", "class_token"]),
        ("swin upstream", True, ["pooled"]),
        ("swin joint", True, ["pooled"]),
        ("t2t upstream", True, ["patch_mean", "class_token"]),
        ("t2t joint", True, ["class_token", "patch_mean"]),
        ("timm upstream", True, ["patch_mean", "pooled"]),
        ("timm joint", True, ["pooled", "patch_mean"]),
        ("timm gap upstream", True, ["patch_mean", "pooled"]),
        ("timm gap joint", True, ["pooled", "patch_mean"]),
    ],
)
def test_defaults_of_encoders(name, use_position_embeddings, features):
    """And features that may be asked for; the first is the default."""
    config = make_config(name)
    assert config.use_position_embeddings is use_position_embeddings and config.feature == features[0]
    for feature in ("class_token", "patch_mean", "pooled"):
        if feature in features:
            assert make_config(name, feature=feature).feature == feature
        else:
            offered = ", ".join(map(repr, sorted(features, reverse="class_token" not in features)))
            with pytest.raises(ValueError, match=re.escape(f"feature={feature!r}: this encoder has {offered}.")):
                make_config(name, feature=feature)


def test_positions_of_a_vit_can_be_chosen():
    assert make_config("vit upstream", use_position_embeddings=True).use_position_embeddings
    assert not make_config("vit joint", use_position_embeddings=False).use_position_embeddings


ONLY_WITH_A_VIT = {
    "mega_patches": (2, "leave --mega_patches out"),
    "attention_pattern": ("diagonal", "--attention_pattern full"),
    "projection_dropout": (0.1, "--projection_dropout 0"),
    "use_position_embeddings": (False, "--shuffle_patches true"),
    "drop_path_rate": (0.1, "--drop_path_rate 0"),
    "add_class_token_to_patches": (True, "--add_class_token_to_patches false"),
}


@pytest.mark.parametrize("field", ONLY_WITH_A_VIT)
@pytest.mark.parametrize(
    ("name", "kind", "possible"),
    [
        ("vit upstream", "vit", [*ONLY_WITH_A_VIT]),
        ("swin upstream", "swin", ["drop_path_rate"]),
        ("swin joint", "swin", ["drop_path_rate"]),
        ("t2t upstream", "t2t_vit", ["add_class_token_to_patches"]),
        ("t2t joint", "t2t_vit", ["add_class_token_to_patches"]),
        ("timm upstream", "timm_wrapper", []),
        ("timm joint", "timm_wrapper", []),
        ("timm gap upstream", "timm_wrapper", []),
    ],
)
def test_what_encoders_cannot_do(name, kind, possible, field):
    value, remedy = ONLY_WITH_A_VIT[field]
    if field in possible:
        assert getattr(make_config(name, **{field: value}), field) == value
    else:
        message = f"{field}={value} is not possible with an encoder of type {kind}: .*{re.escape(remedy)}"
        with pytest.raises(ValueError, match=message):
            make_config(name, **{field: value})


@pytest.mark.parametrize(
    ("backbone", "message"),
    [
        (SwinConfig(**{**SWIN, "image_size": 16}), "--image_size 12"),
        (SwinConfig(**{**SWIN, "depths": [2], "num_heads": [3], "image_size": 2, "window_size": 1}), "no two patches"),
        (SwinConfig(**{**SWIN, "embed_dim": 4, "num_heads": [2, 2]}), "width 8 is too narrow"),
        (SwinConfig(**SWIN, use_absolute_embeddings=True), "use_absolute_embeddings=True is not supported"),
        (T2TViTConfig(**{**T2T, "image_size": 80}), "image_size=80 is not a multiple of 32 pixels"),
        (T2TViTConfig(**{**T2T, "image_size": 32}), "no two patches"),
        (T2TViTConfig(**{**T2T, "hidden_size": 6}), "width 6 is too narrow"),
        (timm_vit(image_size=14), "image_size=14 is not a multiple of 4 pixels"),
        (timm_vit(image_size=4), "no two patches"),
        (timm_vit("resnet18", patch_size=None), "timm's resnet18 computes no grid .* timm/vit_tiny_patch16_224"),
        (TimmWrapperConfig(architecture="resnet18"), "timm's resnet18 computes no grid .* timm/vit_tiny_patch16_224"),
    ],
)
def test_encoders_that_do_not_fit(backbone, message):
    with pytest.raises(ValueError, match=message):
        RelViTConfig(backbone_config=backbone)


@pytest.mark.parametrize(
    ("backbone", "mega_patches", "cell_size", "grid_size"),
    [
        (ViTConfig(**BACKBONE), None, 4, 3),
        (ViTConfig(**BACKBONE), 2, 4, 2),
        (SwinConfig(**SWIN), None, 4, 3),
        (SwinConfig(**{**SWIN, "depths": [1, 2, 1], "num_heads": [2, 2, 2], "image_size": 48}), None, 8, 6),
        (swin_config("swin-tiny"), None, 32, 7),
        (T2TViTConfig(**T2T), None, 32, 2),
        (t2t_vit_config("t2t-vit-14", 224), None, 32, 7),
        (timm_vit(), None, 4, 3),
        (timm_vit(image_size=36, patch_size=18), None, 18, 2),
    ],
)
def test_grid(backbone, mega_patches, cell_size, grid_size):
    config = RelViTConfig(backbone_config=backbone, mega_patches=mega_patches)
    assert (config.cell_size, config.grid_size) == (cell_size, grid_size)


@pytest.mark.parametrize("name", MODELS)
def test_grid_is_that_of_the_tokens(name):
    model = make_model(name)
    side, cell_size = model.config.grid_size, model.config.cell_size
    images = torch.zeros(2, 3, cell_size * side, cell_size * side, device=DEVICE)
    assert model.encode(images)[2].shape[:2] == (2, side * side)
    views = RelViTViews(RelViTViewsConfig(), model.config)
    assert views.patch_size == cell_size
    if model.position_head is not None:
        assert model.position_head.out_features == side * side


def test_pooled_tokens():
    """Means of what lies within one token of every other one, in the image."""
    tokens = torch.randn(2, 36, 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    pooled, grid = pool_tokens(tokens), tokens.unflatten(1, (6, 6))
    for i in range(9):
        y, x = 2 * (i // 3), 2 * (i % 3)
        window = grid[:, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
        torch.testing.assert_close(pooled[:, i], window.flatten(1, 2).mean(1))


LEAK = "can be told without a look at the image: consider --shuffle_patches true"


@pytest.mark.parametrize(
    ("name", "changes", "views", "leaks"),
    [
        ("swin upstream", {}, {}, True),
        ("swin upstream", {"tasks": ["distances"]}, {}, True),
        ("t2t upstream", {}, {}, True),
        ("timm upstream", {"tasks": ["positions", "angles"]}, {}, True),
        ("vit upstream", {"use_position_embeddings": True}, {}, True),
        ("swin upstream", {}, {"shuffle_patches": True}, False),
        ("t2t upstream", {}, {"shuffle_patches": True}, False),
        ("timm upstream", {}, {"shuffle_patches": True}, False),
        ("swin joint", {}, {}, False),
        ("t2t joint", {}, {}, False),
        ("vit joint", {}, {}, False),
        ("vit upstream", {}, {}, False),
        ("vit mega-patches", {}, {}, False),
    ],
)
def test_leaking_positions(name, changes, views, leaks, caplog):
    RelViTViews(RelViTViewsConfig(**views), make_config(name, **changes))
    assert [LEAK in record.message for record in caplog.records] == [True] * leaks


# ---- other encoders: how they begin ----


def recorded_beginnings():
    (case,) = find_cases("relvit", kind="init")
    return {name: model for name, model in case.info["models"].items() if model["backbone"] != "vit"}


@pytest.mark.parametrize("name", recorded_beginnings())
def test_initialization_of_encoders(name):
    """Each recorded kind of parameter follows its law."""
    recorded = recorded_beginnings()[name]
    size, is_swin = recorded["size"].replace("_", "-"), recorded["backbone"] == "swin"
    backbone = swin_config(f"swin-{size}") if is_swin else t2t_vit_config(f"t2t-vit-{size}", 224)
    torch.manual_seed(0)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=backbone, tasks=list(TASKS), num_labels=10))
    weights = to_official(model.state_dict())
    # What the authors' files have, and no loss reaches.
    unused = re.compile(r".*\.v_lin\.weight|" + (r"clf_head\..*" if is_swin else r"backbone\.head\..*"))
    for parameter, law in recorded["parameters"].items():
        if unused.fullmatch(parameter):
            assert parameter not in weights
        elif law["law"].startswith("orthogonal"):
            rows = weights[parameter].double()
            expected = len(rows) * torch.eye(len(rows), dtype=torch.float64)
            torch.testing.assert_close(rows @ rows.T, expected, rtol=0, atol=1e-4)
        elif law["law"].startswith("sinusoid"):
            place, column = torch.meshgrid(*map(torch.arange, law["shape"][1:]), indexing="ij")
            angle = place / 10000 ** (2 * (column // 2) / law["shape"][2])
            expected = torch.where(column % 2 == 0, angle.sin(), angle.cos())
            torch.testing.assert_close(weights[parameter][0], expected, rtol=0, atol=1e-4)
        else:
            check_law(parameter, weights[parameter].double(), law)
