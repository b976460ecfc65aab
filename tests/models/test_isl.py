import copy
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
import torchvision
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import AutoModel, AutoModelForImageClassification, ResNetConfig, ResNetModel, ViTConfig

from hf_ssl import ISLConfig, ISLForPreTraining
from hf_ssl.backbones import convnet_config, feature_size
from hf_ssl.backbones.modeling_alexnet import AlexNetConfig, AlexNetForImageClassification, AlexNetModel
from hf_ssl.backbones.modeling_cifar_resnet import (
    CifarResNetConfig,
    CifarResNetForImageClassification,
    CifarResNetModel,
)
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.models import Step
from hf_ssl.models.batch_norm import SyncBatchNorm
from hf_ssl.views import Draws

from ..device import DEVICE
from .common import SSLModelTester


RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 24], "depths": [1, 1, 1, 1], "layer_type": "basic"}
ALEXNET = {"conv_widths": [4, 6, 8, 6, 6], "fc_width": 16}
BACKBONES = {
    "cifar_resnet": CifarResNetConfig(**RESNET, image_size=16),
    "resnet": ResNetConfig(**RESNET, image_size=32),
    "cifar_alexnet": AlexNetConfig(**ALEXNET, image_size=32),
    # The smallest images of which all layers leave something.
    "imagenet_alexnet": AlexNetConfig(**ALEXNET, image_size=63, stem_type="imagenet"),
}
NUM_IMAGES = 20
INDEX = [3, 0, 7, 19, 5, 11]
# Of some images of the batch, and of some that are not in it; in the batch are 3 and 7, which are neighbors.
PAIRS = [(3, 7), (3, 1), (3, 14), (0, 12), (7, 2), (7, 18), (9, 10), (19, 4)]


def neighbors_of(image):
    return sorted({b if a == image else a for a, b in PAIRS if image in (a, b)})


def make_model(name="cifar_resnet", **overrides):
    torch.manual_seed(0)
    config = ISLConfig(**{"backbone_config": copy.deepcopy(BACKBONES[name]), "projection_dim": 12, **overrides})
    model = ISLForPreTraining(config)
    model.make_bank(NUM_IMAGES, seed=1)
    model.bank.neighbors.add(*torch.tensor(PAIRS).unbind(1))
    return model.to(DEVICE)


def make_batch(config, seed=0):
    side = config.backbone_config.image_size
    pixels = torch.randn(len(INDEX), 3, side, side, generator=torch.Generator().manual_seed(seed))
    return {"pixel_values": pixels.to(DEVICE), "index": torch.tensor(INDEX, device=DEVICE)}


def perturb(network, seed=5):
    """Weights and statistics that are not those of the beginning, so that mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator).to(tensor))


def dense_losses(model, features):
    """The terms as they are written: image by image, with a softmax over all of the bank and its logarithm."""
    config, rows = model.config, model.bank.rows
    log_p = F.log_softmax(features @ rows.T / config.temperature, dim=1)
    terms = {name: features.new_zeros(()) for name in ("instance", "neighbors", "hard_positive")}
    for place, image in enumerate(INDEX):
        others = neighbors_of(image)
        if not others:
            terms["instance"] = terms["instance"] - log_p[place, image]
            continue
        terms["neighbors"] = terms["neighbors"] - log_p[place].exp()[[image, *others]].sum().log()
        similarity = rows[others] @ rows[image]
        chosen = similarity.argmax() if config.hard_positive == "most_similar" else similarity.argmin()
        log_q = F.log_softmax(rows @ rows[others[chosen]] / config.temperature, dim=0)
        divergence = F.kl_div(log_q, log_p[place], reduction="sum", log_target=True)
        terms["hard_positive"] = terms["hard_positive"] + config.hard_positive_weight * divergence
    return {name: term / len(INDEX) for name, term in terms.items()}


# ---- encoders that are loaded where there is no hf_ssl ----


LOADING = """
import sys, torch
from transformers import AutoModel, AutoModelForImageClassification

