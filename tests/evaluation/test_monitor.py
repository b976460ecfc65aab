"""What the kNN monitor keeps for figures; its numbers are tested with those of `knn.py` and of training runs."""

import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from hf_ssl.data import TensorSource
from hf_ssl.evaluation import KNNMonitor, extract_features
from hf_ssl.hub import evaluation_processor

from ..models.test_patchmix import perturb
from ..training.common import IMAGES, make_model, make_patchmix


PROCESSOR = evaluation_processor(16, [0.5] * 3, [0.5] * 3)


def make_monitor(bank_labels=None, query_labels=None, bank_size=24, num_queries=8, **arguments):
    """The first images are the bank, the last ones are the queries."""
    bank_labels = bank_labels if bank_labels is None else torch.tensor(bank_labels)
    query_labels = query_labels if query_labels is None else torch.tensor(query_labels)
    bank, queries = TensorSource(IMAGES[:bank_size], bank_labels), TensorSource(IMAGES[-num_queries:], query_labels)
    num_classes = None if bank_labels is None else 1 + int(max(bank_labels.max(), query_labels.max()))
    return KNNMonitor(PROCESSOR, bank, queries, num_classes, **{"k": 5, **arguments})


def features_of(model, images, which=None):
    features, _ = extract_features(
        model.export_encoder(which), PROCESSOR, TensorSource(images), pooling=model.config.feature
    )
    return features.double().numpy()


@pytest.mark.parametrize(
    "bank_labels, query_labels, num_shown, expected",
    [
        # All classes, each with its first image, in order of class number.
        ([2, 2, 0, 1, 0, 1], [1, 0], 2, [2, 3, 0]),
        # Ten of twelve: the class of the one query that is shown, and the lowest ones.
        ([*range(12)] * 2, [11, 10], 1, [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]),
        ([*range(11, -1, -1)] * 2, [11, 10], 2, [11, 10, 9, 8, 7, 6, 5, 4, 1, 0]),
        # Where the shown queries have more than ten classes, the first ten.
        ([*range(12)], [11, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1], 12, [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
        # A class of a query that the bank lacks.
        ([0, 0, 5, 5, 3], [4, 5], 2, [0, 4, 2]),
    ],
)
def test_keys_by_class(bank_labels, query_labels, num_shown, expected):
    monitor = make_monitor(bank_labels, query_labels, len(bank_labels), len(query_labels), num_shown=num_shown)
    monitor(make_model())
    assert monitor.key_indices.dtype == torch.int64 and monitor.key_indices.tolist() == expected
    assert monitor.first_similarities.shape == (num_shown, len(expected))


@pytest.mark.parametrize(
    "bank_size, expected", [(24, [0, 2, 5, 7, 10, 12, 15, 17, 20, 23]), (10, [*range(10)]), (3, [0, 1, 2]), (1, [0])]
)
def test_keys_without_labels(bank_size, expected):
    monitor = make_monitor(bank_size=bank_size)
    assert monitor.key_indices is None and monitor.last_similarities is None
    assert monitor(make_model()) == {}
    assert monitor.key_indices.tolist() == expected
    assert monitor.last_similarities.shape == (6, len(expected))


def test_similarities_of_the_first_and_the_last_call():
    monitor = make_monitor([i % 4 for i in range(24)], [3, 2, 1, 0, 3, 2, 1, 0])
    models = [make_model(), make_model(), make_model()]
    for i, model in enumerate(models[1:]):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.3 + i)
    keys = []
    for i, model in enumerate(models):
        monitor(model)
        keys.append(monitor.key_indices.clone())
        expected = cosine_similarity(features_of(model, IMAGES[-8:-2]), features_of(model, IMAGES[:4]))
        assert monitor.last_similarities.dtype == monitor.first_similarities.dtype == torch.float32
        torch.testing.assert_close(monitor.last_similarities.double(), torch.from_numpy(expected), rtol=0, atol=1e-5)
        if i == 0:
            first = monitor.last_similarities.clone()
        else:
            assert not torch.allclose(monitor.last_similarities, first, atol=1e-3)
        assert torch.equal(monitor.first_similarities, first)
    assert all(torch.equal(each, torch.tensor([0, 1, 2, 3])) for each in keys)


def test_similarities_of_projections():
    """Where the loss compares projections, in eval mode, and of the encoder that is measured."""
    model = make_patchmix().train()
    perturb(model)
    for which, branch in (("student", model.student), ("teacher", model.teacher)):
        monitor = make_monitor([i % 4 for i in range(24)], [3, 2, 1, 0] * 2, which=which)
        monitor(model)
        assert all(module.training for module in model.modules())
        tokens = [features_of(model, IMAGES[part], which) for part in (slice(-8, -2), slice(0, 4))]
        with torch.no_grad():
            projections = [branch.projector.eval()(torch.from_numpy(token).float()) for token in tokens]
        branch.train()
        expected = torch.from_numpy(cosine_similarity(*projections))
        torch.testing.assert_close(monitor.last_similarities, expected, rtol=0, atol=1e-5)


def test_random_state_is_left_alone():
    monitor = make_monitor([i % 4 for i in range(24)], [0, 1, 2, 3] * 2)
    model = make_model()
    state = torch.get_rng_state()
    monitor(model)
    assert torch.equal(torch.get_rng_state(), state)
