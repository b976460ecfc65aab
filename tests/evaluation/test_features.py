from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import Dataset
from transformers import (
    DeiTConfig,
    DeiTModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from hf_ssl.evaluation.features import (
    extract_features,
    pixel_features,
    pool_features,
    processed_batches,
    random_projection,
)
from hf_ssl.evaluation.thumbnails import ThumbnailProcessor


class Images(Dataset):
    """Noise of unequal size; labels are the indices, or absent."""

    def __init__(self, count=11, labeled=True, sizes=(16, 20)):
        generator = torch.Generator().manual_seed(0)
        self.images = [
            torch.randint(0, 256, (3, sizes[0], sizes[i % len(sizes)]), dtype=torch.uint8, generator=generator)
            for i in range(count)
        ]
        self.labeled = [labeled] * count

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return {"image": self.images[index]} | ({"label": index} if self.labeled[index] else {})


@pytest.fixture(scope="module")
def processor():
    return ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3)


@pytest.fixture()
def encoder():
    torch.manual_seed(0)
    config = ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.5,
    )
    return ViTModel(config).train()


def test_pool_features():
    tokens = torch.randn(2, 5, 3)
    outputs = BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=torch.ones(2, 7, 1, 1))
    assert torch.equal(pool_features(outputs, "class_token"), tokens[:, 0])
    torch.testing.assert_close(pool_features(outputs, "patch_mean"), tokens[:, 1:].sum(1) / 4)
    assert torch.equal(pool_features(outputs, "pooled"), torch.ones(2, 7))


def test_pool_features_errors():
    outputs = BaseModelOutput(last_hidden_state=torch.randn(2, 8, 4, 4))
    with pytest.raises(ValueError, match="one of class_token, patch_mean, pooled, got 'cls'"):
        pool_features(outputs, "cls")
    with pytest.raises(ValueError, match="no `pooler_output`"):
        pool_features(outputs, "pooled")
    with pytest.raises(ValueError, match=r"got shape \(2, 8, 4, 4\): choose `pooled`"):
        pool_features(outputs, "class_token")
    with pytest.raises(ValueError, match="got none"):
        pool_features(BaseModelOutputWithPooling(pooler_output=torch.randn(2, 3)), "patch_mean")


@pytest.mark.parametrize("pooling", ["class_token", "patch_mean", "pooled"])
def test_features_do_not_depend_on_the_batch_size(encoder, processor, pooling):
    one, labels = extract_features(encoder, processor, Images(), pooling=pooling, batch_size=1)
    assert one.shape == (11, 24) and one.dtype == torch.float32 and not one.is_inference()
    assert torch.equal(labels, torch.arange(11))
    for batch_size, workers in ((4, 0), (256, 0), (4, 1)):
        other, _ = extract_features(
            encoder, processor, Images(), pooling=pooling, batch_size=batch_size, num_workers=workers
        )
        torch.testing.assert_close(one, other)


def test_features_equal_a_plain_forward_pass(encoder, processor):
    features, _ = extract_features(encoder, processor, Images(), pooling="class_token", batch_size=3)
    encoder.eval()
    with torch.no_grad():
        outputs = encoder(**processor(images=Images().images, return_tensors="pt"))
    torch.testing.assert_close(features, outputs.last_hidden_state[:, 0])


