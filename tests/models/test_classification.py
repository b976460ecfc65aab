"""A classifier in training: of every kind of encoder, from a pretrained one or from scratch, and as it is published."""

import logging
import math
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from timm.data.mixup import mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch import nn
from transformers import (
    AutoModel,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    SwinConfig,
    ViTConfig,
    ViTMAEConfig,
)

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import ENCODERS, interpolate_positions, publish, timm_config
from hf_ssl.backbones.modeling_alexnet import AlexNetConfig
from hf_ssl.backbones.modeling_cifar_resnet import CifarResNetConfig
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig
from hf_ssl.hub import evaluation_processor, export_run, save_published
from hf_ssl.models import Step
from hf_ssl.models.batch_norm import SyncBatchNorm
from hf_ssl.models.classification import ClassificationConfig, ClassifierForTraining
from hf_ssl.views import Draws

from ..device import DEVICE


RESNET = {"layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 8, 12, 16], "depths": [1, 1, 1, 1]}
NAMES = ["ant", "bee", "cat", "dog", "elk"]


def vit(**overrides):
    sizes = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    fields = {**sizes, "image_size": 16, "patch_size": 4, "layer_norm_eps": 1e-6, "pooler_act": "linear"}
    return ViTConfig(**{**fields, **overrides})


def swin():
    return SwinConfig(image_size=16, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=4)


def t2t_vit():
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2, "token_dim": 8}
    return T2TViTConfig(image_size=32, **sizes)


KINDS = {
    "vit": vit,
    "swin": swin,
    "t2t_vit": t2t_vit,
    "resnet": lambda: ResNetConfig(**RESNET, image_size=32),
    "cifar_resnet": lambda: CifarResNetConfig(**RESNET, image_size=16),
    "alexnet": lambda: AlexNetConfig(image_size=32, conv_widths=[4, 6, 8, 6, 4], fc_width=16),
    "timm_vit": lambda: timm_config("timm/test_vit", 32),
    "timm_resnet": lambda: timm_config("timm/test_resnet", 32),
    "convnext": lambda: ConvNextConfig(image_size=32, hidden_sizes=[4, 4, 8, 8], depths=[1, 1, 1, 1]),
}
# Trained by loops of ours.
TRUNKS = ("vit", "swin")
WITH_BATCH_NORM = ("resnet", "cifar_resnet", "alexnet", "timm_resnet")


def make(kind, **overrides):
    torch.manual_seed(0)
    encoder = overrides.pop("encoder", None) or KINDS[kind]()
    return ClassifierForTraining(ClassificationConfig(backbone_config=encoder, **{"num_labels": 5, **overrides}))


def batch_of(model, count=6):
    size = model.config.backbone_config.image_size
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, size, size, generator=generator)
    return images.to(DEVICE), torch.randint(5, (count,), generator=generator).to(DEVICE)


def seen(model):
    """A model with other batch statistics than those it begins with."""
    model.to(DEVICE).train()
    for _ in range(3):
        model(batch_of(model)[0] * 2 + 1)
    return model.eval()


def step(count=6):
    index = torch.arange(count, device=DEVICE)
    return Step(
        Draws.for_batch(0, 3, device=DEVICE), Draws.for_samples(0, torch.full_like(index, 2), index), values={}
    )


# ---- the loss ----


