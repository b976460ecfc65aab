import pytest
import torch
from sklearn.metrics import log_loss, top_k_accuracy_score

from hf_ssl.data import TensorSource
from hf_ssl.evaluation import AccuracyMonitor, classification_accuracy
from hf_ssl.hub import evaluation_processor
from hf_ssl.models.classification import ClassificationConfig, ClassifierForTraining

from ..training.common import make_backbone
from .test_features import Images


PROCESSOR = evaluation_processor(16, [0.5] * 3, [0.25] * 3)
LABELS = torch.arange(70) * 7 % 10
IMAGES = TensorSource(
    torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)), LABELS
)


def make_classifier():
    """In training, but for a part; with dropout."""
    torch.manual_seed(0)
    config = ClassificationConfig(backbone_config=make_backbone(hidden_dropout_prob=0.3), num_labels=10)
    model = ClassifierForTraining(config).train()
    model.student.layers[1].eval()
    return model


@pytest.mark.parametrize("num_classes", [3, 5, 10, 40])
def test_against_scikit_learn(num_classes):
    generator = torch.Generator().manual_seed(num_classes)
    logits = torch.randn(200, num_classes, generator=generator)
    labels = torch.randint(num_classes, (200,), generator=generator)
    logits[torch.arange(200), labels] += 1.0
    measured = classification_accuracy(logits, labels)
    classes = list(range(num_classes))
    for k in (1, 5):
        expected = 100.0
        if k < num_classes:
            expected = 100 * top_k_accuracy_score(labels.numpy(), logits.numpy(), k=k, labels=classes)
        assert measured[f"finetune_top{k}"] == pytest.approx(expected, abs=1e-9)
    likelihoods = logits.double().softmax(1).numpy()
    assert measured["finetune_loss"] == pytest.approx(log_loss(labels.numpy(), likelihoods, labels=classes), rel=1e-5)
    assert measured.keys() == {"finetune_top1", "finetune_top5", "finetune_loss"}


def test_two_classes():
    measured = classification_accuracy(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([0, 1]))
    assert measured["finetune_top1"] == 50 and measured["finetune_top5"] == 100


@pytest.mark.parametrize("published", [False, True])
def test_any_batch_size(published):
    """A plain forward pass over all images, in eval mode."""
    model = make_classifier()
    if published:
        model = model.export_classifier()
    modes, state = [module.training for module in model.modules()], torch.get_rng_state()
    measured = [AccuracyMonitor(PROCESSOR, IMAGES, *args)(model) for args in ((7,), (64,), (256,), (7, 1))]
    assert [module.training for module in model.modules()] == modes and torch.equal(torch.get_rng_state(), state)
    with torch.no_grad():
        output = model.eval()(PROCESSOR(images=list(IMAGES.images), return_tensors="pt")["pixel_values"])
    logits = output.logits if published else output.logits["classification"]
    expected = classification_accuracy(logits, LABELS)
    for each in measured:
        assert (
            each["finetune_top1"] == expected["finetune_top1"] and each["finetune_top5"] == expected["finetune_top5"]
        )
        assert each["finetune_loss"] == pytest.approx(expected["finetune_loss"], rel=1e-5)
    assert 0 < expected["finetune_top5"] < 100


def test_half_precision():
    model = make_classifier().export_classifier()
    full, half = AccuracyMonitor(PROCESSOR, IMAGES)(model), AccuracyMonitor(PROCESSOR, IMAGES)(model.bfloat16())
    assert half["finetune_loss"] == pytest.approx(full["finetune_loss"], rel=0.05)


def test_modes_are_restored_after_an_error():
    model = make_classifier()
    modes = [module.training for module in model.modules()]
    assert True in modes and False in modes
    with pytest.raises(ValueError, match="no labels: there is no accuracy"):
        AccuracyMonitor(PROCESSOR, Images(labeled=False, sizes=(16,)))(model)
    assert [module.training for module in model.modules()] == modes