@pytest.mark.parametrize(
    ("model_class", "config_class", "sizes", "prefix"),
    [
        (IJepaModel, IJepaConfig, {"intermediate_size": 32}, 0),
        (DeiTModel, DeiTConfig, {"intermediate_size": 32}, 2),
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig, {"mlp_ratio": 2, "num_register_tokens": 3}, 4),
    ],
)
def test_mean_is_that_of_the_patches(model_class, config_class, sizes, prefix, processor):
    """Class token, distillation token and registers are none."""
    torch.manual_seed(0)
    sizes |= {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
    model = model_class(config_class(**sizes)).eval()
    features, _ = extract_features(model, processor, Images(), pooling="patch_mean")
    with torch.no_grad():
        tokens = model(**processor(images=Images().images, return_tensors="pt")).last_hidden_state
    assert tokens.shape[1] == prefix + 16
    torch.testing.assert_close(features, tokens[:, prefix:].mean(1))


def test_convolutional_encoder_is_pooled(processor):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")
    features, _ = extract_features(ResNetModel(config), processor, Images(), pooling="pooled", device="cpu")
    assert features.shape == (11, 6)


def test_half_precision_encoder_gives_float32(encoder, processor):
    full, _ = extract_features(encoder, processor, Images(), pooling="class_token")
    half, _ = extract_features(encoder.bfloat16(), processor, Images(), pooling="class_token")
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("pooling", ["class_token", "wrong"])
def test_modes_and_random_state_are_left_alone(encoder, processor, pooling):
    encoder.layers[1].eval()
    modes = [module.training for module in encoder.modules()]
    state = torch.get_rng_state()
    if pooling == "wrong":
        with pytest.raises(ValueError, match="wrong"):
            extract_features(encoder, processor, Images(), pooling=pooling)
    else:
        extract_features(encoder, processor, Images(), pooling=pooling, num_workers=1)
    assert [module.training for module in encoder.modules()] == modes
    assert True in modes and False in modes
    assert torch.equal(torch.get_rng_state(), state)


def test_pixel_features_are_the_processed_pixels(processor):
    features, labels = pixel_features(processor, Images(sizes=(16,)), batch_size=4)
    images = torch.stack(Images(sizes=(16,)).images).float() / 255
    torch.testing.assert_close(features, ((images - 0.5) / 0.25).flatten(1))
    assert torch.equal(labels, torch.arange(11))


def test_no_labels_or_some_labels(processor):
    assert pixel_features(processor, Images(labeled=False))[1] is None
    partly = Images()
    partly.labeled[3] = False
    with pytest.raises(ValueError, match="Only 10 of 11 samples"):
        pixel_features(processor, partly)


def test_empty_dataset(processor, encoder):
    with pytest.raises(ValueError, match="empty"):
        extract_features(encoder, processor, Images(count=0), pooling="class_token")


def test_memory_holds_features_only(processor):
    """The result must not be views into whole batches of tokens."""
    tokens = torch.randn(2, 5, 3)
    encoder = torch.nn.Module()
    encoder.device, encoder.dtype = torch.device("cpu"), torch.float32
    encoder.config, encoder.embeddings = ViTConfig(), SimpleNamespace(cls_token=tokens[:1, :1])
    encoder.forward = lambda pixel_values: BaseModelOutput(last_hidden_state=tokens[: len(pixel_values)])
    features, _ = extract_features(encoder, processor, Images(), pooling="class_token", batch_size=2)
    assert features.untyped_storage().nbytes() == 11 * 3 * 4


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_in_any_order(processor, workers):
    batches = [range(7, 9), [0], range(3, 6)]
    for batch, (groups, labels) in zip(batches, processed_batches(Images(), processor, batches, workers), strict=True):
        images = [Images().images[i] for i in batch]
        ((places, pixel_values),) = groups
        assert torch.equal(pixel_values, processor(images=images, return_tensors="pt")["pixel_values"])
        assert labels == list(batch) and places.tolist() == list(range(len(batch)))


class Photos(Dataset):
    """Two kinds of sizes, in no order."""

    sizes = [(8, 12), (12, 8), (8, 12), (8, 12), (12, 8)]

    def __len__(self):
        return len(self.sizes)

    def __getitem__(self, index):
        height, width = self.sizes[index]
        return {"image": torch.full((3, height, width), 10 * index, dtype=torch.uint8), "label": index}


@pytest.mark.parametrize("at_once", [1, 2, 16])
def test_photos_of_different_sizes(at_once, monkeypatch):
    """Those of one size come together."""
    monkeypatch.setattr("hf_ssl.evaluation.features._Processed.num_at_once", at_once)
    keep = ThumbnailProcessor(12, [0.0] * 3, [1.0] * 3)
    ((groups, labels),) = processed_batches(Photos(), keep, [[4, 3, 2, 1, 0]], 0)
    assert labels == [4, 3, 2, 1, 0]
    assert [places.tolist() for places, _ in groups] == [[0, 3], [1, 2, 4]]
    for places, pixel_values in groups:
        assert torch.allclose(pixel_values[:, 0, 0, 0] * 255, 10.0 * torch.tensor(labels)[places])
    assert [tuple(pixel_values.shape) for _, pixel_values in groups] == [(2, 3, 12, 8), (3, 3, 8, 12)]


def test_photos_of_different_sizes_make_no_batch(encoder):
    keep = ThumbnailProcessor(12, [0.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="images of different sizes \\(8x12, 12x8\\): let it crop them"):
        extract_features(encoder, keep, Photos(), pooling="class_token")


def test_random_projection():
    """As PyTorch draws a new linear layer's weights by Xavier's rule; no global random state is touched."""
    features = torch.randn(5, 40, generator=torch.Generator().manual_seed(1))
    state = torch.get_rng_state()
    projected = random_projection(features, 1000, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(3)
    layer = torch.nn.Linear(40, 1000, bias=False)
    torch.manual_seed(3)
    torch.nn.init.xavier_uniform_(layer.weight)
    torch.testing.assert_close(projected, layer(features).detach())
    assert not torch.allclose(random_projection(features, 1000, seed=4), projected)
    assert random_projection(features.double(), 7).dtype == torch.float64
