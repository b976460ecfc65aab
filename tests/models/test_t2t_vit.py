import copy
import math
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file

from hf_ssl.backbones.modeling_t2t_vit import (
    T2TViTConfig,
    T2TViTForImageClassification,
    T2TViTModel,
    T2TViTPerformerAttention,
)

from ..device import DEVICE


TINY = {
    "image_size": 32,
    "token_dim": 7,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "mlp_ratio": 2,
}
TOKEN_MODULES = ["performer", "transformer"]
of_both_token_modules = pytest.mark.parametrize("token_module", TOKEN_MODULES)


def make_model(token_module="performer", cls=T2TViTModel, **overrides):
    """In training mode. Neither weights nor buffers are those of the beginning, so that mistakes show."""
    torch.manual_seed(0)
    model = cls(T2TViTConfig(**{**TINY, "token_module": token_module, **overrides})).train()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.add_(0.3 * torch.randn(tensor.shape, generator=generator))
    return model.to(DEVICE)


def make_images(batch_size=3, side=32, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, 3, side, side, generator=generator, dtype=dtype).to(DEVICE)


def buffers_of(model):
    return {name.removeprefix("t2t_vit."): buffer.cpu() for name, buffer in model.named_buffers()}


# ---- the forward pass, written out in numpy ----


def linear(module, x):
    out = x @ module.weight.detach().cpu().numpy().T
    return out if module.bias is None else out + module.bias.detach().cpu().numpy()


