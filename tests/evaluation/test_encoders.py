"""Anyone's encoder, loaded to be evaluated: which feature, which tokens, at which size."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from timm.data import create_transform
from torchvision.transforms.functional import to_pil_image
from transformers import (
    AutoModel,
    BeitConfig,
    BeitModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    DeiTConfig,
    DeiTModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    IJepaConfig,
    IJepaModel,
    ResNetConfig,
    ResNetModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    SwinConfig,
    SwinModel,
    TimmWrapperConfig,
    TimmWrapperModel,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTMAEModel,
    ViTModel,
)

from hf_ssl.backbones import publish
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig, T2TViTModel
from hf_ssl.evaluation import EvaluationArguments, FeatureSpec, LoadedEncoder, load_encoder
from hf_ssl.hub import evaluation_processor, export_run
from hf_ssl.hub_errors import HubError

from ..models.test_isl import perturb
from ..training.common import IMAGES, make_isl, make_model, make_patchmix


TINY = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
VIT = {**TINY, "intermediate_size": 32}
DECODER = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_num_hidden_layers": 1}
T2T = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "token_dim": 8}
OF_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
STATISTICS = [0.3, 0.4, 0.5], [0.25, 0.26, 0.27]
CLASS, MEAN, POOLED = "class_token", "patch_mean", "pooled"


def of_timm(architecture, **model_args):
    return TimmWrapperModel(TimmWrapperConfig(architecture=architecture, model_args=model_args, num_labels=0))


def with_registers():
    return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**TINY, num_register_tokens=3))


# What makes it; the side of its images; what its features may be, the default one first; tokens before the patches.
STOCK = {
    "vit": (lambda: ViTModel(ViTConfig(**VIT)), 16, (CLASS, MEAN, POOLED), 1),
    "vit without pooler": (lambda: ViTModel(ViTConfig(**VIT), add_pooling_layer=False), 16, (CLASS, MEAN), 1),
    "classifier": (lambda: ViTForImageClassification(ViTConfig(**VIT)), 16, (CLASS, MEAN), 1),
    "deit": (lambda: DeiTModel(DeiTConfig(**VIT)), 16, (CLASS, MEAN, POOLED), 2),
    "dinov2": (lambda: Dinov2Model(Dinov2Config(**TINY)), 16, (CLASS, MEAN, POOLED), 1),
    "registers": (with_registers, 16, (CLASS, MEAN, POOLED), 4),
    "beit": (lambda: BeitModel(BeitConfig(**VIT)), 16, (POOLED, CLASS, MEAN), 1),
    "i-jepa": (lambda: IJepaModel(IJepaConfig(**VIT)), 16, (MEAN,), 0),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**VIT)), 16, (POOLED, CLASS, MEAN), 1),
    "siglip": (lambda: SiglipVisionModel(SiglipVisionConfig(**VIT)), 16, (POOLED, MEAN), 0),
    "mae": (lambda: ViTMAEModel(ViTMAEConfig(**VIT)), 16, (CLASS, MEAN), 1),
    "mae and decoder": (lambda: ViTMAEForPreTraining(ViTMAEConfig(**VIT, **DECODER)), 16, (CLASS, MEAN), 1),
    "swin": (
        lambda: SwinModel(SwinConfig(embed_dim=12, depths=[2, 2], num_heads=[2, 4], window_size=2, patch_size=2)),
        16,
        (POOLED, MEAN),
        0,
    ),
    "resnet": (
        lambda: ResNetModel(ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], layer_type="basic")),
        16,
        (POOLED,),
        0,
    ),
    "convnext": (
        lambda: ConvNextModel(ConvNextConfig(hidden_sizes=[4, 6], depths=[1, 1], num_stages=2)),
        16,
        (POOLED,),
        0,
    ),
    "t2t": (lambda: publish(T2TViTModel(T2TViTConfig(image_size=32, **T2T))), 32, (CLASS, MEAN, POOLED), 1),
    "timm": (lambda: of_timm("vit_tiny_patch16_224", **OF_TIMM), 32, (POOLED, CLASS, MEAN), 1),
    "timm registers": (lambda: of_timm("vit_little_patch16_reg4_gap_256", **OF_TIMM), 32, (POOLED, MEAN), 4),
    "timm resnet": (lambda: of_timm("resnet18", layers=[1] * 4, channels=[8, 8, 8, 12]), 32, (POOLED,), 0),
}
ONE_SIZE = ("t2t", "timm", "timm registers")  # they take no other images
NO_POSITIONS = (*ONE_SIZE, "resnet", "convnext", "timm resnet")
WITH_BLOCKS = ("vit", "classifier", "deit", "dinov2", "registers", "beit", "mae", "t2t")


@pytest.fixture(scope="module")
def stock(tmp_path_factory):
    """Folders as their authors leave them, and the models."""
    folder, models = tmp_path_factory.mktemp("stock"), {}
    for name, (make, side, *_) in STOCK.items():
        torch.manual_seed(0)
        models[name] = make().eval()
        perturb(models[name])
        models[name].save_pretrained(folder / name)
        evaluation_processor(side, *STATISTICS).save_pretrained(folder / name)
    return folder, models


@pytest.fixture
def vit(stock, tmp_path):
    """A copy that can be damaged."""
    return shutil.copytree(stock[0] / "vit", tmp_path / "vit")


def pixels(*size):
    return torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def stock_outputs(name, model, pixel_values, **options):
    model = getattr(model, "vit", model)  # the encoder of a classifier
    if model.config.model_type == "vit_mae":
        model.config.mask_ratio = 0.0
    if name not in NO_POSITIONS:
        options["interpolate_pos_encoding"] = True
    return model(pixel_values=pixel_values, **options)


def without(folder, name):
    """Take a tensor out of a folder's weights."""
    tensors = load_file(folder / "model.safetensors")
    del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ---- anyone's ----


