import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTModel

from hf_ssl import APSConfig, APSForPreTraining
from hf_ssl.backbones import VIT_SIZES, ViTTrunk, publish_vit, vit_config
from hf_ssl.models import Step
from hf_ssl.models.batch_norm import SyncBatchNorm
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
    "qkv_bias": False,
    "layer_norm_eps": 1e-5,
    "pooler_act": "linear",
}
SMALL = {"projection_dim": 12, "projection_hidden_dim": 20}
NUM_IMAGES = 6


def make_batch(config, seed=0):
    """Random pixels and patches."""
    generator = torch.Generator().manual_seed(seed)
    side, count = config.backbone_config.image_size, config.num_sampled_patches
    pixel_values = torch.randn(2, NUM_IMAGES, 3, side, side, generator=generator)
    shape = (config.num_samplings, 2, NUM_IMAGES, config.grid[0] * config.grid[1])
    patches = torch.rand(shape, generator=generator).argsort(-1)[..., :count]
    return {"pixel_values": pixel_values.to(DEVICE), "patch_indices": patches.to(DEVICE)}


def perturb(model):
    """Weights and statistics that are not those of the beginning, so that mistakes show."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = 0.1 * torch.rand(tensor.shape, generator=generator).to(tensor)
            if name.endswith("position_embeddings"):
                noise[:, 0] = 0
            tensor.add_(noise)


def separate_passes(model, batch, sampling):
    """The authors' order: encoder and projector for each view, then the predictor for each; on a stock encoder."""
    stock, table = model.student.backbone, model.student.backbone.embeddings.position_embeddings
    projected = []
    for view in (0, 1):
        pixels, patches = batch["pixel_values"][view], batch["patch_indices"][sampling, view]
        tokens = stock.embeddings.patch_embeddings(pixels) + table[:, 1:]
        tokens = torch.stack([image[chosen] for image, chosen in zip(tokens, patches, strict=True)])
        tokens = torch.cat([stock.embeddings.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        for layer in stock.layers:
            tokens = tokens + layer.attention(layer.layernorm_before(tokens))[0]
            tokens = tokens + layer.mlp(layer.layernorm_after(tokens))
        projected.append(model.student.projector(stock.layernorm(tokens)[:, 0]))
    predicted = [model.predictor(z) for z in projected]
    losses, cosines = {}, []
    for name, query, key in (("view1_to_view2", 0, 1), ("view2_to_view1", 1, 0)):
        q, k = F.normalize(predicted[query]), F.normalize(projected[key].detach())
        losses[name] = F.cross_entropy(q @ k.T / model.config.temperature, torch.arange(len(q), device=q.device))
        cosines.append((q * k).sum(-1).mean())
    return losses, sum(cosines) / 2


class TestAPS(SSLModelTester):
    model_class = APSForPreTraining
    wrong_values = {
        "sampling_ratio": 0.05,
        "num_samplings": 5,
        "sampling_power": -1.0,
        "temperature": 0.0,
        "flip_aware": "perhaps",
        "projection_dim": 0,
        "projection_hidden_dim": 0,
        "feature": "mean",
    }

    def config(self, **overrides):
        return APSConfig(**{"backbone_config": ViTConfig(**BACKBONE), **SMALL, **overrides})

    def num_images(self, batch):
        return batch["pixel_values"].shape[1]

    def batch(self, model):
        return make_batch(model.config)

    @pytest.mark.parametrize("sampling", [0, 3])
    def test_one_pass_is_what_separate_passes_are(self, model, sampling):
        """Loss, gradients, statistics of batch norm; in float64, where rounding hides nothing."""
        perturb(model.double())
        batch, reference = self.batch(model), copy.deepcopy(model)
        batch["pixel_values"] = batch["pixel_values"].double()
        output = model(**batch, sampling=sampling)
        losses, similarity = separate_passes(reference, batch, sampling)
        assert output.losses.keys() == losses.keys()
        for name, loss in losses.items():
            torch.testing.assert_close(output.losses[name], loss, rtol=1e-12, atol=0)
        torch.testing.assert_close(output.loss, sum(losses.values()))
        torch.testing.assert_close(output.metrics["similarity"], similarity.detach(), rtol=1e-12, atol=1e-14)
        output.loss.backward()
        sum(losses.values()).backward()
        for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-11, msg=name)
        for (name, ours), theirs in zip(model.named_buffers(), reference.buffers(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14, msg=name)

    def test_samplings_differ(self, model):
        batch = self.batch(model)
        model.eval()
        losses = {model(**batch, sampling=sampling).loss.item() for sampling in range(4)}
        assert len(losses) == 4
        assert model(**batch).loss.item() == model(**batch, sampling=0).loss.item()

    def test_sampling_is_the_repetition(self, model):
        draws = Draws.for_batch(0, 0)
        assert model.steps_per_batch == 4
        assert [model.step_inputs(Step(draws, draws, {}, j)) for j in range(4)] == [{"sampling": j} for j in range(4)]

    def test_order_of_the_patches_does_not_matter(self, model):
        """But for rounding: their positions go with them."""
        batch = self.batch(model)
        model.eval()
        expected = model(**batch).loss
        batch["patch_indices"] = batch["patch_indices"].flip(-1)
        torch.testing.assert_close(model(**batch).loss, expected)

    def test_class_token_has_no_position(self, model):
        """Neither in the model nor in its gradient, and so in the published encoder."""
        table = model.student.backbone.embeddings.position_embeddings
        assert not table[:, 0].any() and table[:, 1:].all()
        self.loss(model, self.batch(model)).backward()
        assert not table.grad[:, 0].any() and table.grad[:, 1:].any()
        with torch.no_grad():
            table[:, 0] = 1.0  # of no effect
        encoder, photos = model.export_encoder(), torch.randn(2, 3, 16, 16, device=DEVICE)
        assert not encoder.embeddings.position_embeddings[:, 0].any()
        torch.testing.assert_close(encoder(photos).last_hidden_state, model.student.backbone(photos))

    def test_each_view_is_normalized_on_its_own(self, model):
        seen = []
        for head in (model.student.projector, model.predictor):
            norms = [module for module in head if isinstance(module, SyncBatchNorm)]
            assert [norm.affine for norm in norms] == [True, True, False]
            norms[-1].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape))
        model(**self.batch(model))
        assert seen == [(NUM_IMAGES, 12)] * 4

    def test_keys_get_no_gradient(self, model):
        output = model(**self.batch(model))
        assert all(not key.requires_grad for key in output.key_embeddings.values())

    def test_contrast_is_computed_in_full_precision(self, model):
        output = model(**self.batch(model))
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            losses, logits, _ = model._contrast(output.query_embeddings, output.key_embeddings)
        for name, tensor in output.logits.items():
            assert logits[name].dtype == torch.float32 and torch.equal(logits[name], tensor)
        assert all(torch.equal(loss, output.losses[name]) for name, loss in losses.items())

    def test_bfloat16_reaches_every_parameter(self, model):
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            model(**self.batch(model)).loss.backward()
        assert all(parameter.grad is not None for parameter in model.parameters())

    def test_no_teacher(self, model):
        with pytest.raises(ValueError, match="APS has no teacher"):
            model.export_encoder("teacher")

    def test_project(self, model):
        model.eval()
        features = torch.randn(4, 36, device=DEVICE)
        assert torch.equal(model.project(features), model.student.projector(features))
        model.config.feature = "patch_mean"
        assert model.project(features) is features