@pytest.mark.parametrize("kind", KINDS)
def test_forward(kind):
    model = make(kind, label_smoothing=0.2).to(DEVICE)
    images, labels = batch_of(model)
    output = model(images, labels)
    scores = output.logits["classification"]
    assert scores.shape == (6, 5)
    log_likelihood = scores.double().log_softmax(1)
    own = log_likelihood[torch.arange(6), labels]
    torch.testing.assert_close(output.loss.double(), -(0.8 * own + 0.2 * log_likelihood.mean(1)).mean())
    assert output.losses.keys() == {"classification"} and torch.equal(output.losses["classification"], output.loss)
    right = sum(int(row.argmax()) == label for row, label in zip(scores, labels.tolist(), strict=True))
    assert output.metrics["accuracy_classification"].item() == pytest.approx(right / 6)
    output.loss.backward()
    for name, parameter in model.named_parameters():  # DDP would wait for the others
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_without_smoothing_and_without_labels():
    model = make("vit").to(DEVICE)
    images, labels = batch_of(model)
    output = model(images, labels)
    assert torch.equal(output.loss, F.cross_entropy(output.logits["classification"], labels))
    unlabeled = model(images)
    assert unlabeled.loss is None and torch.equal(unlabeled.logits["classification"], output.logits["classification"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets(smoothing):
    """timm's loss of timm's smoothed targets; the accuracy is that of the class with the larger share."""
    model = make("vit", label_smoothing=smoothing).to(DEVICE)
    images, labels = batch_of(model)
    plain, smoothed = (mixup_target(labels, 5, 0.7, of) for of in (0.0, smoothing))
    output = model(images, plain)
    scores = output.logits["classification"]
    torch.testing.assert_close(output.loss, SoftTargetCrossEntropy()(scores, smoothed))
    assert torch.equal(
        output.metrics["accuracy_classification"], model(images, labels).metrics["accuracy_classification"]
    )
    # Of shares that are all or nothing it is the loss of classes.
    torch.testing.assert_close(model(images, mixup_target(labels, 5)).loss, model(images, labels).loss)


def test_average_begins_as_what_it_is_of(tmp_path):
    """Also where the weights are those of a pretrained encoder; it is saved, loaded, and answers nothing in training."""
    model = make("resnet", ema_decay=0.9)
    for step in range(2):
        weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("teacher.")}
        assert all(torch.equal(tensor, model.teacher.state_dict()[name]) for name, tensor in weights.items())
        if step == 0:
            model.load_encoder(upstream("resnet", tmp_path / "encoder"))
    assert model.teacher.teacher is None and not model.train().teacher.training and model.training
    model.teacher.head.weight.data += 1
    model.save_pretrained(tmp_path / "model", save_original_format=False)
    loaded = ClassifierForTraining.from_pretrained(tmp_path / "model")
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in loaded.teacher.parameters())
    with pytest.raises(ValueError, match="no moving average of the weights: train with --ema_decay"):
        make("vit").export_classifier(which="teacher")


def test_options_that_are_refused():
    refused = {"drop_path_rate": (-0.1, 1.0), "label_smoothing": (-0.1, 1.0), "ema_decay": (-0.1, 1.0)}
    for name, values in refused.items():
        for value in values:
            with pytest.raises((ValueError, StrictDataclassError), match=name):
                make("vit", **{name: value})
    for kind in KINDS:
        if kind not in TRUNKS:
            with pytest.raises((ValueError, StrictDataclassError), match="ViT and Swin only.*--drop_path_rate 0"):
                make(kind, drop_path_rate=0.1)


# ---- stochastic depth ----


@pytest.mark.parametrize("kind", TRUNKS)
def test_stochastic_depth_is_that_of_pretraining(kind):
    """RelViT's, with the same weights: an image drops the same branches, to the same effect."""
    model = make(kind, drop_path_rate=0.6).to(DEVICE).train()
    config = RelViTConfig(backbone_config=KINDS[kind](), tasks=["classification"], num_labels=5, drop_path_rate=0.6)
    relvit = RelViTForPreTraining(config).to(DEVICE).train()
    relvit.student.load_state_dict(model.student.state_dict())
    relvit.classifier.load_state_dict(model.classifier.state_dict())
    images, labels = batch_of(model)
    inputs, expected = model.step_inputs(step()), relvit.step_inputs(step())
    assert inputs.keys() == expected.keys() == {"drop_path_keep"}
    keep = inputs["drop_path_keep"]
    assert keep.shape == (sum(getattr(KINDS[kind](), "depths", [2])), 2, 6) and not keep.all()
    assert torch.equal(keep, expected["drop_path_keep"])
    output = model(images, labels, **inputs)
    torch.testing.assert_close(output.loss, relvit(images, labels=labels, **expected).loss)
    assert not torch.allclose(output.loss, model(images, labels).loss)


def test_no_stochastic_depth():
    assert make("vit").step_inputs(step()) == make("resnet").step_inputs(step()) == {}


# ---- what it begins with ----