@pytest.mark.parametrize("name", STOCK)
def test_features_of_a_stock_model(name, stock):
    """At its own size and at another one; no random state has a part in it."""
    _, side, features, prefix = STOCK[name]
    encoder = load_encoder(str(stock[0] / name))
    assert encoder.feature == features[0] and encoder.name == name
    assert not encoder.model.training and not any(p.requires_grad for p in encoder.model.parameters())
    for size in [(side, side)] if name in ONE_SIZE else [(side, side), (24, 32)]:
        outputs = stock_outputs(name, stock[1][name], pixels(*size))
        tokens = outputs.last_hidden_state
        expected = {
            CLASS: lambda: tokens[:, 0],  # noqa: B023
            MEAN: lambda: tokens[:, prefix:].mean(1),  # noqa: B023
            POOLED: lambda: outputs.pooler_output.flatten(1),  # noqa: B023
        }
        before = torch.get_rng_state()
        actual = encoder.features(pixels(*size), [FeatureSpec(feature) for feature in features])
        assert torch.equal(torch.get_rng_state(), before)
        for feature, rows in zip(features, actual, strict=True):
            assert rows.dtype == torch.float32 and not rows.requires_grad
            torch.testing.assert_close(rows, expected[feature](), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STOCK)
def test_features_that_it_does_not_have(name, stock):
    """Registers are no class token, and a pooler without weights is none."""
    _, side, features, _ = STOCK[name]
    encoder = load_encoder(str(stock[0] / name))
    for feature in {CLASS, MEAN, POOLED} - {*features}:
        with pytest.raises(ValueError, match="has no class token|no `pooler_output`|needs a `last_hidden_state`"):
            encoder.features(pixels(side, side), [FeatureSpec(feature)])


@pytest.mark.parametrize("name", STOCK)
def test_fingerprint_is_that_of_the_content(name, stock, tmp_path):
    folder = shutil.copytree(stock[0] / name, tmp_path / "elsewhere")
    encoders = [load_encoder(str(path)) for path in (stock[0] / name, folder)]
    assert encoders[0].fingerprint() == encoders[1].fingerprint()
    with torch.no_grad():
        next(encoders[1].model.parameters()).view(-1)[0].add_(1e-3)
    assert encoders[0].fingerprint() != encoders[1].fingerprint()