inputs, results = torch.load("inputs.pt", weights_only=True), {}
for folder, (pixel_values, needs_trust) in inputs.items():
    trust = {"trust_remote_code": True} if needs_trust else {}
    result = {"refused": []}
    if needs_trust:
        for kind in (AutoModel, AutoModelForImageClassification):
            try:
                kind.from_pretrained(folder)
            except ValueError as error:
                result["refused"].append(str(error))
    model = AutoModel.from_pretrained(folder, **trust)
    output = model(pixel_values)
    result["encoder"] = [output.last_hidden_state.detach(), output.pooler_output.detach()]
    classifier, info = AutoModelForImageClassification.from_pretrained(
        folder, num_labels=3, output_loading_info=True, **trust
    )
    result["missing"], result["unexpected"] = sorted(info["missing_keys"]), sorted(info["unexpected_keys"])
    output = classifier(pixel_values, labels=torch.arange(len(pixel_values)) % 3)
    result["classifier"] = [output.logits.detach(), output.loss.detach()]
    result["state"] = {name: tensor.detach() for name, tensor in classifier.state_dict().items()}
    result["names"] = [type(model).__module__, type(model).__name__, type(classifier).__name__]
    results[folder] = result
assert not any(name.split(".")[0] == "hf_ssl" for name in sys.modules)
torch.save(results, "results.pt")
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Each published encoder, and what one other process without hf_ssl made of its folder; by name."""
    folder, inputs, encoders = tmp_path_factory.mktemp("published"), {}, {}
    for name in BACKBONES:
        model = make_model(name).cpu()
        perturb(model.student)
        encoders[name] = encoder = model.export_encoder()
        encoder.save_pretrained(folder / name)
        side = encoder.config.image_size
        inputs[name] = (torch.randn(4, 3, side, side), name != "resnet")
    torch.save(inputs, folder / "inputs.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOADING]
    subprocess.run(command, check=True, cwd=folder, env=environment, stdin=subprocess.DEVNULL)
    results = torch.load(folder / "results.pt", weights_only=True)
    return {name: (encoders[name], inputs[name][0], results[name]) for name in BACKBONES}


class TestISL(SSLModelTester):
    model_class = ISLForPreTraining
    name = "cifar_resnet"
    encoder_class, classifier_class = CifarResNetModel, CifarResNetForImageClassification
    encoder_module = "hf_ssl.backbones."
    wrong_values = {
        "projection_dim": 0,
        "temperature": 0.0,
        "bank_momentum": 1.0,
        "hard_positive_weight": -0.1,
        "hard_positive": "argmax",
        "num_rounds": 0,
        "final_backbone_stage": "perhaps",
        "num_negatives": 0,
        "positive_from": "bank",
        "gan_learning_rate": 0.0,
        "gan_betas": [0.9],
        "gan_stop": "never",
        "gan_max_epochs": 0,
        "gan_min_steps": -1,
        "gan_patience": 0,
        "agreement_window": 0.0,
        "score_threshold": 1.0,
        "similarity_threshold": 1.0,
        "links_per_proxy": 0,
        "neighbors_per_round": -0.5,
        "mining_max_passes": 0,
        "feature": "class_token",
    }

    def config(self, **overrides):
        return ISLConfig(**{"backbone_config": BACKBONES[self.name], "projection_dim": 12, **overrides})

    def batch(self, model):
        return make_batch(model.config)

    @pytest.fixture
    def model(self):
        return make_model(self.name)

    # ---- what the tester asks otherwise ----

    def test_activation_checkpointing(self, model):
        """There is none, and the model says so."""
        assert not model.supports_gradient_checkpointing
        with pytest.raises(ValueError, match="ISLForPreTraining does not support activation checkpointing"):
            model.activation_checkpointing_enable()

    def test_attention_implementations_agree(self, model):
        """There is no attention; asking for a kind of it is an error."""
        assert model.config._attn_implementation == "eager"
        assert not [name for name, _ in model.named_modules() if "attention" in name]
        with pytest.raises(ValueError, match="ISLForPreTraining does not support an attention implementation"):
            model.set_attn_implementation("sdpa")

    def test_step_inputs(self, model):
        """Which images these are, and no random decisions."""
        assert model.schedules(10, 5) == {} and model.steps_per_batch == 1
        index, before = torch.tensor([4, 2], device=DEVICE), torch.get_rng_state()
        draws = Draws.for_batch(0, 0)
        inputs = model.step_inputs(Step(draws, draws, {}, index=index))
        assert list(inputs) == ["index"] and inputs["index"] is index
        assert torch.equal(before, torch.get_rng_state())

    def test_export_without_the_library(self, elsewhere):
        """A process that never imports hf_ssl gets the same features, by remote code where stock transformers has none."""
        encoder, pixel_values, result = elsewhere[self.name]
        module, encoder_class, _ = result["names"]
        assert encoder_class == self.encoder_class.__name__
        assert module.split(".")[0] == (
            "transformers" if self.encoder_class is ResNetModel else "transformers_modules"
        )
        expected = encoder(pixel_values)
        torch.testing.assert_close(result["encoder"][0], expected.last_hidden_state)
        torch.testing.assert_close(result["encoder"][1], expected.pooler_output)

    def test_classifier_without_the_library(self, elsewhere):
        """It is put on the published encoder, whose weights it takes."""
        encoder, pixel_values, result = elsewhere[self.name]
        if self.classifier_class is not None:
            assert result["names"][2] == self.classifier_class.__name__
        assert not result["unexpected"]
        assert all(name.startswith("classifier.") for name in result["missing"]) and len(result["missing"]) == 2
        head = {kind: result["state"].pop(name) for name in result["missing"] for kind in [name.rpartition(".")[2]]}
        prefixes = {name.partition(".")[0] for name in result["state"]}
        assert len(prefixes) == 1
        own = {name.partition(".")[2]: tensor for name, tensor in result["state"].items()}
        assert own.keys() == encoder.state_dict().keys()
        assert all(torch.equal(own[name], tensor) for name, tensor in encoder.state_dict().items())
        logits, loss = result["classifier"]
        expected = F.linear(encoder(pixel_values).pooler_output.flatten(1), **head)
        torch.testing.assert_close(logits, expected)
        torch.testing.assert_close(loss, F.cross_entropy(expected, torch.arange(4) % 3))

    def test_remote_code_is_refused_unless_trusted(self, elsewhere):
        _, _, result = elsewhere[self.name]
        if self.encoder_class is ResNetModel:
            assert not result["refused"]
        else:
            assert len(result["refused"]) == 2
            assert all("trust_remote_code=True" in message for message in result["refused"])

    # ---- the loss ----

    @pytest.mark.parametrize(("hard_positive", "weight"), [("most_similar", 0.5), ("least_similar", 2)])
    def test_one_step_is_what_dense_sums_are(self, hard_positive, weight):
        """Losses, gradients, statistics of batch norm, and then the bank; in float64, where rounding hides nothing."""
        options = {"temperature": 0.3, "bank_momentum": 0.3}
        model = make_model(self.name, hard_positive=hard_positive, hard_positive_weight=weight, **options).double()
        perturb(model.student)
        batch, reference = self.batch(model), copy.deepcopy(model)
        batch["pixel_values"] = batch["pixel_values"].double()
        output = model(**batch)
        pooled = reference.student.backbone(batch["pixel_values"]).pooler_output.flatten(1)
        features = F.normalize(reference.student.projection(pooled))
        losses = dense_losses(reference, features)
        assert output.losses.keys() == losses.keys() and min(losses.values()) > 0
        for name, loss in losses.items():
            torch.testing.assert_close(output.losses[name], loss, rtol=1e-11, atol=0)
        torch.testing.assert_close(output.loss, sum(losses.values()), rtol=1e-12, atol=0)
        torch.testing.assert_close(output.features, features)
        assert output.metrics["with_neighbors"].item() == pytest.approx(4 / 6)
        output.loss.backward()
        sum(losses.values()).backward()
        for (name, ours), theirs in zip(model.named_parameters(), reference.parameters(), strict=True):
            assert (ours.grad is None) == (theirs.grad is None), name
            if ours.grad is not None:
                torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-8, atol=1e-11, msg=name)
        for (name, ours), theirs in zip(model.student.named_buffers(), reference.student.named_buffers(), strict=True):
            torch.testing.assert_close(ours, theirs[1], rtol=1e-10, atol=1e-12, msg=name)
        expected = reference.bank.rows.clone()
        for place, image in enumerate(INDEX):
            expected[image] = F.normalize(0.3 * expected[image] + 0.7 * features[place].detach(), dim=0)
        torch.testing.assert_close(model.bank.rows, expected, rtol=1e-12, atol=1e-14)

    def test_bank_changes_in_training_only(self, model):
        """Exactly the rows of the batch, whether or not a gradient is wanted; and neighbors never."""
        batch, links = self.batch(model), model.bank.neighbors.links.clone()
        before = model.bank.rows.clone()
        model.eval()
        model(**batch)
        assert torch.equal(model.bank.rows, before)
        model.train()
        model(**batch)
        changed = (model.bank.rows != before).any(1)
        assert sorted(changed.nonzero()[:, 0].tolist()) == sorted(INDEX)
        assert not model.bank.rows.requires_grad and torch.equal(model.bank.neighbors.links, links)
        torch.testing.assert_close(model.bank.rows[INDEX].norm(dim=1), torch.ones(len(INDEX), device=DEVICE))
        with torch.no_grad():
            middle = model.bank.rows.clone()
            model(**batch)
        assert sorted((model.bank.rows != middle).any(1).nonzero()[:, 0].tolist()) == sorted(INDEX)

    # ---- the bank and the weights ----

    def test_saved_run(self, model, tmp_path):
        """`pretraining/` holds weights and bank."""
        batch = self.batch(model)
        model(**batch)
        model.eval()
        expected = model(**batch)
        processor = evaluation_processor(self.config().backbone_config.image_size, [0.5] * 3, [0.5] * 3)
        export_run(model, processor, tmp_path)
        assert not (tmp_path / "bank.safetensors").exists()
        loaded = ISLForPreTraining.from_pretrained(tmp_path / "pretraining").to(DEVICE)
        assert loaded.bank is None
        loaded.load_state(tmp_path / "pretraining")
        assert torch.equal(loaded.bank.rows, model.bank.rows) and loaded.bank.rows.device == model.bank.rows.device
        for image in range(NUM_IMAGES):
            found = loaded.bank.neighbors.of(torch.tensor([image], device=DEVICE))
            assert found[1][found[2]].tolist() == neighbors_of(image)
        output = loaded.eval()(**batch)
        assert torch.equal(output.loss, expected.loss)
        assert all(torch.equal(output.losses[name], loss) for name, loss in expected.losses.items())

    def test_training_continues(self, model, tmp_path):
        """Bit for bit, with what was saved."""

        def train(model, optimizer, seeds):
            losses = []
            for seed in seeds:
                output = model.train()(**make_batch(model.config, seed))
                optimizer.zero_grad()
                output.loss.backward()
                optimizer.step()
                losses.append(output.loss.item())
            return losses

        def optimizer_of(model):
            parameters = [p for p in model.parameters() if p.requires_grad]
            return torch.optim.SGD(parameters, lr=0.03, momentum=0.9, weight_decay=5e-4)

        optimizer = optimizer_of(model)
        train(model, optimizer, range(2))
        model.save_pretrained(tmp_path, save_original_format=False)
        model.save_state(tmp_path)
        state = copy.deepcopy(optimizer.state_dict())
        expected = train(model, optimizer, range(2, 5))
        assert len(set(expected)) == 3
        loaded = ISLForPreTraining.from_pretrained(tmp_path).to(DEVICE)
        loaded.load_state(tmp_path)
        optimizer = optimizer_of(loaded)
        optimizer.load_state_dict(state)
        assert train(loaded, optimizer, range(2, 5)) == expected
        assert torch.equal(loaded.bank.rows, model.bank.rows)

    def test_export_after_load(self, model, tmp_path):
        model(**self.batch(model))  # statistics that are not those of the beginning
        expected = model.export_encoder()
        assert type(expected) is self.encoder_class
        assert not any(isinstance(module, SyncBatchNorm) for module in expected.modules())
        model.save_pretrained(tmp_path, save_original_format=False)
        actual = ISLForPreTraining.from_pretrained(tmp_path).export_encoder()
        assert type(actual) is type(expected)
        assert actual.state_dict().keys() == expected.state_dict().keys()
        for name, tensor in expected.state_dict().items():
            assert torch.equal(actual.state_dict()[name].to(DEVICE), tensor), name
        for encoder, folder in ((actual, "actual"), (expected, "expected")):
            encoder.save_pretrained(tmp_path / folder)
        assert (tmp_path / "actual/config.json").read_text() == (tmp_path / "expected/config.json").read_text()

    def test_batch_norm(self, model):
        """For several processes, under the names of the plain class."""
        plain = self.encoder_class(model.config.backbone_config)
        own = model.student.backbone
        assert [name for name, _ in own.named_parameters()] == [name for name, _ in plain.named_parameters()]
        assert [name for name, _ in own.named_buffers()] == [name for name, _ in plain.named_buffers()]
        norms = {name: module for name, module in own.named_modules() if isinstance(module, _BatchNorm)}
        assert norms.keys() == {name for name, module in plain.named_modules() if isinstance(module, _BatchNorm)}
        for norm in norms.values():
            assert type(norm) is SyncBatchNorm and (norm.eps, norm.momentum) == (1e-5, 0.1)
            assert (norm.weight == 1).all() and (norm.bias == 0).all()
            assert (norm.running_mean == 0).all() and (norm.running_var == 1).all() and norm.num_batches_tracked == 0

    def test_project(self, model):
        """What is normalized to be compared."""
        model.eval()
        pixel_values = self.batch(model)["pixel_values"]
        pooled = model.export_encoder()(pixel_values).pooler_output.flatten(1)
        assert pooled.shape == (len(INDEX), feature_size(model.config.backbone_config))
        projected = model.project(pooled)
        torch.testing.assert_close(projected, model.student.projection(pooled), rtol=0, atol=0)
        torch.testing.assert_close(model.encode(pixel_values), F.normalize(projected), rtol=1e-5, atol=1e-6)


class TestISLResNet(TestISL):
    """The ResNet of stock transformers."""

    name = "resnet"
    encoder_class, classifier_class = ResNetModel, None
    encoder_module = "transformers."


class TestISLAlexNet(TestISL):
    name = "cifar_alexnet"
    encoder_class, classifier_class = AlexNetModel, AlexNetForImageClassification


class TestISLAlexNetOfPhotos(TestISLAlexNet):
    name = "imagenet_alexnet"


# ---- of any encoder ----


def test_round_without_neighbors():
    """Cross-entropy over all images."""
    model = make_model().eval()
    model.make_bank(NUM_IMAGES, seed=1)
    batch = make_batch(model.config)
    output = model(**batch)
    expected = F.cross_entropy(output.features @ model.bank.rows.T / 0.1, batch["index"])
    torch.testing.assert_close(output.losses["instance"], expected)
    assert output.losses["neighbors"] == 0 and output.losses["hard_positive"] == 0
    assert output.metrics["with_neighbors"] == 0


def test_full_precision():
    """Whatever the convolutions are computed in: features of unit length in float32, and what is made of them."""
    model = make_model()
    reference = copy.deepcopy(model)
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        output = model(**make_batch(model.config))
    features = output.features
    assert features.dtype == torch.float32 and features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(INDEX), device=DEVICE), rtol=1e-6, atol=0)
    for name, loss in dense_losses(reference, features).items():
        torch.testing.assert_close(output.losses[name], loss, rtol=1e-5, atol=1e-6)
    expected = F.normalize(0.5 * reference.bank.rows[INDEX] + 0.5 * features)
    torch.testing.assert_close(model.bank.rows[INDEX], expected, rtol=1e-6, atol=1e-7)


def test_no_bank():
    model = ISLForPreTraining(make_model().config).to(DEVICE)
    with pytest.raises(ValueError, match=r"no memory bank .*make_bank\(.*load_state\("):
        model(**make_batch(model.config))


def test_only_the_student_is_trained_by_the_loss():
    model = make_model()
    assert {name.partition(".")[0] for name, p in model.named_parameters() if p.requires_grad} == {"student"}


def test_bank_is_not_among_the_weights():
    assert {name.partition(".")[0] for name in make_model().state_dict()} == {"student", "generator", "discriminator"}


def test_no_teacher():
    with pytest.raises(ValueError, match="ISL has no teacher"):
        make_model().export_encoder("teacher")


# ---- configuration ----


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("projection_dim", 1),
        ("bank_momentum", -0.1),
        ("agreement_window", 1.1),
        ("score_threshold", -0.1),
        ("similarity_threshold", -0.1),
        ("gan_betas", [0.9, 1.0]),
        ("gan_betas", [-0.1, 0.9]),
        ("gan_betas", [0.9, 0.99, 0.999]),
        ("feature", "patch_mean"),
    ],
)
def test_other_ends_of_ranges(name, value):
    with pytest.raises((ValueError, StrictDataclassError), match=name):
        ISLConfig(backbone_config=BACKBONES["cifar_resnet"], **{name: value})


def test_ends_of_ranges_are_allowed():
    values = {"bank_momentum": 0, "agreement_window": 1, "score_threshold": 0, "similarity_threshold": 0}
    values |= {"gan_betas": [0.0, 0.0], "gan_min_steps": 0, "neighbors_per_round": 0, "hard_positive_weight": 0}
    values |= {"num_rounds": 1, "gan_max_epochs": 1, "gan_patience": 1, "links_per_proxy": 1, "mining_max_passes": 1}
    values |= {"num_negatives": 1, "projection_dim": 2}
    config = ISLConfig(backbone_config=BACKBONES["cifar_resnet"], **values)
    assert all(getattr(config, name) == value for name, value in values.items())
    assert ISLForPreTraining(config).discriminator.fc2.out_features == 1


def test_defaults_are_those_of_the_original():
    config = ISLConfig(backbone_config=BACKBONES["cifar_resnet"])
    expected = {"projection_dim": 128, "temperature": 0.1, "bank_momentum": 0.5, "hard_positive_weight": 0.5}
    expected |= {"hard_positive": "most_similar", "num_rounds": 4, "final_backbone_stage": False}
    expected |= {"num_negatives": 4096, "positive_from": "own_row", "gan_learning_rate": 1e-4, "gan_max_epochs": 200}
    expected |= {"gan_betas": [0.9, 0.999], "score_threshold": 0.5, "similarity_threshold": 0.6}
    expected |= {"links_per_proxy": 10, "neighbors_per_round": 0.5}
    assert {name: getattr(config, name) for name in expected} == expected
    assert config.num_backbone_stages == 4
    assert ISLConfig(backbone_config=BACKBONES["cifar_resnet"], final_backbone_stage=True).num_backbone_stages == 5


def test_backbones_that_it_cannot_train():
    with pytest.raises(ValueError, match="'vit' is not supported by ISL.*--backbone resnet18"):
        ISLConfig(backbone_config=ViTConfig())
    with pytest.raises(ValueError, match="backbone_config needs image_size"):
        ISLConfig(backbone_config=ResNetConfig(**RESNET))


# ---- the bank ----


def test_bank_is_made_from_its_seed():
    model = make_model()
    model.prepare_training(NUM_IMAGES, 7, "images")
    first = model.bank.rows.clone()
    assert first.shape == (NUM_IMAGES, 12) and len(model.bank.neighbors) == 0
    model.make_bank(NUM_IMAGES, 7)
    assert torch.equal(model.bank.rows, first)
    model.make_bank(NUM_IMAGES, 8)
    assert (model.bank.rows != first).all()


def test_rows_are_shared_once_every_image_was_met():
    """Before that, some are random."""
    model = make_model()
    side = model.config.backbone_config.image_size
    assert ISLForPreTraining(model.config).held_features() is None and model.held_features() is None
    for index in torch.arange(NUM_IMAGES, device=DEVICE).split(5):
        assert model.held_features() is None
        model(torch.randn(5, 3, side, side, device=DEVICE), index)
    assert model.held_features() is model.bank.rows


def test_state_without_a_bank(tmp_path):
    model = ISLForPreTraining(make_model().config)
    model.save_state(tmp_path)
    assert not list(tmp_path.iterdir())
    model.load_state(tmp_path)
    assert model.bank is None
    model.make_bank(5)
    model.load_state(tmp_path)
    assert len(model.bank) == 5


def test_state_replaces_another_bank(tmp_path):
    model, other = make_model(), make_model()
    model.save_state(tmp_path)
    other.make_bank(7)
    other.bank.neighbors.add(torch.tensor([0], device=DEVICE), torch.tensor([6], device=DEVICE))
    other.load_state(tmp_path)
    assert torch.equal(other.bank.rows, model.bank.rows)
    assert torch.equal(other.bank.neighbors.links, model.bank.neighbors.links)
    assert torch.equal(other.bank.neighbors.offsets, model.bank.neighbors.offsets)


# ---- initialization ----


def check_uniform(tensor, bound, name):
    assert tensor.abs().max() <= bound, name
    if tensor.numel() >= 400:
        assert tensor.abs().max() > 0.98 * bound, name
        assert tensor.std().item() == pytest.approx(bound / 3**0.5, rel=0.1), name


@pytest.mark.parametrize(("name", "size"), [("resnet-micro", 32), ("alexnet", 32)])
def test_initialization_of_pytorch(name, size):
    """Uniform in ±1/√fan_in, biases too."""
    torch.manual_seed(0)
    model = ISLForPreTraining(ISLConfig(backbone_config=convnet_config(name, size)))
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) > 7
    for layer, module in layers:
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                check_uniform(tensor, module.weight[0].numel() ** -0.5, layer)


def test_initialization_of_photos():
    """Convolutions are normal, by what goes out of them; the rest is PyTorch's own."""
    torch.manual_seed(0)
    model = ISLForPreTraining(ISLConfig(backbone_config=convnet_config("resnet-micro", 224)))
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.bias is None
            std = (2 / (module.kernel_size[0] * module.kernel_size[1] * module.out_channels)) ** 0.5
            assert module.weight.std().item() == pytest.approx(std, rel=0.1), name
            assert module.weight.abs().max() > 2.3 * std, name
        if isinstance(module, nn.Linear):
            check_uniform(module.weight, module.in_features**-0.5, name)
            check_uniform(module.bias, module.in_features**-0.5, name)