@pytest.mark.parametrize("kind", KINDS)
def test_classifier_begins_as_a_linear_layer_of_torch(kind):
    """But a Swin's: it is a part of the authors' Swin, and begins as all of its layers do."""
    head = make(kind).head
    assert isinstance(head, nn.Linear) and head.out_features == 5
    if kind == "swin":
        assert head.weight.std().item() == pytest.approx(0.02, rel=0.35) and not head.bias.any()
        return
    bound = head.in_features**-0.5
    assert 0.9 * bound < head.weight.abs().max() <= bound and 0 < head.bias.abs().max() <= bound
    assert head.bias.unique().numel() == 5


@pytest.mark.parametrize("kind", TRUNKS)
def test_encoder_from_scratch(kind):
    """The authors' initialization: 0.02 everywhere, but for the patch convolution."""
    model = make(kind)
    convolution = model.student.embeddings.patch_embeddings.projection
    bound = convolution.weight[0].numel() ** -0.5
    for values in (convolution.weight, convolution.bias):
        assert 0.8 * bound < values.abs().max() <= bound
    tables = 0
    for name, parameter in model.student.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif "projection" not in name and name.endswith("bias"):
            assert not parameter.any(), name
        elif "projection" not in name:
            tables += not name.endswith("weight")
            # Of 36 numbers, the standard deviation is within a third.
            assert parameter.std().item() == pytest.approx(0.02, rel=0.35), name
    assert tables == (2 if kind == "vit" else 4)  # class token and positions; biases of the layers


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in (*TRUNKS, "convnext")])
def test_encoder_from_scratch_begins_as_in_pretraining(kind):
    model = make(kind)
    config = KINDS[kind]()
    encoder = ENCODERS[config.model_type](config)
    if config.model_type == "timm_wrapper":  # and that is timm's own
        encoder = timm.create_model(config.architecture, num_classes=0, **(config.model_args or {}))
    own = dict(model.student.base_model.named_parameters())
    compared = 0
    for name, parameter in encoder.named_parameters():
        assert own[name].shape == parameter.shape
        if parameter.numel() < 300 or not parameter.std():
            assert own[name].mean().item() == pytest.approx(parameter.mean().item(), abs=0.2), name
        else:
            assert own[name].std().item() == pytest.approx(parameter.std().item(), rel=0.2), name
            compared += 1
    assert compared > 2


@pytest.mark.parametrize("kind", WITH_BATCH_NORM)
def test_batch_norms_are_those_of_all_processes(kind):
    model = make(kind)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert norms and all(isinstance(norm, SyncBatchNorm) for norm in norms)
    published = [m for m in model.export_classifier().modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(published) == len(norms) and not any(isinstance(norm, SyncBatchNorm) for norm in published)


# ---- from a pretrained encoder ----


def upstream(kind, folder, config=None):
    """The folder of an encoder whose weights are unlike any initialization."""
    config = config or KINDS[kind]()
    torch.manual_seed(1)
    encoder = ENCODERS[config.model_type](config) if config.model_type in ENCODERS else AutoModel.from_config(config)
    with torch.no_grad():
        for tensor in encoder.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand_like(tensor))
    processor = evaluation_processor(config.image_size, [0.5] * 3, [0.5] * 3)
    save_published(publish(encoder) if config.model_type in ENCODERS else encoder, processor, folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_handover(kind, tmp_path):
    """The classifier of a fresh model works on the features of the pretrained encoder."""
    folder = upstream(kind, tmp_path)
    model = make(kind)
    head = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    model.load_encoder(folder)
    assert all(torch.equal(tensor, head[name]) for name, tensor in model.head.state_dict().items())
    model.to(DEVICE).eval()
    encoder = AutoModel.from_pretrained(folder).to(DEVICE)
    images, _ = batch_of(model)
    with torch.no_grad():
        outputs = encoder(images)
        features = outputs.last_hidden_state[:, 0] if kind == "vit" else outputs.pooler_output.flatten(1)
        expected = features @ head["weight"].to(DEVICE).T + head["bias"].to(DEVICE)
        # Answers of a network that has seen nothing may be large: what counts is their relative error.
        torch.testing.assert_close(model(images).logits["classification"], expected, rtol=2e-5, atol=1e-5)
    own = (model.student if kind in TRUNKS else model.student.base_model).state_dict()
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("pooler."):
            assert torch.equal(own.pop(name.removeprefix("timm_model.")), tensor), name
    assert len(own) == (2 if kind.startswith("timm") else 0)  # timm's classifier is a part of the encoder


def relvit_folder(folder, **overrides):
    """What RelViT leaves behind: an encoder that was trained without positions, or with them."""
    torch.manual_seed(1)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=vit(), **overrides))
    export_run(model, evaluation_processor(16, [0.5] * 3, [0.5] * 3), folder)
    return model


