"""Linear classifiers that are trained side by side: each as it would be alone."""

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from scipy import stats
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from hf_ssl.models.linear_probe import LinearProbeConfig, LinearProbesForTraining
from hf_ssl.schedules import warmup_in_cosine

from ..device import DEVICE


RATES = [0.03, 0.7, 2.5]


def make(dtype=torch.float32, **overrides):
    torch.manual_seed(0)
    config = LinearProbeConfig(**{"learning_rates": RATES, "feature_size": 7, "num_labels": 4, **overrides})
    return LinearProbesForTraining._from_config(config, dtype=dtype)


def batch_of(count=6, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(count, 7, generator=generator, dtype=dtype)
    return features, torch.randint(4, (count,), generator=generator)


# ---- each as if it were alone ----


def fit(model, loss, rate, **options):
    """Eight steps of SGD, with the shares of a schedule; the first one's is 0."""
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, **options)
    schedule = LambdaLR(optimizer, warmup_in_cosine(1.0, 0.0, 8, 2))
    for i in range(8):
        optimizer.zero_grad()
        loss(*batch_of(seed=i, dtype=torch.float64)).backward()
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("initialization", ["uniform", "normal"])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}], ids=str)
def test_each_is_trained_as_if_it_were_alone(initialization, options):
    probes = make(torch.float64, initialization=initialization)
    alone = [nn.Linear(7, 4, dtype=torch.float64) for _ in RATES]
    for i, layer in enumerate(alone):
        layer.load_state_dict({"weight": probes.weight[i], "bias": probes.bias[i]})
    fit(probes, lambda features, labels: probes(features, labels).loss, 1.5, **options)
    for i, (layer, rate) in enumerate(zip(alone, RATES, strict=True)):
        fit(layer, lambda x, labels, layer=layer: F.cross_entropy(layer(x), labels), 1.5 * rate, **options)
        torch.testing.assert_close(probes.weight[i], layer.weight, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(probes.bias[i], layer.bias, rtol=1e-12, atol=1e-14)
    assert (probes.weight[0] - probes.weight[1]).abs().max() > 0.1, "the rates matter"


@pytest.mark.parametrize("initialization", ["uniform", "normal"])
def test_all_begin_alike(initialization):
    probes = make(initialization=initialization)
    for parameter in probes.parameters():
        assert torch.equal(parameter, parameter[:1].expand_as(parameter)) and parameter.is_contiguous()
    assert torch.equal(probes.learning_rates, torch.tensor(RATES))


def test_uniform_initialization():
    """In law that of a linear layer of torch, the biases too."""
    probes = make(feature_size=16, num_labels=1500, initialization="uniform")
    for parameter in probes.parameters():
        assert stats.kstest(parameter[0].detach().flatten(), "uniform", args=(-0.25, 0.5)).pvalue > 0.01
    layer = nn.Linear(16, 1500)
    assert stats.kstest(layer.weight.detach().flatten(), "uniform", args=(-0.25, 0.5)).pvalue > 0.01
    assert stats.kstest(layer.bias.detach(), "uniform", args=(-0.25, 0.5)).pvalue > 0.01


def test_normal_initialization():
    probes = make(feature_size=16, num_labels=1500, initialization="normal")
    assert stats.kstest(probes.weight[0].detach().flatten(), "norm", args=(0, 0.01)).pvalue > 0.01
    assert not probes.bias.any()


# ---- the forward pass ----


def test_forward():
    probes = make().to(DEVICE)
    with torch.no_grad():  # or all would say the same
        for parameter in probes.parameters():
            parameter.normal_()
    features, labels = (x.to(DEVICE) for x in batch_of())
    output = probes(features, labels)
    scores = output.logits["classification"]
    assert scores.shape == (6, 3, 4)
    expected = [F.linear(features, w, b) for w, b in zip(probes.weight, probes.bias, strict=True)]
    torch.testing.assert_close(scores, torch.stack(expected, dim=1))
    losses = torch.stack([F.cross_entropy(of_one, labels) for of_one in expected])
    torch.testing.assert_close(output.loss, (losses * torch.tensor(RATES, device=DEVICE)).sum())
    assert output.loss.shape == () and output.losses.keys() == {"classification"}
    torch.testing.assert_close(output.losses["classification"], losses.mean())
    unlabeled = probes(features)
    assert unlabeled.loss is None and unlabeled.losses is None
    assert torch.equal(unlabeled.logits["classification"], scores)


def test_bfloat16_is_for_the_encoder():
    """Its eight bits would round the learning rates, and make equal scores of different ones."""
    probes = make().to(DEVICE)
    features, labels = (x.to(DEVICE) for x in batch_of())
    probes(features, labels).loss.backward()
    gradients = [parameter.grad.clone() for parameter in probes.parameters()]
    probes.zero_grad()
    with torch.autocast(DEVICE, torch.bfloat16):
        output = probes(features, labels)
    output.loss.backward()
    assert output.loss.dtype == output.logits["classification"].dtype == torch.float32
    for parameter, expected in zip(probes.parameters(), gradients, strict=True):
        assert torch.equal(parameter.grad, expected)


# ---- in files ----


def test_folder(tmp_path):
    """`learning_rates` is no weight of the file, and is made again of the configuration."""
    probes = make(initialization="normal")
    with torch.no_grad():
        for parameter in probes.parameters():
            parameter.normal_()
    probes.save_pretrained(tmp_path)
    loaded, info = LinearProbesForTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert loaded.state_dict().keys() == {"weight", "bias"} == probes.state_dict().keys()
    for name, tensor in [*probes.named_parameters(), *probes.named_buffers()]:
        found = dict([*loaded.named_parameters(), *loaded.named_buffers()])[name]
        assert found.device.type == "cpu" and torch.equal(found, tensor), name
    for name in ("learning_rates", "initialization", "feature_size", "num_labels"):
        assert getattr(loaded.config, name) == getattr(probes.config, name), name
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    features, labels = batch_of()
    assert torch.equal(loaded(features, labels).loss, probes(features, labels).loss)


# ---- what is refused ----


@pytest.mark.parametrize(
    "rates",
    [[], [0.0, 1.0], [-0.1], [0.1, 1.0, 0.1], [float("nan")], [float("nan"), 0.1], [0.1, float("inf")]],
    ids=str,
)
def test_learning_rates_that_are_refused(rates):
    with pytest.raises((ValueError, StrictDataclassError), match="learning_rates=.* must be positive numbers"):
        make(learning_rates=rates)


def test_learning_rates_that_would_have_one_name():
    """A report calls a rate by six digits."""
    assert make(learning_rates=[0.1, 0.100001]).learning_rates.shape == (2,)
    with pytest.raises((ValueError, StrictDataclassError), match=r"learning_rates=\[0.1, 0.10000001\] must be"):
        make(learning_rates=[0.1, 0.10000001])


def test_unknown_initialization():
    with pytest.raises((ValueError, StrictDataclassError), match="initialization"):
        make(initialization="zeros")