def layer_norm(module, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    weight, bias = module.weight.detach().cpu().numpy(), module.bias.detach().cpu().numpy()
    return (x - mean) / np.sqrt(variance + 1e-5) * weight + bias


def mlp(module, x):
    hidden = linear(module.fc1, x)
    return linear(module.fc2, hidden * 0.5 * (1 + np.vectorize(math.erf)(hidden / math.sqrt(2))))


def softmax_attention(query, key, value, scale):
    rows = []
    for q in query:
        weights = np.exp([scale * q @ k for k in key])
        rows.append(sum(w * v for w, v in zip(weights, value, strict=True)) / weights.sum())
    return np.array(rows)


def performer_attention(query, key, value, directions, epsilon=1e-8):
    """Pair by pair: each key has the weight that is the product of its features with those of the query."""

    def features(u):
        return np.array([math.exp(w @ u - u @ u / 2) / math.sqrt(len(directions)) for w in directions])

    key_features, rows = [features(k) for k in key], []
    for q in query:
        weights = [features(q) @ k for k in key_features]
        rows.append(sum(w * v for w, v in zip(weights, value, strict=True)) / (sum(weights) + epsilon))
    return np.array(rows)


def token_attention(module, x):
    normalized = layer_norm(module.layernorm_before, x)
    query, key, value = (linear(getattr(module, f"{name}_proj"), normalized) for name in "qkv")
    if isinstance(module, T2TViTPerformerAttention):
        attended = performer_attention(query, key, value, module.random_features.cpu().numpy())
    else:
        attended = softmax_attention(query, key, value, x.shape[1] ** -0.5)
    tokens = value + linear(module.o_proj, attended)
    return tokens + mlp(module.mlp, layer_norm(module.layernorm_after, tokens))


def windows_of(image, kernel, stride, padding):
    """`(channels, side, side)` to `(windows, channels * kernel**2)`."""
    image = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    starts = range(0, image.shape[1] - kernel + 1, stride)
    return np.array([image[:, y : y + kernel, x : x + kernel].reshape(-1) for y in starts for x in starts])


def image_of(tokens):
    side = math.isqrt(len(tokens))
    return tokens.T.reshape(-1, side, side)


def written_out(model, image):
    """`(num_channels, side, side)` to the tokens after the last normalization."""
    embeddings, heads = model.embeddings, model.config.num_attention_heads
    tokens = token_attention(embeddings.token_attention1, windows_of(image, 7, 4, 2))
    tokens = token_attention(embeddings.token_attention2, windows_of(image_of(tokens), 3, 2, 1))
    tokens = linear(embeddings.projection, windows_of(image_of(tokens), 3, 2, 1))
    x = np.concatenate((embeddings.cls_token[0].detach().cpu().numpy(), tokens))
    x = x + embeddings.position_embeddings[0].cpu().numpy()
    for layer in model.layers:
        normalized = layer_norm(layer.layernorm_before, x)
        split = [
            np.split(linear(getattr(layer.attention, f"{name}_proj"), normalized), heads, axis=1) for name in "qkv"
        ]
        attended = [softmax_attention(q, k, v, q.shape[1] ** -0.5) for q, k, v in zip(*split, strict=True)]
        x = x + linear(layer.attention.o_proj, np.concatenate(attended, axis=1))
        x = x + mlp(layer.mlp, layer_norm(layer.layernorm_after, x))
    return layer_norm(model.layernorm, x)


@of_both_token_modules
def test_forward_is_what_is_written_out(token_module):
    model = make_model(token_module).double().eval()
    images = make_images(2, dtype=torch.float64)
    output = model(images)
    assert output.last_hidden_state.dtype == torch.float64
    for image, tokens in zip(images.cpu().numpy(), output.last_hidden_state.detach().cpu().numpy(), strict=True):
        np.testing.assert_allclose(tokens, written_out(model, image), rtol=0, atol=1e-10)


def test_performer_with_small_denominators():
    """Where all features of a query are small, what is added to the denominator counts."""
    module = make_model().embeddings.token_attention1.double()
    vectors = torch.randn(3, 1, 40, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    query, key, value = vectors * torch.tensor([3.0, 1.0, 1.0]).view(3, 1, 1, 1)
    actual = module.attend(query.to(DEVICE), key.to(DEVICE), value.to(DEVICE))[0].cpu().numpy()
    arguments = [part[0].numpy() for part in (query, key, value)] + [module.random_features.cpu().numpy()]
    np.testing.assert_allclose(actual, performer_attention(*arguments), rtol=0, atol=1e-12)
    assert np.abs(actual - performer_attention(*arguments, epsilon=0)).max() > 0.1


@of_both_token_modules
@pytest.mark.parametrize("side", [16, 48])
def test_shapes(token_module, side):
    classifier = make_model(token_module, T2TViTForImageClassification, image_size=side, num_labels=4)
    num_tokens = 1 + (side // 16) ** 2
    images, labels = make_images(side=side), torch.tensor([3, 0, 1], device=DEVICE)
    output = classifier.t2t_vit(images, output_hidden_states=True)
    assert output.last_hidden_state.shape == (3, num_tokens, 12)
    assert torch.equal(output.pooler_output, output.last_hidden_state[:, 0])
    assert [tuple(tokens.shape) for tokens in output.hidden_states] == [(3, num_tokens, 12)] * 3
    torch.testing.assert_close(classifier.t2t_vit.layernorm(output.hidden_states[-1]), output.last_hidden_state)
    assert classifier.t2t_vit(images).hidden_states is None
    classifier.eval()
    logits = classifier.classifier(classifier.t2t_vit(images).pooler_output)
    output = classifier(images, labels)
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, labels))
    assert classifier(images).loss is None
    assert len(classifier(images, output_hidden_states=True).hidden_states) == 3
    classifier.config.return_dict = False
    assert torch.equal(classifier(images, labels)[1], output.logits)


@of_both_token_modules
def test_dropout_is_the_performers(token_module):
    model, images = make_model(token_module), make_images()
    first, second = (model(images).last_hidden_state for _ in range(2))
    assert torch.equal(first, second) == (token_module == "transformer")
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    for name, rate in rates.items():
        assert rate == (0.1 if token_module == "performer" and "token_attention" in name else 0), name
    model.eval()
    assert torch.equal(model(images).last_hidden_state, model(images).last_hidden_state)


@of_both_token_modules
def test_bfloat16(token_module, tmp_path):
    """Under autocast, and as what the weights are loaded in: the buffers stay in float32."""
    model, images = make_model(token_module).eval(), make_images()
    expected = model(images).last_hidden_state
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        actual = model(images).last_hidden_state
    assert actual.dtype == torch.float32, "the tokens between the layers are in full precision under autocast"
    assert (actual - expected).norm() < 0.03 * expected.norm()

    model.save_pretrained(tmp_path)
    loaded = T2TViTModel.from_pretrained(tmp_path, dtype=torch.bfloat16).to(DEVICE)
    assert loaded.layernorm.weight.dtype == torch.bfloat16
    assert all(torch.equal(buffer, buffers_of(model)[name]) for name, buffer in buffers_of(loaded).items())
    actual = loaded(images).last_hidden_state
    assert actual.dtype == torch.bfloat16
    assert (actual - expected).norm() < 0.06 * expected.norm()


def test_performer_is_in_full_precision():
    """Its features, its sums and its division, whatever queries, keys and values are in."""
    module = make_model().embeddings.token_attention1
    vectors = torch.randn(3, 2, 40, 7, generator=torch.Generator().manual_seed(2)).to(DEVICE, torch.bfloat16)
    expected = module.attend(*vectors.float())
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        assert torch.equal(module.attend(*vectors), expected.bfloat16())
        assert torch.equal(module.attend(*vectors.float()), expected)


@of_both_token_modules
def test_activation_checkpointing(token_module):
    model, images = make_model(token_module, token_dropout=0.0), make_images()
    twin = copy.deepcopy(model)
    twin.activation_checkpointing_enable()
    assert all(layer.gradient_checkpointing for layer in twin.layers)
    for candidate in (model, twin):
        candidate(images).last_hidden_state.square().sin().sum().backward()
    for (name, parameter), other in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert parameter.grad.abs().sum() > 0, name
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-5, atol=1e-7)