def test_encoder_without_positions(tmp_path, caplog):
    """Fine-tuning begins with a random table; everything else is the folder's."""
    relvit = relvit_folder(tmp_path)
    model = make("vit")
    fresh = model.student.embeddings.position_embeddings.clone()
    with caplog.at_level(logging.WARNING):
        model.load_encoder(tmp_path)
    assert "pretrained without positions" in caplog.text
    assert not load_file(tmp_path / "model.safetensors")["embeddings.position_embeddings"].any()
    for name, tensor in model.student.state_dict().items():
        expected = fresh if name == "embeddings.position_embeddings" else relvit.student.state_dict()[name]
        assert torch.equal(tensor, expected), name
    assert model.student.embeddings.position_embeddings.std().item() == pytest.approx(0.02, rel=0.2)
    assert model.student.embeddings.position_embeddings.requires_grad


@pytest.mark.parametrize("side", [4, 6, 2])
def test_positions_are_kept_or_resized(tmp_path, caplog, side):
    relvit = relvit_folder(tmp_path, use_position_embeddings=True)
    model = make("vit", encoder=vit(image_size=4 * side))
    with caplog.at_level(logging.WARNING):
        model.load_encoder(tmp_path)
    assert not caplog.records
    table = relvit.student.embeddings.position_embeddings
    actual = model.student.embeddings.position_embeddings
    assert actual.shape == (1, 1 + side * side, 36)
    assert torch.equal(actual, table if side == 4 else interpolate_positions(table, (side, side)))
    # As the stock encoder does for itself.
    stock, images = AutoModel.from_pretrained(tmp_path).eval(), torch.randn(2, 3, 4 * side, 4 * side)
    with torch.no_grad():
        expected = stock(images, interpolate_pos_encoding=True).last_hidden_state
        torch.testing.assert_close(model.student.eval()(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("has_position", [False, True])
def test_class_token_without_position(tmp_path, has_position):
    """As APS has it: in fine-tuning it gets none either."""
    folder = upstream("vit", tmp_path)
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.position_embeddings"][:, 0] *= has_position
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    model = make("vit", ema_decay=0.5)
    model.load_encoder(folder)
    table = model.student.embeddings.position_embeddings
    before = table.detach().clone()
    model(*batch_of(model.to(DEVICE))).loss.backward()
    torch.optim.AdamW([table], weight_decay=0.1).step()
    moved = (table.detach().cpu() != before).any(-1)[0]
    assert moved[1:].all() and moved[0] == has_position
    published = model.export_classifier(which="student").vit.embeddings.position_embeddings
    assert published[0, 0].any() == has_position


def test_wrong_folders(tmp_path):
    of = {kind: upstream(kind, tmp_path / kind) for kind in ("vit", "resnet")}
    model = make("vit")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="holds an encoder of type resnet, and this classifier has one of type vit"):
        model.load_encoder(of["resnet"])
    with pytest.raises(ValueError, match="type vit, and .* resnet"):
        make("resnet").load_encoder(of["vit"])
    for count in (1, 3):
        deep = upstream("vit", tmp_path / f"deep{count}", vit(num_hidden_layers=count))
        with pytest.raises(ValueError, match=r"deep\d holds another encoder.*layers\."):
            make("vit").load_encoder(deep)
    wide = upstream("vit", tmp_path / "wide", vit(hidden_size=48))
    with pytest.raises(ValueError, match=r"wide holds an encoder of other sizes[\s\S]*cls_token"):
        make("vit").load_encoder(wide)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["vit", "timm_vit"])