@pytest.mark.parametrize("size", [(16, 16), (24, 32)])
def test_all_patches_of_a_masked_autoencoder(stock, size):
    """In their order."""
    encoder = load_encoder(str(stock[0] / "mae"))
    whole = encoder.outputs(pixels(*size))
    assert whole.last_hidden_state.shape[1] == 1 + size[0] * size[1] // 16
    assert torch.equal(whole.ids_restore, torch.arange(whole.ids_restore.shape[1]).expand(3, -1))
    assert torch.equal(encoder.outputs(pixels(*size)).last_hidden_state, whole.last_hidden_state)


def test_half_precision_is_loaded_in_full(stock, tmp_path):
    """Reports say fp32."""
    half = AutoModel.from_pretrained(stock[0] / "vit").half()
    half.save_pretrained(tmp_path)
    evaluation_processor(16, *STATISTICS).save_pretrained(tmp_path)
    (actual,) = load_encoder(str(tmp_path)).features(pixels(16, 16), [FeatureSpec(CLASS)])
    expected = stock_outputs("vit", half.float(), pixels(16, 16)).last_hidden_state[:, 0]
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_bfloat16(stock):
    encoder = load_encoder(str(stock[0] / "vit"))
    (full,), (half,) = (encoder.features(pixels(16, 16), [FeatureSpec(CLASS)], bf16=bf16) for bf16 in (False, True))
    assert half.dtype == torch.float32 and not torch.equal(half, full)
    assert (half - full).norm() < 0.03 * full.norm()


@pytest.mark.parametrize("how", ["size", "scale_factor"])
def test_positions_at_another_size(stock, how):
    """By hand: the table resized, then the layers."""
    encoder = load_encoder(str(stock[0] / "vit"), position_interpolation=how)
    model, table = stock[1]["vit"], stock[1]["vit"].embeddings.position_embeddings
    grid = table[:, 1:].reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    options = {"size": (6, 8)} if how == "size" else {"scale_factor": (6.1 / 4, 8.1 / 4)}
    grid = torch.nn.functional.interpolate(grid, mode="bicubic", **options).flatten(2).transpose(1, 2)
    patches = model.embeddings.patch_embeddings(pixels(24, 32))
    tokens = torch.cat([model.embeddings.cls_token.expand(3, 1, 24), patches], dim=1)
    tokens = tokens + torch.cat([table[:, :1], grid], dim=1)
    for layer in model.layers:
        tokens = layer(tokens)
    tokens = model.layernorm(tokens)
    actual = encoder.outputs(pixels(24, 32)).last_hidden_state
    torch.testing.assert_close(actual, tokens, rtol=1e-5, atol=1e-5)
    other = load_encoder(str(stock[0] / "vit"), position_interpolation={"size": "scale_factor"}.get(how, "size"))
    assert (other.outputs(pixels(24, 32)).last_hidden_state - actual).abs().max() > 1e-3


def test_processor_of_timm(stock, tmp_path):
    """A folder of timm has no other; it sees what timm shows its models."""
    folder = shutil.copytree(stock[0] / "timm", tmp_path / "timm")
    (folder / "preprocessor_config.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    settings = {"input_size": [3, 32, 32], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center"}
    config["pretrained_cfg"] = settings | {"mean": STATISTICS[0], "std": STATISTICS[1]}
    (folder / "config.json").write_text(json.dumps(config))
    encoder = load_encoder(str(folder))
    expected = create_transform(**config["pretrained_cfg"])(to_pil_image(IMAGES[0]))
    assert torch.equal(encoder.processor(images=[IMAGES[0]], return_tensors="pt")["pixel_values"][0], expected)
    bigger = EvaluationArguments(model=str(folder), image_size=40, eval_crop_ratio=1.0).load_encoder(0).processor
    assert (bigger.size["height"], bigger.resample, list(bigger.image_mean)) == (40, 3, STATISTICS[0])