# ---- weights at the beginning ----


def test_initialization():
    torch.manual_seed(0)
    config = T2TViTConfig(image_size=64, hidden_size=96, num_hidden_layers=1, token_dim=65)
    model = T2TViTForImageClassification(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            assert abs(parameter.std().item() / 0.02 - 1) < 5 / math.sqrt(2 * parameter.numel()), name
            assert abs(parameter.mean().item()) < 5 * 0.02 / math.sqrt(parameter.numel()), name
        else:
            assert torch.equal(parameter, torch.full_like(parameter, "layernorm" in name and "weight" in name)), name
    buffers = buffers_of(model)
    assert buffers.keys() == {
        "embeddings.position_embeddings",
        "embeddings.token_attention1.random_features",
        "embeddings.token_attention2.random_features",
    }
    assert all(buffer.dtype == torch.float32 for buffer in buffers.values())
    table = buffers["embeddings.position_embeddings"].numpy()
    expected = [
        [(math.cos if j % 2 else math.sin)(p / 10000 ** (2 * (j // 2) / 96)) for j in range(96)] for p in range(17)
    ]
    np.testing.assert_allclose(table, np.array([expected]), rtol=0, atol=1e-7)
    check_random_features(buffers["embeddings.token_attention1.random_features"], 65)
    check_random_features(buffers["embeddings.token_attention2.random_features"], 65)
    # One matrix is drawn for each performer, by the global seed.
    assert not torch.equal(*(buffers[f"embeddings.token_attention{i}.random_features"] for i in (1, 2)))
    torch.manual_seed(0)
    again = buffers_of(T2TViTForImageClassification(config))
    assert all(torch.equal(again[name], buffer) for name, buffer in buffers.items())
    torch.manual_seed(1)
    others = buffers_of(T2TViTForImageClassification(config))
    assert [name for name in buffers if torch.equal(others[name], buffers[name])] == ["embeddings.position_embeddings"]


def check_random_features(features, width):
    """Orthogonal rows whose norm is the root of their number."""
    num = width // 2
    assert features.shape == (num, width)
    torch.testing.assert_close(features @ features.T, num * torch.eye(num), rtol=0, atol=1e-4)


OFFICIAL_SIZES = {
    "7": (256, 7, 4, 2, "performer", 4.05),
    "10": (256, 10, 4, 2, "performer", 5.63),
    "12": (256, 12, 4, 2, "performer", 6.68),
    "14": (384, 14, 6, 3, "performer", 21.16),
    "t_14": (384, 14, 6, 3, "transformer", 21.16),
    "19": (448, 19, 7, 3, "performer", 38.73),
    "t_19": (448, 19, 7, 3, "transformer", 38.72),
    "24": (512, 24, 8, 3, "performer", 63.59),
    "t_24": (512, 24, 8, 3, "transformer", 63.59),
    "14_resnext": (384, 14, 32, 3, "performer", 21.16),
    "14_wide": (768, 4, 12, 3, "performer", 24.39),
}


@pytest.mark.parametrize("size", OFFICIAL_SIZES)
def test_official_sizes(size):
    """Millions of weights, with the buffers; and the tokens of an image of the default size."""
    width, depth, heads, mlp_ratio, token_module, millions = OFFICIAL_SIZES[size]
    config = T2TViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        mlp_ratio=mlp_ratio,
        token_module=token_module,
    )
    with torch.device("meta"):
        model = T2TViTModel(config)
        assert model(torch.empty(2, 3, 224, 224)).last_hidden_state.shape == (2, 197, width)
    assert round(sum(tensor.numel() for tensor in model.state_dict().values()) / 1e6, 2) == millions


# ---- saving and loading ----


@of_both_token_modules
def test_save_and_load(token_module, tmp_path):
    model = make_model(token_module).eval()
    model.save_pretrained(tmp_path)
    loaded, info = T2TViTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    state, expected = loaded.state_dict(), {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    assert state.keys() == expected.keys() and set(buffers_of(model)) < set(state)
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.items())
    assert {"random_features", "position_embeddings"}.isdisjoint(
        name.rpartition(".")[2] for name, _ in loaded.named_parameters()
    )
    assert torch.equal(loaded.to(DEVICE)(make_images()).pooler_output, model(make_images()).pooler_output)


def test_load_what_a_file_lacks(tmp_path):
    """What is there is kept exactly, in the same module as well; the rest is as in a new model."""
    make_model().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    kept = load_file(path)
    position, features = "embeddings.position_embeddings", "embeddings.token_attention{}.random_features"
    for missing in (["embeddings.cls_token", features.format(1)], [position, features.format(2)]):
        save_file({n: t for n, t in kept.items() if n not in missing}, path, metadata={"format": "pt"})
        loaded, info = T2TViTModel.from_pretrained(tmp_path, output_loading_info=True)
        assert set(info["missing_keys"]) == set(missing)
        state = loaded.state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in kept.items() if name not in missing)
        check_random_features(state[missing[1]], 7)
    torch.testing.assert_close(state[position], T2TViTModel(T2TViTConfig(**TINY)).embeddings.position_embeddings)


LOADING = """
import sys, torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

images, results = torch.load("images.pt", weights_only=True), {}
for name in ("performer", "transformer"):
    refused = 0
    for kind in (AutoConfig, AutoModel, AutoModelForImageClassification):
        try:
            kind.from_pretrained(name)
        except ValueError as error:
            refused += "trust_remote_code=True" in str(error)
    assert refused == 3
    config = AutoConfig.from_pretrained(name, trust_remote_code=True)
    model = AutoModel.from_pretrained(name, trust_remote_code=True)
    assert type(config).__name__ == "T2TViTConfig" and type(model).__name__ == "T2TViTModel"
    assert type(model).__module__.startswith("transformers_modules.")
    classifier, info = AutoModelForImageClassification.from_pretrained(
        name, num_labels=3, output_loading_info=True, trust_remote_code=True
    )
    assert type(classifier).__name__ == "T2TViTForImageClassification" and not info["unexpected_keys"]
    assert set(info["missing_keys"]) == {"classifier.weight", "classifier.bias"}
    whole = AutoModelForImageClassification.from_pretrained(f"{name}-classifier", trust_remote_code=True)
    results[name] = {
        "config": config.to_dict(),
        "tokens": model(images).last_hidden_state.detach(),
        "state": model.state_dict(),
        "classifier_state": classifier.t2t_vit.state_dict(),
        "logits": whole(images).logits.detach(),
    }
assert not any(name.split(".")[0] == "hf_ssl" for name in sys.modules)
torch.save(results, "results.pt")
"""


def test_load_without_the_library(tmp_path):
    """A process that never imports hf_ssl gets the same weights, buffers, features and logits, by remote code."""
    models, images = {}, make_images().cpu()
    for name in TOKEN_MODULES:
        classifier = make_model(name, T2TViTForImageClassification, num_labels=5).cpu().eval()
        classifier.save_pretrained(tmp_path / f"{name}-classifier")
        classifier.t2t_vit.save_pretrained(tmp_path / name)
        models[name] = classifier
    torch.save(images, tmp_path / "images.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", LOADING]
    subprocess.run(command, check=True, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL)
    results = torch.load(tmp_path / "results.pt", weights_only=True)
    for name, model in models.items():
        result, expected = results[name], model.t2t_vit.state_dict()
        assert {field: result["config"][field] for field in TINY} == TINY
        assert result["config"]["token_module"] == name
        for state in (result["state"], result["classifier_state"]):
            assert state.keys() == expected.keys()
            assert all(torch.equal(state[key], tensor) for key, tensor in expected.items())
        torch.testing.assert_close(result["tokens"], model.t2t_vit(images).last_hidden_state)
        torch.testing.assert_close(result["logits"], model(images).logits)


# ---- what is refused ----


@pytest.mark.parametrize("shape", [(2, 3, 48, 48), (2, 3, 32, 48), (2, 3, 33, 33), (2, 1, 32, 32), (3, 32, 32)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"The images have the shape .* takes \(3, 32, 32\) only.*image_size"):
        make_model()(torch.zeros(shape, device=DEVICE))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_size": 100}, r"image_size=100 must be a multiple of 16.*images of 96"),
        ({"image_size": 0}, r"image_size=0 must be a multiple of 16.*images of 16"),
        ({"patch_size": 8}, r"patch_size=8 is not possible.*Leave it at 16"),
        ({"hidden_size": 100}, r"hidden_size=100 must be a multiple of num_attention_heads=6"),
        ({"num_attention_heads": 0}, "num_attention_heads=0 must be at least 1"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ({"num_channels": 0}, "num_channels=0 must be at least 1"),
        ({"token_dim": 1}, "token_dim=1 must be at least 2"),
        ({"mlp_ratio": 0}, "mlp_ratio=0 leaves .* must be positive"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0 must be positive"),
        ({"token_dropout": 1.0}, "token_dropout=1.0 must be at least 0 and less than 1"),
        ({"token_module": "convolution"}, "token_module"),
        ({"hidden_size": 96.0}, "hidden_size"),
    ],
)
def test_wrong_configurations_are_refused(fields, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        T2TViTConfig(**fields)