def test_folder_that_lacks_weights(tmp_path, kind):
    """transformers would only warn, and make them up."""
    folder = upstream(kind, tmp_path)
    weights = load_file(folder / "model.safetensors")
    stored, name = {
        "vit": ("encoder.layer.1.intermediate.dense.weight", "layers.1.mlp.fc1.weight"),
        "timm_vit": ("blocks.1.mlp.fc1.weight",) * 2,
    }[kind]
    del weights[stored]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"does not hold all of its encoder; {name}"):
        make(kind).load_encoder(folder)


def test_from_a_classifier(tmp_path):
    """A folder that an earlier fine-tuning left: its encoder is taken, its classes are not."""
    first = make("vit", num_labels=3)
    save_published(first.export_classifier(), evaluation_processor(16, [0.5] * 3, [0.5] * 3), tmp_path)
    model = make("vit")
    model.load_encoder(tmp_path)
    assert model.head.out_features == 5
    for name, tensor in first.student.state_dict().items():
        assert torch.equal(tensor, model.student.state_dict()[name]), name


# ---- a frozen encoder ----


@pytest.mark.parametrize("kind", ["vit", "swin", "t2t_vit", "resnet", "timm_resnet"])
def test_frozen_encoder(tmp_path, kind):
    model = make(kind, freeze_encoder=True, **({"drop_path_rate": 0.5} if kind in TRUNKS else {})).to(DEVICE)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2
    images, labels = batch_of(model)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    model.train()
    losses = []
    for _ in range(5):
        losses.append(model(images, labels, **model.step_inputs(step())).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == trainable, "neither weights nor statistics of the encoder change"
    loss = model(images, labels, **model.step_inputs(step())).loss
    assert torch.equal(loss, model.eval()(images, labels).loss), "it is not disturbed either"
    assert model.train().training

    model.save_pretrained(tmp_path, save_original_format=False)
    loaded = ClassifierForTraining.from_pretrained(tmp_path)
    assert {name for name, parameter in loaded.named_parameters() if parameter.requires_grad} == trainable


def test_everything_learns_unless_frozen():
    for kind in KINDS:
        model = make(kind)
        assert all(parameter.requires_grad for parameter in model.parameters())
        assert all(module.training for module in model.train().modules())


# ---- saving ----


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    """A checkpoint of a run."""
    model = seen(make(kind, label_smoothing=0.1))
    images, labels = batch_of(model)
    model.save_pretrained(tmp_path, save_original_format=False)
    loaded, info = ClassifierForTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert loaded.config.label_smoothing == 0.1 and loaded.config.num_labels == 5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor.cpu(), loaded.state_dict()[name]), name
    with torch.no_grad():
        torch.testing.assert_close(loaded.to(DEVICE).eval()(images, labels).loss, model(images, labels).loss)


@pytest.mark.parametrize("kind", KINDS)
def test_export(kind):
    model = seen(make(kind))
    images, _ = batch_of(model)
    state = torch.get_rng_state()
    published = model.export_classifier(NAMES)
    assert torch.equal(torch.get_rng_state(), state) and not published.training
    assert published.config.id2label == dict(enumerate(NAMES)) and published.config.num_labels == 5
    assert published.config.label2id == {name: i for i, name in enumerate(NAMES)}
    with torch.no_grad():
        expected = model(images).logits["classification"]
        torch.testing.assert_close(published(images).logits, expected, rtol=1e-5, atol=1e-6)
        for parameter in published.parameters():
            parameter.add_(1.0)
        assert torch.equal(model(images).logits["classification"], expected), "it is a copy"


def test_export_of_classes_without_names():
    published = make("vit", num_labels=3).bfloat16().export_classifier()
    assert published.config.id2label == {0: "0", 1: "1", 2: "2"} and published.dtype == torch.float32