# ---- the encoders against torchvision's ----


STEM = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
KINDS = {"conv": "convolution", "bn": "normalization"}


def from_torchvision(state):
    """Its names, by transformers' ones."""
    renamed = {}
    for name, tensor in state.items():
        module, _, kind = name.rpartition(".")
        if module in STEM:
            own = STEM[module]
        else:
            layer, block, part, *number = module.split(".")
            own = f"encoder.stages.{int(layer.removeprefix('layer')) - 1}.layers.{block}."
            if part == "downsample":
                own += f"shortcut.{list(KINDS.values())[int(number[0])]}"
            else:
                own += f"layer.{int(part[-1]) - 1}.{KINDS[part[:-1]]}"
        renamed[f"{own}.{kind}"] = tensor
    return renamed


def torchvision_resnet(name, image_size):
    network = getattr(torchvision.models, name)()
    if image_size < 128:
        network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        network.maxpool = nn.Identity()
    network.fc = nn.Identity()
    return network


def plain_alexnet(config):
    """Layer by layer, from the authors' description."""
    small, width, wide = config.stem_type == "cifar", config.conv_widths, config.fc_width
    kernels = [(3, 1, 1)] * 5 if small else [(11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1)]

    def convolution(number):
        return [
            nn.Conv2d(3 if number == 0 else width[number - 1], width[number], *kernels[number]),
            nn.BatchNorm2d(width[number]),
            nn.ReLU(),
        ]

    pool = nn.MaxPool2d(2, 2) if small else nn.MaxPool2d(3, 2)
    layers = [*convolution(0), pool, *convolution(1), pool]
    layers += [*convolution(2), *convolution(3), *convolution(4), pool]
    side = {32: 4, 63: 1, 227: 6}[config.image_size]
    network = nn.Module()
    network.features = nn.Sequential(*layers)
    network.fc1 = nn.Sequential(nn.Linear(width[4] * side**2, wide), nn.BatchNorm1d(wide), nn.ReLU())
    network.fc2 = nn.Sequential(nn.Linear(wide, wide), nn.BatchNorm1d(wide), nn.ReLU())
    network.forward = lambda pixels: network.fc2(network.fc1(network.features(pixels).flatten(1)))
    return network


