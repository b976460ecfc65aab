import pytest
import torch
from transformers import ViTConfig

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.models.relvit.configuration_relvit import TASKS

from ..device import DEVICE
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


class RelViTTester(SSLModelTester):
    """Tiny; the classes below are collected."""

    model_class = RelViTForPreTraining
    wrong_values = {
        "tasks": ["relations", "colors"],
        "attention_pattern": "row",
        "drop_path_rate": 1.0,
        "relation_label_smoothing": -0.1,
        "mega_patches": 4,
        "feature": "mean",
    }
    overrides = {}

    def config(self, **overrides):
        return RelViTConfig(**{"backbone_config": ViTConfig(**BACKBONE), **self.overrides, **overrides})

    def batch(self, model):
        generator = torch.Generator().manual_seed(0)
        side = model.config.grid_size
        batch = {
            "pixel_values": torch.randn(6, 3, 4 * side, 4 * side, generator=generator),
            "patch_order": torch.stack([torch.randperm(side * side, generator=generator) for _ in range(6)]),
        }
        if "classification" in model.config.tasks:
            batch["labels"] = torch.randint(model.config.num_labels, (6,), generator=generator)
        return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


class TestRelViTUpstream(RelViTTester):
    overrides = {"drop_path_rate": 0.3}

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
    overrides = {**RelViTConfig.modes["joint"], "tasks": list(TASKS), "num_labels": 5}
    overrides.pop("patch_augmentation")

    def test_labels_are_needed(self, model):
        with pytest.raises(ValueError, match="needs labels"):
            model(pixel_values=self.batch(model)["pixel_values"])


class TestRelViTMegaPatches(RelViTTester):
    overrides = {"mega_patches": 2}


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