@pytest.mark.slow
def test_export_without_the_library(tmp_path):
    """A process that never imports hf_ssl gets the same answers, and the names of the classes; timm loads its own models."""
    expected = {}
    for kind in KINDS:
        model = seen(make(kind))
        images, _ = batch_of(model)
        size = model.config.backbone_config.image_size
        processor = evaluation_processor(size, [0.4] * 3, [0.5] * 3)
        save_published(model.export_classifier(NAMES), processor, tmp_path / kind)
        with torch.no_grad():
            expected[kind] = model(images).logits["classification"]
        torch.save(images, tmp_path / kind / "images.pt")
    code = f"""
import sys
from pathlib import Path
import timm, torch
from transformers import AutoImageProcessor, AutoModelForImageClassification
torch.set_grad_enabled(False)
for kind in {list(KINDS)!r}:
    folder = Path({str(tmp_path)!r}) / kind
    own = kind in ("t2t_vit", "cifar_resnet", "alexnet")
    model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=own).to({DEVICE!r})
    assert list(model.config.id2label.values()) == {NAMES!r}, kind
    processor = AutoImageProcessor.from_pretrained(folder)
    mean = processor.data_config["mean"] if kind.startswith("timm") else processor.image_mean
    assert list(mean) == [0.4] * 3, kind
    images = torch.load(folder / "images.pt", weights_only=True, map_location={DEVICE!r})
    answers = [model(pixel_values=images).logits]
    if kind.startswith("timm"):
        of_timm = timm.create_model(f"local-dir:{{folder}}", pretrained=True).eval().to({DEVICE!r})
        assert of_timm.pretrained_cfg["label_names"] == {NAMES!r} and of_timm.pretrained_cfg["mean"] == [0.4] * 3
        answers.append(of_timm(images))
    torch.save(answers, folder / "answers.pt")
assert not any(name.split(".")[0] == "hf_ssl" for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)
    for kind in KINDS:
        answers = torch.load(tmp_path / kind / "answers.pt", weights_only=True, map_location=DEVICE)
        assert len(answers) == 1 + kind.startswith("timm")
        for answer in answers:
            torch.testing.assert_close(answer, expected[kind], rtol=1e-4, atol=1e-5, msg=kind)
            assert math.isfinite(answer.sum().item())


# ---- encoders of others ----


SIZES = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 8}


def test_what_has_no_part_in_the_answer_is_frozen():
    """DDP would wait for its gradient."""
    model = make("vit", encoder=Dinov2Config(**SIZES))
    model.freeze()  # as the trainer does once more
    model(*batch_of(model.to(DEVICE))).loss.backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {"student.dinov2.embeddings.mask_token"}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_head_that_is_a_convolution():
    model = make("vit", encoder=timm_config("timm/resnetv2_18", 32))
    assert isinstance(model.head, nn.Conv2d) and model.head.out_channels == 5
    model = make("vit", encoder=timm_config("timm/resnetv2_18", 32), freeze_encoder=True)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "student.timm_model.head.fc.weight",
        "student.timm_model.head.fc.bias",
    }


def test_two_heads_are_refused():
    encoder = timm_config("timm/deit_tiny_distilled_patch16_224", 32)
    with pytest.raises(ValueError, match="classifier of deit_tiny_distilled_patch16_224 is no single linear layer"):
        make("vit", encoder=encoder)


def test_encoder_without_a_classifier_is_refused():
    with pytest.raises(
        ValueError, match="no classifier for an encoder of type vit_mae: measure it with a linear probe"
    ):
        make("vit", encoder=ViTMAEConfig(**SIZES))


@pytest.mark.parametrize("kind", ["vit", "swin", "t2t_vit", "timm_vit"])
def test_activations_are_computed_again(kind):
    """With the gradients of the plain way."""
    model = make(kind).to(DEVICE).train()
    torch.manual_seed(0)  # a T2T-ViT has dropout
    model(*batch_of(model)).loss.backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    model.zero_grad()
    model.activation_checkpointing_enable()
    names = ("gradient_checkpointing", "grad_checkpointing")  # of transformers' layers, and of timm's
    assert any(getattr(module, name, False) for module in model.student.modules() for name in names)
    torch.manual_seed(0)
    model(*batch_of(model)).loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)


def test_activations_that_cannot_be_computed_again():
    with pytest.raises(ValueError, match="of type convnext cannot compute its activations again"):
        make("convnext").activation_checkpointing_enable()
