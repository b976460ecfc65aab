import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig

from hf_ssl import PatchMixConfig, PatchMixForPreTraining
from hf_ssl.backbones import vit_config
from hf_ssl.models import Step
from hf_ssl.models.batch_norm import SyncBatchNorm
from hf_ssl.models.patchmix.views_patchmix import mix_images, mixing_targets
from hf_ssl.views import Draws

from ..device import DEVICE
from .common import SSLModelTester


BACKBONE = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 16,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
    "pooler_act": "linear",
}
SMALL = {"projection_dim": 12, "projection_hidden_dim": 20}
NUM_IMAGES = 6


class PatchMixTester(SSLModelTester):
    """Tiny; the classes below are collected."""

    model_class = PatchMixForPreTraining
    wrong_values = {
        "group_size": 17,
        "num_local_views": -1,
        "temperature": 0.0,
        "teacher_momentum": 1.5,
        "ema_schedule": "never",
        "mix_smoothing": 1.0,
        "plain_smoothing": -0.1,
        "drop_path_rate": 1.0,
        "projection_dim": 0,
        "projection_hidden_dim": 0,
        "num_projector_layers": 0,
        "num_predictor_layers": 0,
        "feature": "mean",
    }
    overrides = {}

    def config(self, **overrides):
        return PatchMixConfig(**{"backbone_config": ViTConfig(**BACKBONE), **SMALL, **self.overrides, **overrides})

    def num_images(self, batch):
        return batch["pixel_values"].shape[1]

    def batch(self, model):
        return make_batch(model.config)

    @pytest.mark.parametrize("rate", [0.0, 0.5])
    def test_one_pass_is_what_separate_passes_are(self, rate):
        """Loss, terms, gradients, statistics of batch norm: those of the authors' order of single passes."""
        torch.manual_seed(0)
        model = self.model_class(self.config(drop_path_rate=rate)).to(DEVICE)
        perturb(model)
        batch, reference = make_batch(model.config), copy.deepcopy(model)
        keep = step_inputs(model).get("drop_path_keep")
        assert (keep is not None) == bool(rate) and (keep is None or not keep.all())
        output = model(**batch, drop_path_keep=keep)
        losses = separate_passes(reference, batch, keep)
        assert output.losses.keys() == losses.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(output.losses[name], loss, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(output.loss, sum(losses.values()))
        output.loss.backward()
        sum(losses.values()).backward()
        for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                # A gradient that is zero but for rounding (biases of the keys) is a difference of large ones.
                scale = theirs.grad.abs().max().item()
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=2e-5 * scale + 5e-6, msg=name)
        for (name, ours), theirs in zip(model.named_buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=name)

    def test_batches_of_batch_norm(self, model):
        """Kinds of images are never normalized together; the table of the original."""
        seen = {}

        def record(module, inputs, output, name):
            seen.setdefault(name, []).append((len(inputs[0]), inputs[0].requires_grad))

        heads = {"projector": model.student.projector, "predictor": model.predictor}
        if model.teacher is not None:
            heads["teacher"] = model.teacher.projector
        for name, head in heads.items():
            norms = [module for module in head if isinstance(module, SyncBatchNorm)]
            norms[0].register_forward_hook(lambda m, i, o, name=name: record(m, i, o, name))
        model(**self.batch(model))
        n, local = NUM_IMAGES, model.config.num_local_views * NUM_IMAGES
        small = [(local, True)] * 2 if local else []
        if model.teacher is not None:
            expected = {"projector": [(n, True), (n, True), *small], "teacher": [(n, False)] * 3}
        else:
            expected = {"projector": [(n, True), (n, False), (n, False), (n, True), *small]}
        expected["predictor"] = [(n, True), (n, True), *small]
        assert seen == expected

    def test_bfloat16_reaches_every_parameter(self, model):
        """Also where the same weights are used without gradient first."""
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            model(**self.batch(model)).loss.backward()
        for name, parameter in model.named_parameters():
            assert (parameter.grad is not None) == parameter.requires_grad, name

    def test_contrasts_are_computed_in_full_precision(self, model):
        """bfloat16 would round a similarity of 5 to 0.02."""
        output = model(**self.batch(model))
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            losses, logits = model._contrast(output.query_embeddings, output.key_embeddings)
        for name, tensor in output.logits.items():
            assert logits[name].dtype == torch.float32 and torch.equal(logits[name], tensor)
        assert all(torch.equal(loss, output.losses[name]) for name, loss in losses.items())

    def test_small_views_are_checked(self, model):
        batch = self.batch(model)
        if model.config.num_local_views:
            del batch["mixed_local_pixel_values"]
        else:
            batch["local_pixel_values"] = batch["pixel_values"]
        with pytest.raises(ValueError, match=f"num_local_views={model.config.num_local_views}"):
            model(**batch)

    def test_accuracy(self, model):
        """Share of first views whose own image has the most similar second view."""
        output = model(**self.batch(model))
        ranked = output.logits["original"].argmax(1)
        expected = (ranked == torch.arange(NUM_IMAGES, device=DEVICE)).float().mean()
        assert torch.equal(output.metrics["accuracy"], expected)


