import copy

import pytest
import torch
from torch import nn
from transformers import ViTConfig

from hf_ssl.models.pw_self import PWSelfConfig, PWSelfForPreTraining, PWSelfViews, PWSelfViewsConfig
from hf_ssl.models.pw_self import token_pairs as pairs_module
from hf_ssl.models.pw_self.matched_cross_entropy import matched_cross_entropy
from hf_ssl.models.pw_self.token_pairs import pair_tokens
from hf_ssl.views import Draws, View

from ..device import DEVICE
from .common import SSLModelTester


BACKBONE = {
    "hidden_size": 36,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 48,
    "image_size": 24,
    "patch_size": 4,
    "layer_norm_eps": 1e-6,
    "pooler_act": "linear",
}
SMALL = {"head_hidden_dim": 20, "head_bottleneck_dim": 12, "num_prototypes": 30}
NUM_IMAGES = 5


def make_batch(config, seed=0):
    """Views of random images, with the matches of their boxes."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (NUM_IMAGES, 3, 40, 30), dtype=torch.uint8, generator=generator)
    index = torch.arange(NUM_IMAGES)
    views = PWSelfViews(PWSelfViewsConfig(local=View(size=12, scale=[0.1, 0.4]), canvas=48), config, seed)
    batch = views({"images": images, "index": index, "epoch": torch.zeros_like(index)}, Draws.for_batch(seed, 3))
    return {name: tensor.to(DEVICE) for name, tensor in batch.items()}


def dense_loss(model, batch):
    """The authors' formulation: scores of all tokens, then a mean over class token and matched patches of each pair."""
    config, large = model.config, batch["pixel_values"]
    with torch.no_grad():
        scores = model.teacher.head(model.teacher.backbone(large.flatten(0, 1)))
        wanted = ((scores - model.center) / config.teacher_temperature).softmax(-1).unflatten(0, large.shape[:2])
    views = [large[0], large[1], *batch.get("local_pixel_values", [])]
    scores = [model.student.head(model.student.backbone(view)) / config.student_temperature for view in views]
    losses = []
    for teacher in (0, 1):
        for student in range(len(views)):
            if student == teacher:
                continue
            matches = batch["global_matches"][teacher]
            if student > 1:
                matches = batch["local_matches"][teacher, student - 2]
            of_images = []
            for image, of_image in enumerate(matches.expand(NUM_IMAGES, -1, -1)):
                rows = nn.functional.pad(of_image[of_image[:, 0] >= 0] + 1, (0, 0, 1, 0))
                entropy = -(
                    wanted[teacher][image, rows[:, 0]] * scores[student][image, rows[:, 1]].log_softmax(-1)
                ).sum(-1)
                weight = config.class_loss_weight
                if weight is None:
                    of_images.append(entropy.mean())
                else:
                    of_patches = entropy[1:].mean() if len(entropy) > 1 else 0.0
                    of_images.append(weight * entropy[0] + (1 - weight) * of_patches)
            losses.append(sum(of_images) / NUM_IMAGES)
    return sum(losses) / len(losses)


def test_gradients_in_float16():
    """Of thousands of tokens, each has a small weight, and prototypes are many: the products must not become zero."""
    torch.manual_seed(0)
    none = torch.zeros(2, 0, 1, 0, 2, dtype=torch.int64)
    pairs = pair_tokens(torch.arange(8).view(1, 1, 8, 1).expand(2, 1, 8, 2), none, 8, (9, 1), 50_000)
    pairs.weights /= 100  # as if there were more images
    count = len(pairs.student_rows)
    student = nn.functional.normalize(torch.randn(count, 6), dim=1).requires_grad_()
    teacher = nn.functional.normalize(torch.randn(count, 6), dim=1)
    prototypes = nn.functional.normalize(torch.randn(50_000, 6), dim=1).requires_grad_()
    gradients = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.float16, enabled=enabled):
            loss, _ = matched_cross_entropy(
                student, prototypes, teacher, prototypes.detach(), torch.zeros(9, 50_000), pairs, 0.1, 0.5
            )
        gradients.append(torch.autograd.grad(loss * 65536, (student, prototypes)))
    for exact, half in zip(*gradients, strict=True):
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, exact, rtol=0, atol=0.03 * exact.abs().max().item())
        assert nn.functional.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > 0.999
        assert (half != 0).float().mean() > 0.9