@pytest.mark.parametrize(("resample", "ratio"), [(2, None), (3, None), (3, 0.5)])
def test_other_image_size(vit, resample, ratio):
    """Only the size changes, and what is cropped."""
    square = {"height": 16, "width": 16}
    ViTImageProcessor(size=square, resample=resample, image_mean=STATISTICS[0]).save_pretrained(vit)
    processor = EvaluationArguments(model=str(vit), image_size=24, eval_crop_ratio=ratio).load_encoder(0).processor
    assert processor.resample == resample and list(processor.image_mean) == STATISTICS[0]
    assert processor(images=[IMAGES[0]], return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 24)
    assert processor.do_center_crop == (ratio is not None)
    assert processor.size.get("shortest_edge") == (None if ratio is None else 48)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_normalize": False}, "does not normalize"),
        ({"do_rescale": False}, "more than to resize, crop and normalize: do_rescale is False"),
        ({"rescale_factor": 1 / 127.5}, "rescale_factor is 0.0078"),
        ({"resample": 0}, "resizes by nearest"),
    ],
)
def test_image_size_of_a_processor_that_does_more(vit, settings, message):
    """None of it is dropped in silence."""
    ViTImageProcessor(size={"height": 16, "width": 16}, **settings).save_pretrained(vit)
    assert EvaluationArguments(model=str(vit)).load_encoder(0).processor.to_dict().items() >= settings.items()
    with pytest.raises(ValueError, match=f"--image_size 24 cannot be set for .*vit.*{message}"):
        EvaluationArguments(model=str(vit), image_size=24).load_encoder(0)


# ---- the last blocks ----


@pytest.mark.parametrize("name", WITH_BLOCKS)
@pytest.mark.parametrize(("num_blocks", "average_pool"), [(1, True), (2, False), (3, False), (2, True)])
def test_last_blocks(name, num_blocks, average_pool, stock):
    _, side, _, prefix = STOCK[name]
    model = getattr(stock[1][name], "vit", stock[1][name])
    outputs = stock_outputs(name, stock[1][name], pixels(side, side), output_hidden_states=True)
    columns = [model.layernorm(tokens)[:, 0].T for tokens in outputs.hidden_states[-num_blocks:]]
    if average_pool:
        columns.append(outputs.last_hidden_state[:, prefix:].mean(1).T)
    if num_blocks == 1:  # class token and mean take turns
        expected = torch.stack([columns[i % 2][i // 2] for i in range(2 * len(columns[0]))])
    else:
        expected = torch.cat(columns)
    encoder = load_encoder(str(stock[0] / name))
    spec = FeatureSpec(CLASS, num_blocks=num_blocks, average_pool=average_pool)
    (actual,) = encoder.features(pixels(side, side), [spec])
    torch.testing.assert_close(actual, expected.T.detach(), rtol=1e-5, atol=1e-5)
    together = encoder.features(pixels(side, side), [FeatureSpec(MEAN), spec])
    torch.testing.assert_close(together[1], actual, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "num_blocks", "message"),
    [
        ("vit", 4, "vit has 3 blocks, not 4"),
        ("clip", 2, "type clip_vision_model cannot be looked at one by one: use 1 block"),
        ("i-jepa", 2, "type ijepa cannot be looked at"),
        ("resnet", 2, "type resnet cannot be looked at"),
    ],
)
def test_blocks_that_it_does_not_have(name, num_blocks, message, stock):
    encoder = load_encoder(str(stock[0] / name))
    with pytest.raises(ValueError, match=message):
        encoder.features(pixels(16, 16), [FeatureSpec(CLASS, num_blocks=num_blocks)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pooling": "cls"}, "pooling='cls' is unknown; use one of class_token, patch_mean, pooled"),
        ({"pooling": CLASS, "num_blocks": 0}, "num_blocks=0 must be at least 1"),
        ({"pooling": MEAN, "num_blocks": 2}, "pooling='patch_mean' is another feature"),
        ({"pooling": POOLED, "average_pool": True}, "pooling='pooled' is another feature"),
        ({"pooling": CLASS, "num_blocks": 2, "projected": True}, "projects one feature"),
        ({"pooling": MEAN, "gem": 4.0}, "comes after one class token"),
        ({"pooling": CLASS, "gem": 4.0, "num_blocks": 2}, "comes after one class token"),
        ({"pooling": CLASS, "gem": 4.0, "projected": True}, "leave gem out"),
        ({"pooling": CLASS, "gem": 0.0}, "gem=0.0 must be a positive exponent"),
        ({"pooling": CLASS, "scales": ()}, "must be positive numbers"),
        ({"pooling": CLASS, "scales": (1.0, -0.5)}, "must be positive numbers"),
    ],
)
def test_features_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        FeatureSpec(**fields)


# ---- retrieval and copy detection ----


def test_class_token_and_generalized_mean(stock):
    tokens = stock_outputs("registers", stock[1]["registers"], pixels(16, 16)).last_hidden_state
    encoder = load_encoder(str(stock[0] / "registers"))
    for exponent in (1.0, 3.0, 4.0):
        (actual,) = encoder.features(pixels(16, 16), [FeatureSpec(CLASS, gem=exponent)])
        powers = [torch.linalg.vector_norm(patches.clamp(1e-6), exponent, 0) for patches in tokens[:, 4:]]
        mean = torch.stack(powers) / (tokens.shape[1] - 4) ** (1 / exponent)
        torch.testing.assert_close(actual, torch.cat([tokens[:, 0], mean], 1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov2", "resnet"])
def test_several_scales(stock, name):
    """The mean of the features, then length 1; sides that patches do not fill are cut."""
    encoder, images = load_encoder(str(stock[0] / name)), pixels(27, 33)
    scales = (1.0, 2**-0.5, 0.5)
    plain, at_scales, half = encoder.features(
        images, [FeatureSpec(encoder.feature, scales=some) for some in ((1.0,), scales, (0.5,))]
    )
    parts = [F.interpolate(images, scale_factor=scale, mode="bilinear") for scale in scales]
    parts = [encoder.features(part, [FeatureSpec(encoder.feature)])[0] for part in parts]
    torch.testing.assert_close(plain, parts[0])
    mean = sum(parts) / 3
    torch.testing.assert_close(at_scales, mean / mean.norm(dim=1, keepdim=True))
    torch.testing.assert_close(half, parts[2] / parts[2].norm(dim=1, keepdim=True))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"gem": 4.0}, "class token and generalized mean of the patch tokens (exponent 4)"),
        ({"scales": (1.0, 2**-0.5, 0.5)}, "class token, mean at scales 1, 0.707, 0.5"),
    ],
)
def test_they_are_told(fields, words):
    assert str(FeatureSpec(CLASS, **fields)) == words