def test_initialization():
    """PyTorch's own, uniform in ±1/√fan_in, biases too; class token and positions are normal."""
    torch.manual_seed(0)
    config = vit_config("vit-micro", image_size=32, patch_size=4, qkv_bias=False, layer_norm_eps=1e-5)
    model = APSForPreTraining(APSConfig(backbone_config=config))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            bound = module.weight[0].numel() ** -0.5
            for tensor in (module.weight, module.bias):
                if tensor is not None and tensor.numel() > 90:
                    assert bound * 0.9 < tensor.abs().max() <= bound, name
                    assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.2), name
    embeddings = model.student.backbone.embeddings
    assert embeddings.position_embeddings[:, 1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert embeddings.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert embeddings.position_embeddings.abs().max() > 0.05  # cut at 2, not at two standard deviations
    attention = model.student.backbone.layers[0].attention
    assert all(getattr(attention, f"{part}_proj").bias is None for part in "qkv")


@pytest.mark.parametrize(
    ("size", "encoder", "projector"),
    [("tiny", 5_383_680, 428_032), ("small", 21_384_192, 526_336), ("base", 85_235_712, 722_944)],
)
def test_numbers_of_parameters(size, encoder, projector):
    """The authors' models; the class token's position is ours."""
    config = vit_config(f"vit-{size}", image_size=32, patch_size=2, qkv_bias=False, layer_norm_eps=1e-5)
    with torch.device("meta"):
        model = APSForPreTraining(APSConfig(backbone_config=config))
    count = {name: sum(p.numel() for p in part.parameters()) for name, part in model.student.named_children()}
    assert count == {"backbone": encoder + VIT_SIZES[f"vit-{size}"][0], "projector": projector}
    assert sum(p.numel() for p in model.predictor.parameters()) == 395_264


# ---- a choice of patches in the trunk ----


def make_trunk(**options):
    torch.manual_seed(0)
    trunk = ViTTrunk(ViTConfig(**BACKBONE | {"num_channels": 3}), **options).to(DEVICE)
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.2)
    return trunk.eval()