class PWSelfTester(SSLModelTester):
    """Tiny; the classes below are collected."""

    model_class = PWSelfForPreTraining
    wrong_values = {
        "num_local_views": -1,
        "geometry": "none",
        "head_hidden_dim": 0,
        "head_bottleneck_dim": 0,
        "num_prototypes": 0,
        "class_loss_weight": 1.5,
        "student_temperature": 0.0,
        "teacher_temperature": 0.0,
        "warmup_teacher_temperature": -1.0,
        "teacher_temperature_warmup_epochs": -1,
        "center_momentum": 2.0,
        "teacher_momentum": 2.0,
        "frozen_last_layer_epochs": -1,
        "drop_path_rate": 1.0,
    }
    overrides = {}

    def config(self, **overrides):
        return PWSelfConfig(**{"backbone_config": ViTConfig(**BACKBONE), **SMALL, **self.overrides, **overrides})

    def num_images(self, batch):
        return batch["pixel_values"].shape[1]

    def batch(self, model):
        return make_batch(model.config)

    @pytest.mark.parametrize("scores", [1, 1000, 1 << 22])
    def test_loss_is_that_of_all_scores(self, model, scores, monkeypatch):
        """Loss and gradients in float64, whatever the size of the blocks."""
        monkeypatch.setattr(pairs_module, "_SCORES_ON_CPU", scores)
        monkeypatch.setattr(pairs_module, "_SCORES", scores)
        model.double()
        with torch.no_grad():
            model.center.normal_(generator=torch.Generator(DEVICE).manual_seed(0))
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, dtype=parameter.dtype).to(DEVICE)
        batch, reference = self.batch(model), copy.deepcopy(model)
        batch = {name: t.double() if t.is_floating_point() else t for name, t in batch.items()}
        output, expected = model(**batch), dense_loss(reference, batch)
        torch.testing.assert_close(output.loss, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(sum(output.losses.values()), expected.detach(), rtol=1e-12, atol=0)
        output.loss.backward()
        expected.backward()
        for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-12, msg=name)

    def test_center(self, model):
        """The mean of the teacher's scores at each place, of all micro-batches of a step."""
        batches = [make_batch(model.config, seed) for seed in (0, 1)]
        model.train()
        model.on_step_begin({})
        before = model.center.clone()
        with torch.no_grad():
            scores = [model.teacher.head(model.teacher.backbone(b["pixel_values"].flatten(0, 1))) for b in batches]
        for batch in batches:
            model(**batch)
        model.on_optimizer_step({"momentum": 1.0})
        expected = 0.9 * before + 0.1 * torch.cat(scores).mean(0)
        torch.testing.assert_close(model.center, expected, rtol=1e-4, atol=1e-6)

    def test_inputs_fit_together(self, model):
        batch = self.batch(model)
        images = batch["pixel_values"].shape[1]
        for count in range(2, images):
            wrong = batch["global_matches"].expand(2, images, -1, -1)[:, :count]
            with pytest.raises(ValueError, match=f"There are matches of {count} images between large views"):
                model(**batch | {"global_matches": wrong})
        if "local_matches" in batch:
            for name in ("local_pixel_values", "local_matches"):
                with pytest.raises(ValueError, match="small views in local_pixel_values, and matches of"):
                    model(**{n: t for n, t in batch.items() if n != name})

    def test_nothing_to_compare(self, model):
        """No matches at all, and class tokens without weight: no loss, and gradients of zeros."""
        model.config.class_loss_weight = 0.0
        batch = self.batch(model)
        batch |= {name: torch.full_like(t, -1) for name, t in batch.items() if name.endswith("matches")}
        output = model(**batch)
        output.loss.backward()
        assert output.loss == 0 and output.metrics["matches"] == 0
        gradients = [parameter.grad for parameter in model.student.parameters() if parameter.grad is not None]
        assert gradients and all((gradient == 0).all() for gradient in gradients)

    def test_fewer_small_views(self, model):
        """What there is counts, not what the configuration says."""
        large = {n: t for n, t in self.batch(model).items() if not n.startswith("local")}
        output = model(**large)
        assert output.pair_entropies.shape == (2, 2) and len(output.num_matches) == 2
        torch.testing.assert_close(output.metrics["class_entropy"], output.pair_entropies[:, 0].mean())

    def test_frozen_last_layer(self, model):
        model(**self.batch(model)).loss.backward()
        model.on_gradients({"last_layer_frozen": 0.0})
        assert model.student.head.last_layer.weight_v.grad is not None
        model.on_gradients({"last_layer_frozen": 1.0})
        assert model.student.head.last_layer.weight_v.grad is None
        assert model.student.head.mlp[0].weight.grad is not None


class TestPWSelf(PWSelfTester):
    overrides = {"num_local_views": 3}


class TestGeometryOfEachSample(PWSelfTester):
    overrides = {"num_local_views": 2, "geometry": "sample", "norm_last_layer": False, "class_loss_weight": 0.7}
    test_export_without_the_library = None  # the same encoder


class TestWithoutLocalViews(PWSelfTester):
    overrides = {"num_local_views": 0, "drop_path_rate": 0.0}
    test_export_without_the_library = None  # the same encoder