class TestPatchMix(PatchMixTester):
    overrides = {"num_local_views": 3}

    def test_teacher(self, model):
        """A copy at first; then it moves before the forward pass, its statistics do not."""
        teacher = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
        for name, tensor in model.student.state_dict().items():
            assert torch.equal(tensor, teacher[name]), name
        assert not any(parameter.requires_grad for parameter in model.teacher.parameters())
        perturb(model.student)
        model.on_step_begin({"momentum": 0.75})
        for name, student in model.student.named_parameters():
            expected = 0.75 * teacher[name] + 0.25 * student.detach()
            torch.testing.assert_close(model.teacher.get_parameter(name), expected)
        for name, buffer in model.teacher.named_buffers():
            assert torch.equal(buffer, teacher[name]), name
        before = {name: tensor.clone() for name, tensor in model.teacher.state_dict().items()}
        model.on_optimizer_step({"momentum": 0.75})
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.teacher.state_dict().items())

    def test_the_teacher_is_published(self, model):
        perturb(model)
        for which, branch in ((None, model.teacher), ("teacher", model.teacher), ("student", model.student)):
            encoder = model.export_encoder(which)
            assert torch.equal(encoder.layers[0].mlp.fc1.weight, branch.backbone.layers[0].mlp.fc1.weight)

    def test_momentum_rises(self, model):
        momentum = model.schedules(20, 5)["momentum"]
        expected = [1 - (1 + math.cos(math.pi * step / 20)) / 2 * 0.004 for step in range(20)]
        assert [momentum(step) for step in range(20)] == pytest.approx(expected, rel=1e-12)
        model.config.ema_schedule = "epoch"
        momentum = model.schedules(20, 5)["momentum"]
        assert [momentum(step) for step in range(20)] == pytest.approx([expected[s // 5 * 5 + 1] for s in range(20)])

    def test_projections_are_those_of_the_published_branch(self, model):
        perturb(model)
        tokens = torch.randn(4, 36, device=DEVICE)
        for which, branch in ((None, model.teacher), ("teacher", model.teacher), ("student", model.student)):
            assert torch.equal(model.eval().project(tokens, which), branch.projector(tokens))
        model.config.feature = "patch_mean"
        assert model.project(tokens) is tokens


class TestPatchMixWithoutTeacher(PatchMixTester):
    overrides = {"use_teacher": False, "num_local_views": 2, "group_size": 3, "mix_smoothing": 0.2}
    test_export_without_the_library = None  # the same encoder

    def test_there_is_no_teacher(self, model):
        assert model.schedules(10, 5) == {}
        with pytest.raises(ValueError, match="without a teacher"):
            model.export_encoder("teacher")
        assert not [name for name in model.state_dict() if name.startswith("teacher")]


class TestPatchMixOfLargeViews(PatchMixTester):
    """Other depths of the heads, four images in a group with left-over patches are in the tests of the views."""

    overrides = {"num_local_views": 0, "num_projector_layers": 1, "num_predictor_layers": 3}
    test_export_without_the_library = None  # the same encoder


def make_batch(config, batch_size=NUM_IMAGES, seed=0):
    generator = torch.Generator().manual_seed(seed)
    batch = {}
    for name, views, side in (("", 2, 16), ("local_", config.num_local_views, 12)):
        if views:
            images = torch.randn(views, batch_size, 3, side, side, generator=generator)
            orders = torch.stack([torch.randperm((side // 4) ** 2, generator=generator) for _ in range(views)])
            batch[f"{name}pixel_values"] = images.to(DEVICE)
            batch[f"mixed_{name}pixel_values"] = mix_images(images, orders, config.group_size, 4).to(DEVICE)
    return batch


def perturb(model: nn.Module) -> None:
    """Make teacher and student differ, and statistics and biases other than 0."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.05 * torch.rand(tensor.shape, generator=generator).to(tensor.device))


def step_inputs(model, batch_size=NUM_IMAGES):
    index = torch.arange(batch_size, device=DEVICE)
    samples = Draws.for_samples(0, torch.zeros_like(index), index)
    return model.step_inputs(Step(Draws.for_batch(0, 0, device=DEVICE), samples, {"momentum": 0.9}))


def separate_passes(model, batch, keep=None, targets=None):
    """The losses as the original's code has them, line by line: a pass for each view, a criterion for each pair."""
    config, n = model.config, batch["pixel_values"].shape[1]
    (view1, view2), (mixed1, mixed2) = batch["pixel_values"], batch["mixed_pixel_values"]
    passes = iter([] if keep is None else keep.split(n, dim=2))

    def take(count=1):
        return None if keep is None else torch.cat([next(passes) for _ in range(count)], dim=2)

    if targets is None:
        plain, _ = mixing_targets(n, 1, config.plain_smoothing)
        targets = plain, *mixing_targets(n, config.group_size, config.mix_smoothing)
    plain, to_images, to_mixed = (target.to(DEVICE) for target in targets)

    def project(branch, images, dropped=None):
        return branch.projector(branch.backbone(images, drop_path_keep=dropped)[:, 0])

    def criterion(query, key, target):
        return F.cross_entropy(F.normalize(query) @ F.normalize(key).T / config.temperature, target)

    dropped = {"view1": take(), "mixed2": take()}
    if model.teacher is not None:
        projected = project(model.student, view1, dropped["view1"])
        query = model.predictor(projected)
        with torch.no_grad():
            key1, key2, mixed_key = (project(model.teacher, images) for images in (view1, view2, mixed1))
    else:
        dropped |= {"view2": take(), "mixed1": take()}
        projected = project(model.student, view1, dropped["view1"])
        query, key1 = model.predictor(projected), projected.detach()
        with torch.no_grad():
            key2 = project(model.student, view2, dropped["view2"])
            mixed_key = project(model.student, mixed1, dropped["mixed1"])
    mixed_query = model.predictor(project(model.student, mixed2, dropped["mixed2"]))
    losses = {
        "original": criterion(query, key2, plain),
        "mixed_to_original": criterion(mixed_query, key1, to_images) / 2,
        "mixed_to_mixed": criterion(mixed_query, mixed_key, to_mixed) / 2,
    }
    for name, target in (("local", plain), ("mixed_local", to_images)):
        if config.num_local_views:
            images = batch[f"{name}_pixel_values"].flatten(0, 1)
            queries = model.predictor(project(model.student, images, take(config.num_local_views)))
            crops = queries.split(n)
            terms = [criterion(crop, key1, target) + criterion(crop, key2, target) for crop in crops]
            losses[name] = sum(terms) / len(terms)
    return losses


@pytest.mark.parametrize("use_teacher", [True, False])
def test_initialization(use_teacher):
    """MoCo v3's bounds; normal and uniform laws by their spread."""
    torch.manual_seed(0)
    backbone = vit_config("vit-tiny", image_size=32, patch_size=4, num_hidden_layers=2, layer_norm_eps=1e-6)
    config = PatchMixConfig(backbone_config=backbone, projection_hidden_dim=256, use_teacher=use_teacher)
    model = PatchMixForPreTraining(config)
    encoder, dim = model.student.backbone, 192

    def assert_uniform(parameter: Tensor, bound: float) -> None:
        weight = parameter.detach()
        assert weight.abs().max() <= bound and weight.abs().max() > 0.98 * bound
        assert weight.std() == pytest.approx(bound / 3**0.5, rel=0.02) and abs(weight.mean()) < 0.02 * bound

    for layer in encoder.layers:
        attention = layer.attention
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            assert_uniform(linear.weight, (6 / (dim + dim)) ** 0.5)
        for linear in (layer.mlp.fc1, layer.mlp.fc2):
            assert_uniform(linear.weight, (6 / (dim + 4 * dim)) ** 0.5)
    projection = encoder.embeddings.patch_embeddings.projection
    assert_uniform(projection.weight, (6 / (3 * 4 * 4 + dim)) ** 0.5)
    for head, widths in ((model.student.projector, [dim, 256, 256]), (model.predictor, [256, 256])):
        linears = [module for module in head if isinstance(module, nn.Linear)]
        for linear, fan_in in zip(linears, widths, strict=True):
            assert linear.bias is None
            assert_uniform(linear.weight, fan_in**-0.5)
    for name, parameter in encoder.named_parameters():
        if name.endswith(".bias"):
            assert not parameter.any(), name
        elif "layernorm" in name:
            assert (parameter == 1).all(), name
    assert 0 < encoder.embeddings.cls_token.abs().max() < 1e-5
    positions = encoder.embeddings.position_embeddings.detach()
    assert positions.std() == pytest.approx(0.02, rel=0.05)
    for name, buffer in model.named_buffers():
        assert (buffer == (1 if name.endswith("running_var") else 0)).all(), name


def test_initialization_without_qkv_bias():
    """Queries, keys and values are the encoder's, with or without a bias."""
    backbone = vit_config("vit-tiny", image_size=32, patch_size=4, num_hidden_layers=1, qkv_bias=False)
    model = PatchMixForPreTraining(PatchMixConfig(backbone_config=backbone, **SMALL))
    assert model.student.backbone.layers[0].attention.q_proj.weight.abs().max() > 0.98 * (6 / 384) ** 0.5


def test_heads_have_the_layers_of_the_original():
    model = PatchMixForPreTraining(PatchMixConfig(backbone_config=ViTConfig(**BACKBONE), **SMALL))
    kinds = [type(module).__name__ for module in model.student.projector]
    assert kinds == ["Linear", "SyncBatchNorm", "ReLU"] * 2 + ["Linear", "SyncBatchNorm"]
    assert [type(module).__name__ for module in model.predictor] == kinds[3:]
    assert [module.affine for module in model.predictor if isinstance(module, SyncBatchNorm)] == [True, False]
    assert all(module.eps == 1e-5 and module.momentum == 0.1 for module in model.predictor[1::3])


@pytest.mark.parametrize("use_teacher", [True, False])
def test_stochastic_depth_is_drawn_for_each_view_of_each_image(use_teacher):
    config = PatchMixConfig(
        backbone_config=ViTConfig(**BACKBONE), **SMALL, num_local_views=2, use_teacher=use_teacher, drop_path_rate=0.4
    )
    model, size = PatchMixForPreTraining(config).to(DEVICE), 500
    keep = step_inputs(model, size)["drop_path_keep"]
    views = (2 if use_teacher else 4) + 4
    assert keep.shape == (2, 2, views * size)
    assert keep[0].all() and keep[1].float().mean().item() == pytest.approx(0.6, abs=0.03)
    by_view = keep[1].view(2, views, size)
    pairs = torch.corrcoef(by_view.flatten(0, 1).float())
    assert (pairs - torch.eye(len(pairs), device=DEVICE)).abs().max() < 0.2, "views, and branches, are independent"
    # An image drops the same in any batch.
    assert torch.equal(
        step_inputs(model, 3)["drop_path_keep"].view(2, 2, views, 3), keep.view(2, 2, views, size)[..., :3]
    )


def test_the_teacher_drops_nothing():
    model = PatchMixForPreTraining(PatchMixConfig(backbone_config=ViTConfig(**BACKBONE), drop_path_rate=0.5, **SMALL))
    assert model.student.backbone.drop_path_rates == [0, 0.5] and model.teacher.backbone.drop_path_rates == [0, 0]


@pytest.mark.parametrize(
    ("field", "message"),
    [({"image_size": 18}, "multiple of patch_size=4"), ({"patch_size": 0}, "positive whole number")],
)
def test_backbone_that_does_not_fit(field, message):
    with pytest.raises(ValueError, match=message):
        PatchMixConfig(backbone_config=ViTConfig(**{**BACKBONE, **field}))


def test_other_backbones_are_refused():
    with pytest.raises(ValueError, match="'swin' is not supported by PatchMix"):
        PatchMixConfig(backbone_config={"model_type": "swin"})


def test_a_batch_that_is_too_small():
    model = PatchMixForPreTraining(PatchMixConfig(backbone_config=ViTConfig(**BACKBONE), num_local_views=0, **SMALL))
    with pytest.raises(ValueError, match="batch of 2 images is too small"):
        model(torch.zeros(2, 2, 3, 16, 16), torch.zeros(2, 2, 3, 16, 16))