@pytest.mark.parametrize("options", [{}, {"use_class_token_position": False}, {"use_position_embeddings": False}])
def test_all_patches_are_no_choice(options):
    trunk, pixels = make_trunk(**options), torch.randn(3, 3, 16, 16, device=DEVICE)
    all_patches = torch.arange(16, device=DEVICE).expand(3, -1)
    torch.testing.assert_close(trunk(pixels, patch_indices=all_patches), trunk(pixels), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(trunk(pixels), publish_vit(trunk)(pixels).last_hidden_state, rtol=1e-5, atol=1e-5)


def test_chosen_patches_are_those_of_a_mask():
    """Against the whole image with all other patches hidden from attention, in stock transformers."""
    trunk, pixels = make_trunk(), torch.randn(1, 3, 16, 16, device=DEVICE)
    chosen = torch.tensor([[3, 8, 9, 14]], device=DEVICE)
    stock = ViTModel(trunk.config, add_pooling_layer=False).to(DEVICE).eval()
    stock.load_state_dict(trunk.state_dict())
    tokens = stock.embeddings(pixels)
    kept = torch.cat([torch.zeros(1, dtype=torch.int64, device=DEVICE), chosen[0] + 1])
    mask = torch.full((1, 1, 17, 17), -torch.inf, device=DEVICE)
    mask[..., kept] = 0
    for layer in stock.layers:
        tokens = tokens + layer.attention(layer.layernorm_before(tokens), mask)[0]
        tokens = tokens + layer.mlp(layer.layernorm_after(tokens))
    expected = stock.layernorm(tokens)[:, kept]
    torch.testing.assert_close(trunk(pixels, patch_indices=chosen), expected, rtol=1e-5, atol=1e-5)


def test_chosen_patches_at_another_size():
    """Positions are resized first."""
    trunk, pixels = make_trunk(), torch.randn(2, 3, 24, 24, device=DEVICE)
    all_patches = torch.arange(36, device=DEVICE).expand(2, -1)
    torch.testing.assert_close(trunk(pixels, patch_indices=all_patches), trunk(pixels), rtol=1e-5, atol=1e-5)
    assert trunk(pixels, patch_indices=all_patches[:, 5:9]).shape == (2, 5, 36)