# ---- ours ----


def exported(model, folder):
    perturb(model)
    export_run(model, evaluation_processor(16, *STATISTICS), folder)
    return model.eval()


@pytest.mark.parametrize(("how", "is_same"), [("size", True), ("scale_factor", False)])
def test_positions_of_an_image_that_is_no_square(stock, how, is_same):
    """Of 18 x 16 pixels, patches of 4 make the encoder's own grid: its positions, or the original code's shifted ones."""
    encoder = load_encoder(str(stock[0] / "vit"), position_interpolation=how)
    actual = encoder.outputs(pixels(18, 16)).last_hidden_state
    cut = encoder.outputs(pixels(18, 16)[:, :, :16]).last_hidden_state
    assert torch.allclose(actual, cut, atol=1e-5) == is_same


@pytest.mark.parametrize("how", ["size", "scale_factor"])
@pytest.mark.parametrize("branch", ["auto", "student", "teacher"])
def test_branches_of_a_run(branch, how, tmp_path):
    """Their tokens are those of the trunks that were trained, at every size."""
    model = exported(make_patchmix(position_interpolation=how, feature=MEAN), tmp_path)
    encoder = load_encoder(str(tmp_path), branch=branch)
    assert encoder.feature == MEAN and encoder.position_interpolation == how and encoder.branch == branch
    network = model.student if branch == "student" else model.teacher
    for size in ((16, 16), (24, 32)):
        with torch.no_grad():
            tokens = network.backbone(pixels(*size))
        actual = encoder.outputs(pixels(*size)).last_hidden_state
        torch.testing.assert_close(actual, tokens, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="without what projects its features"):
        encoder.features(pixels(16, 16), [FeatureSpec(MEAN, projected=True)])