def check_equal(encoder, reference, rename, pixels, training=False):
    """Features; in training gradients and statistics too. In float64. The encoder may be one without values."""
    reference, pixels = reference.double(), pixels.double()
    perturb(reference)
    state = {name: tensor.clone() for name, tensor in rename(reference.state_dict()).items()}
    encoder.load_state_dict(state, strict=True, assign=True)
    encoder.train(training), reference.train(training)
    with torch.set_grad_enabled(training):
        actual, expected = encoder(pixels).pooler_output.flatten(1), reference(pixels)
    assert expected.std() > 1e-3
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)
    if training:
        weights = torch.randn_like(expected)
        (actual * weights).sum().backward()
        (expected * weights).sum().backward()
        theirs = rename({name: p.grad for name, p in reference.named_parameters()})
        for name, parameter in encoder.named_parameters():
            scale = theirs[name].abs().max().item()
            torch.testing.assert_close(parameter.grad, theirs[name], rtol=1e-7, atol=1e-9 * scale + 1e-9, msg=name)
        statistics = rename(dict(reference.named_buffers()))
        for name, buffer in encoder.named_buffers():
            torch.testing.assert_close(buffer, statistics[name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(
    ("name", "size", "pixels", "training"),
    [
        ("resnet18", 224, 64, False),
        ("resnet50", 224, 64, False),
        ("resnet18", 32, 16, True),
    ],
)
def test_resnets_are_torchvision_s(name, size, pixels, training):
    torch.manual_seed(0)
    with torch.device("meta"):
        encoder = (CifarResNetModel if size < 128 else ResNetModel)(convnet_config(name, size))
    images = torch.randn(2, 3, pixels, pixels)
    check_equal(encoder, torchvision_resnet(name, size), from_torchvision, images, training)


@pytest.mark.parametrize("name", ["cifar_alexnet", "imagenet_alexnet"])
@pytest.mark.parametrize("training", [False, True])
def test_alexnets_are_plain_sequences(name, training):
    torch.manual_seed(0)
    config = BACKBONES[name]
    pixels = torch.randn(4, 3, config.image_size, config.image_size)
    check_equal(AlexNetModel(config), plain_alexnet(config), dict, pixels, training)


def test_alexnet_of_photos_has_torchvision_s_convolutions():
    """Which has the same ones, of the same widths, with nothing between them."""
    with torch.device("meta"):
        own = AlexNetModel(convnet_config("alexnet", 227)).features
        theirs = torchvision.models.alexnet().features
    for kind in (nn.Conv2d, nn.MaxPool2d):
        found, expected = ([str(m) for m in layers if isinstance(m, kind)] for layers in (own, theirs))
        assert found == expected


@pytest.mark.parametrize(
    ("name", "size", "count"),
    [
        ("resnet18", 224, 11_176_512),
        ("resnet50", 224, 23_508_032),
        ("resnet18", 32, 11_168_832),
        ("resnet50", 32, 23_500_352),
    ],
)
def test_numbers_of_parameters(name, size, count):
    with torch.device("meta"):
        model = ISLForPreTraining(ISLConfig(backbone_config=convnet_config(name, size)))
        reference = torchvision_resnet(name, size)
    assert model.student.backbone.num_parameters() == count == sum(p.numel() for p in reference.parameters())
    width = {"resnet18": 512, "resnet50": 2048}[name]
    assert sum(p.numel() for p in model.student.projection.parameters()) == 128 * (width + 1)
    assert sum(p.numel() for p in model.generator.parameters()) == 384 * 256 + 256 + 256 * 128 + 128 + 128 * 128 + 128
    assert sum(p.numel() for p in model.discriminator.parameters()) == 384 * 128 + 128 + 128 * 64 + 64 + 64 + 1


@pytest.mark.parametrize("size", [32, 227])
def test_numbers_of_parameters_of_alexnet(size):
    with torch.device("meta"):
        config = convnet_config("alexnet", size)
        encoder, reference = AlexNetModel(config), plain_alexnet(config)
    assert (config.fc_width, config.stem_type) == ((1024, "cifar") if size == 32 else (4096, "imagenet"))
    assert encoder.num_parameters() == sum(p.numel() for p in reference.parameters())


def test_sizes_of_images():
    """A ResNet takes any; an AlexNet, whose connections are full, the one that it is made for."""
    torch.manual_seed(0)
    small, photos = CifarResNetModel(BACKBONES["cifar_resnet"]).eval(), ResNetModel(BACKBONES["resnet"]).eval()
    assert small(torch.randn(1, 3, 24, 24)).last_hidden_state.shape == (1, 24, 3, 3)
    assert photos(torch.randn(1, 3, 96, 96)).last_hidden_state.shape == (1, 24, 3, 3)
    with pytest.raises(ValueError, match=r"\(24, 24\) pixels; this AlexNet takes 32x32"):
        AlexNetModel(BACKBONES["cifar_alexnet"])(torch.randn(2, 3, 24, 24))
    with pytest.raises(ValueError, match="image_size=62 is too small"):
        AlexNetConfig(image_size=62, stem_type="imagenet")
    assert AlexNetConfig(image_size=63, stem_type="imagenet").map_size == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("conv_widths", [4, 6]), ("conv_widths", [4, 6, 8, 6, 0]), ("fc_width", 0), ("stem_type", "photo")],
)
def test_wrong_alexnets(name, value):
    with pytest.raises((ValueError, StrictDataclassError), match=name):
        AlexNetConfig(**{name: value})


def test_classifiers_of_the_library(tmp_path):
    """In a process with hf_ssl, its own classes are used, and nothing is asked."""
    for name in ("cifar_resnet", "cifar_alexnet"):
        make_model(name).export_encoder().save_pretrained(tmp_path / name)
        model = AutoModelForImageClassification.from_pretrained(tmp_path / name, num_labels=3)
        assert type(model).__module__.startswith("hf_ssl.") and model.classifier is not None
        assert type(AutoModel.from_pretrained(tmp_path / name)).__module__.startswith("hf_ssl.")