@pytest.mark.parametrize(
    ("make", "branch"),
    [
        (make_patchmix, "auto"),
        (make_patchmix, "student"),
        (make_patchmix, "teacher"),
        (make_isl, "auto"),
        (make_model, "auto"),
    ],
)
def test_projected_features(make, branch, tmp_path):
    model = exported(make(), tmp_path)
    which = None if branch == "auto" else branch
    encoder = load_encoder(str(tmp_path), branch=branch, projects=True)
    assert encoder.feature == model.config.feature
    plain, projected = encoder.features(
        pixels(16, 16), [FeatureSpec(encoder.feature, projected=projected) for projected in (False, True)]
    )
    (expected,) = LoadedEncoder(model.export_encoder(which), encoder.processor, "").features(
        pixels(16, 16), [FeatureSpec(encoder.feature)]
    )
    torch.testing.assert_close(plain, expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(projected, model.project(expected, which), rtol=1e-5, atol=1e-5)
    assert (projected.shape == plain.shape) == (make is make_model), "RelViT compares no images"


def test_code_that_lies_beside_the_weights(stock, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    encoders = [load_encoder(str(stock[0] / "t2t"), trust_remote_code=trust) for trust in (False, True)]
    features = [encoder.features(pixels(32, 32), [FeatureSpec(CLASS)])[0] for encoder in encoders]
    assert torch.equal(*features) and encoders[0].fingerprint() == encoders[1].fingerprint()


@pytest.mark.parametrize("known", [False, True])
def test_hub_that_cannot_be_reached(vit, tmp_path, monkeypatch, caplog, known):
    """A model of the cache is evaluated; what the cache does not tell of it, the user is told."""
    repository = tmp_path / "hub" / "models--someone--vit"
    shutil.copytree(vit, repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    if known:  # as the client notes a file that is not there
        (repository / ".no_exist" / "abc" / "pretraining").mkdir(parents=True)
        (repository / ".no_exist" / "abc" / "pretraining" / "config.json").touch()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    encoder = load_encoder("someone/vit")
    assert encoder.name == "someone/vit" and encoder.feature == CLASS
    assert ("someone/vit has a pretraining/config.json" in caplog.text) is not known
    with pytest.raises(ValueError, match="There is no pretraining/"):
        load_encoder("someone/vit", branch="student")


# ---- mistakes ----


def test_missing_weights_are_refused(vit):
    without(vit, "embeddings.cls_token")
    with pytest.raises(ValueError, match=r"vit cannot be evaluated\. Weights are missing.*: embeddings.cls_token\."):
        load_encoder(str(vit))


@pytest.mark.parametrize("options", [{"branch": "teacher"}, {"projects": True}])
def test_missing_weights_of_the_whole_model_are_refused(options, tmp_path):
    exported(make_patchmix(), tmp_path)
    without(tmp_path / "pretraining", "teacher.projector.0.weight")
    load_encoder(str(tmp_path))
    with pytest.raises(ValueError, match=r"Weights are missing.*teacher.projector.0.weight"):
        load_encoder(str(tmp_path), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"branch": "best"}, "branch='best' is unknown; use one of auto, student, teacher"),
        ({"position_interpolation": "bicubic"}, "'bicubic' is unknown; use one of auto, size, scale_factor"),
        ({"branch": "student"}, "There is no pretraining/ in it, and so no student"),
        ({"projects": True}, "There is no pretraining/ in it"),
    ],
)
def test_mistakes_are_explained(vit, options, message):
    with pytest.raises(ValueError, match=message):
        load_encoder(str(vit), **options)


@pytest.mark.parametrize("name", ["dinov2", "resnet"])
def test_positions_that_are_resized_in_one_way_only(name, stock):
    load_encoder(str(stock[0] / name), position_interpolation="size")
    with pytest.raises(ValueError, match=f"type {name} resizes positions in its own way only"):
        load_encoder(str(stock[0] / name), position_interpolation="scale_factor")


def test_no_image_processor(vit):
    (vit / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="vit cannot be evaluated.*image processor"):
        load_encoder(str(vit))


@pytest.mark.parametrize("model", ["no-such-user/no-such-model", "/no/such/folder"])
def test_no_such_model(model):
    with pytest.raises((ValueError, HubError), match=f"{model} cannot be evaluated"):
        load_encoder(model)


def test_text_is_no_image(tmp_path):
    """CLIP with both of its parts."""
    text = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    CLIPModel(CLIPConfig(vision_config=VIT, text_config=text)).save_pretrained(tmp_path)
    evaluation_processor(16, *STATISTICS).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="A CLIPModel takes input_ids, and not images alone"):
        load_encoder(str(tmp_path))
