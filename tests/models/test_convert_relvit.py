"""Official checkpoints of other sizes, odd ones and hostile ones."""

import os
import pickle
import re

import pytest
import torch
from transformers import (
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones.modeling_t2t_vit import T2TViTConfig, T2TViTForImageClassification, T2TViTModel
from hf_ssl.models.relvit.configuration_relvit import TASKS
from hf_ssl.models.relvit.convert_relvit import CheckpointError, convert, reference, to_official


def official(tmp_path, state=None, **fields):
    """An official-format file, and the model that it was made from."""
    torch.manual_seed(0)
    config = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 96}
    config |= {"image_size": 24, "patch_size": 4, "layer_norm_eps": 1e-6, "pooler_act": "linear"}
    model = RelViTForPreTraining(RelViTConfig(backbone_config=ViTConfig(**config), **fields)).eval()
    tensors = to_official(model.state_dict())
    for change in state or ():
        change(tensors)
    return write(tmp_path, tensors), model


def write(tmp_path, tensors, wrap=lambda tensors: {"epoch": 3, "state_dict": tensors}):
    torch.save(wrap(tensors), tmp_path / "official.ckpt")
    return tmp_path / "official.ckpt"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tasks": ["distances", "angles"]},
        {"tasks": ["classification", "positions"], "num_labels": 7, "use_position_embeddings": True},
        {"mega_patches": 5},
    ],
)
def test_other_models(tmp_path, fields):
    path, model = official(tmp_path, **fields)
    converted = convert(path)
    assert sorted(converted.config.tasks) == sorted(model.config.tasks)
    assert converted.config.grid_size == model.config.grid_size
    size = 4 * model.config.grid_size
    batch = {"pixel_values": torch.randn(2, 3, size, size)}
    if "num_labels" in fields:
        batch["labels"] = torch.tensor([0, 6])
    assert torch.equal(converted(**batch).loss, model(**batch).loss)


def test_names_of_several_processes(tmp_path):
    path, model = official(tmp_path, [lambda t: [t.update({f"module.{name}": t.pop(name)}) for name in list(t)]])
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(convert(path)(images).loss, model(images).loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(tmp_path, dtype):
    path, _ = official(tmp_path, [lambda t: t.update({n: v.to(dtype) for n, v in t.items()})])
    if dtype == torch.float64:
        convert(path)
    assert convert(path).dtype == torch.float32


def drop(*prefixes):
    return lambda tensors: [tensors.pop(name) for name in list(tensors) if name.startswith(prefixes)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("rel_head", "abs_pos_head"), "without any of RelViT's heads"),
        (drop("backbone.blocks"), "does not fit"),
        (drop("rel_head.heads.3"), "does not fit"),
        (drop("backbone.patch_embed"), "no ViT encoder"),
        (lambda t: t.update({"backbone.layers.0.weight": torch.zeros(2)}), "'backbone.layers.0.weight' is not part"),
        (lambda t: t.update({"backbone.blocks.x.attn.qkv.weight": torch.zeros(3)}), "not part of a ViT encoder"),
        (lambda t: t.update({"predictor.0.weight": torch.zeros(3)}), "not part of a RelViT"),
        (lambda t: t.update({"backbone.norm.weight": torch.zeros(5)}), "does not fit"),
        (lambda t: t.update({"abs_pos_head.weight": torch.zeros(49, 64)}), "does not fit .*mega_patches=7"),
        (lambda t: t.update({"backbone.patch_embed.proj.weight": torch.zeros(64, 48)}), "does not fit"),
        (lambda t: t.update({7: torch.zeros(5)}), "no `state_dict` of tensors"),
    ],
)
def test_files_that_do_not_fit(tmp_path, change, message):
    path, _ = official(tmp_path, [change])
    with pytest.raises(CheckpointError, match=message):
        convert(path)


@pytest.mark.parametrize("heads", [0, -2, 3])
def test_wrong_number_of_heads(tmp_path, heads):
    path, _ = official(tmp_path)
    with pytest.raises(CheckpointError, match="num_attention_heads"):
        convert(path, heads)


def test_truncated_file(tmp_path):
    path, _ = official(tmp_path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(CheckpointError, match="cannot be read safely"):
        convert(path)


def test_code_in_a_file_is_not_run(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    for name, save in (
        ("a.ckpt", torch.save),
        ("b.ckpt", lambda obj, path: path.write_bytes(pickle.dumps(obj, protocol=2))),
    ):
        save({"state_dict": {"backbone.cls_token": Hostile()}}, tmp_path / name)
        with pytest.raises(CheckpointError, match=r"(asks for|holds an object of) `\w+\.system`"):
            convert(tmp_path / name)
    assert not (tmp_path / "ran").exists()


# ---- Swin and T2T-ViT ----


SWIN = {"embed_dim": 12, "num_heads": [2, 3], "depths": [2, 2], "window_size": 3, "patch_size": 2, "image_size": 24}
T2T = {"image_size": 64, "token_dim": 6, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1}
BACKBONES = {
    "vit": ViTConfig(
        **{
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 1,
            "intermediate_size": 96,
            "image_size": 24,
        },
        **{"patch_size": 4, "layer_norm_eps": 1e-6, "pooler_act": "linear"},
    ),
    "swin": SwinConfig(**SWIN),
    "swin, odd depths": SwinConfig(**{**SWIN, "depths": [1, 3, 1], "num_heads": [1, 2, 4], "image_size": 48}),
    # Only one of its later stages tells the size of the images.
    "swin, no shift at first": SwinConfig(**{**SWIN, "depths": [1, 2], "mlp_ratio": 2, "image_size": 36}),
    "swin, one window at last": SwinConfig(**{**SWIN, "depths": [1, 2], "image_size": 12}),
    "swin, one window": SwinConfig(**{**SWIN, "depths": [2], "num_heads": [3], "image_size": 6}),
    "performer": T2TViTConfig(**T2T),
    "transformer": T2TViTConfig(**T2T, token_module="transformer", mlp_ratio=2),
    "wide": T2TViTConfig(**{**T2T, "hidden_size": 128, "num_attention_heads": 2, "image_size": 128}),
}
JOINT = {"tasks": list(TASKS), "num_labels": 7}


def other_encoder(name, **fields):
    """A model whose every tensor counts, and the authors' file of it: with what they have more."""
    torch.manual_seed(0)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=BACKBONES[name], **fields)).eval()
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if name == "vit" or not key.endswith("position_embeddings"):
                tensor.add_(0.1 * torch.randn(tensor.shape))
    tensors = to_official(model.state_dict())
    width = tensors["backbone.norm.weight"].shape[0]
    joint = "classification" in model.config.tasks
    scorers = [key.removesuffix("q_lin.weight") for key in tensors if key.endswith("q_lin.weight")]
    tensors |= {f"{key}v_lin.weight": torch.randn_like(tensors[f"{key}q_lin.weight"]) for key in scorers}
    if name.startswith("swin"):
        config = model.config.backbone_config
        window, area = config.window_size, config.window_size**2
        for i, depth in enumerate(config.depths):
            num_windows = (config.image_size // config.patch_size // 2**i // window) ** 2
            for j in range(depth):
                attention = f"backbone.layers.{i}.blocks.{j}.attn"
                tensors[f"{attention}.relative_position_index"] = torch.randint(0, 25, (area, area))
                if j % 2 and num_windows > 1:
                    tensors[f"{attention}_mask"] = torch.randn(num_windows, area, area)
        unused = {"clf_head": 7} if joint else {"backbone.head": 10}
    elif name == "vit":
        unused = {}
    else:
        unused = {"backbone.head": 10}
    for head, classes in unused.items():
        tensors |= {f"{head}.weight": torch.randn(classes, width), f"{head}.bias": torch.randn(classes)}
    return tensors, model


def to_match(config):
    """The architecture; without what no tensor tells."""
    names = (
        "image_size",
        "patch_size",
        "embed_dim",
        "depths",
        "num_heads",
        "window_size",
        "mlp_ratio",
        "token_module",
    )
    names += ("token_dim", "hidden_size", "num_hidden_layers", "num_attention_heads", "layer_norm_eps", "model_type")
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


@pytest.mark.parametrize("fields", [{}, {"tasks": ["angles"]}, JOINT], ids=["upstream", "angles", "joint"])
@pytest.mark.parametrize("name", [name for name in BACKBONES if name != "vit"])
def test_other_encoders(tmp_path, name, fields):
    tensors, model = other_encoder(name, **fields)
    converted = convert(write(tmp_path, tensors))
    config = model.config.backbone_config
    assert to_match(converted.config.backbone_config) == to_match(config)
    assert sorted(converted.config.tasks) == sorted(model.config.tasks) and converted.config.mega_patches is None
    if fields == JOINT:
        assert converted.config.num_labels == 7
    assert converted.config.use_position_embeddings and converted.config.feature == model.config.feature
    assert converted.config.drop_path_rate == (0.1 if name.startswith("swin") else 0)
    assert not converted.training
    for key, tensor in model.state_dict().items():
        assert torch.equal(converted.state_dict()[key], tensor), key
    batch = {"pixel_values": torch.randn(2, 3, config.image_size, config.image_size)}
    if fields == JOINT:
        batch["labels"] = torch.tensor([0, 6])
        head = "backbone.head" if name.startswith("swin") else "clf_head"
        assert torch.equal(converted.classifier.weight, tensors[f"{head}.weight"])
    assert torch.equal(converted(**batch).loss, model(**batch).loss)
    tokens = converted.encode(batch["pixel_values"])[0]
    expected = reference(tmp_path / "official.ckpt", batch["pixel_values"], config)
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


# ---- classifiers, and encoders alone ----


CLASSIFIERS = {"swin": SwinForImageClassification, "performer": T2TViTForImageClassification}
CLASSIFIERS |= {"transformer": T2TViTForImageClassification, "vit": ViTForImageClassification}
ENCODERS = {"swin": SwinModel, "performer": T2TViTModel, "transformer": T2TViTModel, "vit": ViTModel}


@pytest.mark.parametrize("name", CLASSIFIERS)
@torch.no_grad()
def test_downstream_files(tmp_path, name):
    """What fine-tuning leaves: positions are on, also those of a ViT; a Swin's classifier is its own."""
    tensors, model = other_encoder(name, tasks=["classification"], num_labels=7)
    path = write(tmp_path, tensors)
    classifier = convert(path)
    assert type(classifier) is CLASSIFIERS[name] and not classifier.training and classifier.config.num_labels == 7
    size = classifier.config.image_size
    images = torch.randn(2, 3, size, size)
    expected = model.classifier(model.encode(images)[1])
    assert expected.std() > 1e-2
    torch.testing.assert_close(classifier(images).logits, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference(path, images, classifier.config), expected, rtol=1e-5, atol=1e-5)
    head = "backbone.head" if name == "swin" else "clf_head"
    for change in (drop(f"{head}.bias"), put(f"{head}.weight", 7, 5), put("angle_heads", 2)):
        changed = dict(tensors)
        change(changed)
        with pytest.raises(CheckpointError, match="does not fit|have no place in the model.*'angle_heads'"):
            convert(write(tmp_path, changed))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"model": state},
        lambda state: {"model": state, "epoch": 300, "optimizer": {}},
        lambda state: {"state_dict_ema": {f"module.{name}": tensor for name, tensor in state.items()}},
    ],
    ids=["bare", "model", "release", "only key"],
)
@pytest.mark.parametrize("name", ENCODERS)
@torch.no_grad()
def test_encoders_alone(tmp_path, name, wrap):
    """What the authors' fine-tuning begins with instead of a file of its own: positions count, and a classifier does not."""
    tensors, model = other_encoder(name, tasks=["classification"], num_labels=7)
    encoder = {key.removeprefix("backbone."): t for key, t in tensors.items() if key.startswith("backbone.")}
    encoder |= {"head.weight": torch.ones(4, len(encoder["norm.weight"])), "head.bias": torch.ones(4)}
    path = write(tmp_path, encoder, wrap)
    converted = convert(path)
    assert type(converted) is ENCODERS[name] and not converted.training
    size = converted.config.image_size
    images = torch.randn(2, 3, size, size)
    tokens, pooled, _ = model.encode(images)
    output = converted(images)
    torch.testing.assert_close(output.last_hidden_state, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.pooler_output, pooled, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(reference(path, images, converted.config), tokens, rtol=1e-5, atol=1e-5)
    for change in (lambda t: t.pop("norm.bias"), lambda t: t.update({"dist_token": torch.ones(2)})):
        changed = dict(encoder)
        change(changed)
        with pytest.raises(CheckpointError, match="does not fit|'dist_token' is not part of a"):
            convert(write(tmp_path, changed, wrap))


def test_an_encoder_of_lightning_without_heads(tmp_path):
    """Whether it was trained with positions is not known."""
    path, _ = official(tmp_path, [drop("rel_head", "abs_pos_head")])
    with pytest.raises(CheckpointError, match="without any of RelViT's heads"):
        convert(path)


def test_files_of_something_else(tmp_path):
    for content in ({"weight": torch.ones(2)}, {"epoch": 3, "state_dict": {"head.weight": torch.ones(2)}}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(CheckpointError, match="is not of RelViT: it has neither `backbone.`"):
            convert(tmp_path / "other.pth")


def test_no_tensor_of_a_swin_is_read_that_the_authors_do_not_read(tmp_path):
    """Indices and masks are made anew."""
    tensors, model = other_encoder("swin")
    for key in tensors:
        if "relative_position_index" in key or "attn_mask" in key:
            tensors[key] = torch.full_like(tensors[key], 99)
    images = torch.randn(2, 3, 24, 24)
    assert torch.equal(convert(write(tmp_path, tensors))(images).loss, model(images).loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["swin", "performer"])
def test_other_dtypes_of_other_encoders(tmp_path, name, dtype):
    tensors, model = other_encoder(name)
    tensors = {key: tensor.to(dtype) if tensor.is_floating_point() else tensor for key, tensor in tensors.items()}
    converted = convert(write(tmp_path, tensors))
    for key, tensor in model.state_dict().items():
        assert converted.state_dict()[key].dtype == torch.float32
        assert torch.equal(converted.state_dict()[key], tensor.to(dtype).float()), key


def test_heads_that_no_size_tells(tmp_path):
    """Of a T2T-ViT; those of a Swin are recorded."""
    torch.manual_seed(0)
    backbone = T2TViTConfig(**{**T2T, "hidden_size": 64, "num_attention_heads": 16})
    model = RelViTForPreTraining(RelViTConfig(backbone_config=backbone)).eval()
    path, images = write(tmp_path, to_official(model.state_dict())), torch.randn(2, 3, 64, 64)
    assert convert(path).config.backbone_config.num_attention_heads == 1
    converted = convert(path, 16)
    assert converted.config.backbone_config.num_attention_heads == 16
    assert torch.equal(converted(images).loss, model(images).loss)
    for heads in (0, -1, 3, 65):
        with pytest.raises(CheckpointError, match=f"--num_attention_heads {heads} does not divide the width 64"):
            convert(path, heads)
    model = RelViTForPreTraining(RelViTConfig(backbone_config=T2TViTConfig(**{**T2T, "hidden_size": 72})))
    path = write(tmp_path, to_official(model.state_dict()))
    with pytest.raises(
        CheckpointError, match="not recorded in the checkpoint, and its width 72 .*--num_attention_heads"
    ):
        convert(path)
    assert convert(path, 1).config.backbone_config.hidden_size == 72


def put(key, *shape):
    return lambda tensors: tensors.update({key: torch.zeros(shape)})


BLOCK, TOKENS = "backbone.layers.0.blocks.1", "backbone.tokens_to_token.attention1"
MISFITS = [
    ("swin", drop("rel_head", "abs_pos_head"), "without any of RelViT's heads"),
    ("swin", drop("backbone.patch_embed.proj"), "does not fit .*patch_embed.proj"),
    ("swin", drop("backbone.layers.0."), "does not fit .*layers.0"),
    ("swin", drop("backbone.layers.1."), "`abs_pos_head` tells 36 places"),
    ("swin", drop("backbone.layers"), "no ViT encoder"),
    ("swin", drop("backbone.layers.0.blocks.0"), "does not fit .*layers.0.blocks.0"),
    ("swin", drop(f"{BLOCK}.attn.qkv.weight"), "does not fit .*q_proj"),
    ("swin", drop(f"{BLOCK}.attn.relative_position_bias_table"), "does not fit .*relative_position_bias_table"),
    ("swin", drop("backbone.layers.0.downsample"), "does not fit .*downsample"),
    ("swin", drop("backbone.norm"), "does not fit .*layernorm"),
    ("swin", put("backbone.absolute_pos_embed", 1, 144, 12), "'backbone.absolute_pos_embed' is not part of a Swin"),
    ("swin", put("backbone.cls_token", 1, 1, 24), "'backbone.cls_token' is not part of a Swin"),
    ("swin", put(f"{BLOCK}.attn.tau", 2), f"'{BLOCK}.attn.tau' is not part of a Swin"),
    ("swin", put("predictor.weight", 2), "'predictor.weight' is not part of a RelViT"),
    ("swin", put("backbone.layers.0.blocks.x.norm1.weight", 12), "'backbone.layers.0.blocks.x.norm1.weight'"),
    ("swin", put(f"{BLOCK}.attn.qkv.weight", 35, 12), "does not fit"),
    ("swin", put(f"{BLOCK}.attn.qkv.weight", 2, 12), "does not fit"),
    ("swin", put(f"{BLOCK}.attn.qkv.weight"), "does not fit"),
    ("swin", put(f"{BLOCK}.attn_mask", 9, 9, 9), "does not fit .*--image_size"),
    ("swin", put(f"{BLOCK}.attn_mask", 9), "does not fit"),
    ("swin", put(f"{BLOCK}.attn_mask"), "does not fit"),
    ("swin", put(f"{BLOCK}.attn_mask", 64, 9, 9), "`abs_pos_head` tells 36 places, .* have 144 patches"),
    ("swin", put("backbone.layers.0.blocks.0.attn.relative_position_bias_table", 24, 2), "does not fit"),
    ("swin", put("backbone.layers.0.blocks.0.attn.relative_position_bias_table", 0, 2), "does not fit .*window_size"),
    ("swin", put("backbone.layers.0.blocks.0.attn.relative_position_bias_table", 25, 0), "does not fit .*num_heads"),
    ("swin", put("backbone.layers.0.blocks.0.attn.relative_position_bias_table", 25, 5), "does not fit .*num_heads"),
    ("swin", put("backbone.layers.0.blocks.0.attn.relative_position_bias_table"), "does not fit"),
    ("swin", put("backbone.patch_embed.proj.weight", 12, 3, 0, 0), "does not fit"),
    ("swin", put("backbone.patch_embed.proj.weight", 0, 3, 2, 2), "does not fit"),
    ("swin", put("backbone.patch_embed.proj.weight", 12, 12), "does not fit"),
    ("swin", put("abs_pos_head.weight", 10, 24), "`abs_pos_head` tells 10 places, .* have 36 patches"),
    ("swin, joint", drop("backbone.head"), "does not fit .*backbone.head"),
    ("swin, joint", drop("backbone.head.bias"), "does not fit .*classifier.bias"),
    ("swin, joint", put("backbone.head.weight", 7), "does not fit"),
    ("performer", drop("rel_head", "abs_pos_head"), "without any of RelViT's heads"),
    ("performer", drop("backbone.pos_embed"), "does not fit .*pos_embed"),
    ("performer", drop("backbone.cls_token"), "does not fit .*cls_token"),
    ("performer", drop(f"{TOKENS}.w"), "kqv.* is not part of a T2T-ViT"),
    ("performer", drop("backbone.tokens_to_token.attention2.w"), "does not fit .*random_features"),
    ("performer", drop("backbone.tokens_to_token"), "no ViT encoder|not part of a ViT encoder"),
    ("performer", drop(f"{TOKENS}.norm2"), "does not fit .*norm2"),
    ("performer", drop("backbone.blocks"), "does not fit .*blocks.0"),
    ("performer", drop("backbone.blocks.0."), "does not fit .*blocks.0"),
    ("performer", put("backbone.pos_embed", 1, 18, 64), "does not fit"),
    ("performer", put("backbone.pos_embed", 1, 0, 64), "does not fit"),
    ("performer", put("backbone.pos_embed", 17, 64), "does not fit"),
    ("performer", put("backbone.pos_embed", 1, 10, 64), "does not fit .*image_size=48"),
    ("performer", put("backbone.pos_embed", 1, 17, 0), "divide the width 0|does not fit"),
    ("performer", put(f"{TOKENS}.kqv.weight", 17, 147), "does not fit"),
    ("performer", put(f"{TOKENS}.attn.qkv.weight", 18, 147), "'backbone.tokens_to_token.attention1.attn.qkv.weight'"),
    ("performer", put("backbone.blocks.0.attn.qkv.bias", 192), "does not fit .*q_proj.bias"),
    ("performer", put("backbone.patch_embed.proj.weight", 64, 3, 16, 16), "is not part of a T2T-ViT"),
    ("performer", put("backbone.blocks.0.mlp.fc1.weight", 0, 64), "does not fit .*mlp_ratio"),
    ("performer, joint", drop("clf_head.bias"), "does not fit .*classifier.bias"),
    ("transformer", drop(f"{TOKENS}.attn.qkv"), "does not fit .*q_proj"),
    ("transformer", put(f"{TOKENS}.w", 3, 6), "attn.* is not part of a T2T-ViT"),
    ("transformer", put(f"{TOKENS}.kqv.weight", 18, 147), "kqv.weight' is not part of a T2T-ViT"),
]


@pytest.mark.parametrize(("name", "change", "message"), MISFITS)
def test_files_of_other_encoders_that_do_not_fit(tmp_path, name, change, message):
    name, _, joint = name.partition(", ")
    tensors, _ = other_encoder(name, **(JOINT if joint else {}))
    change(tensors)
    with pytest.raises(CheckpointError, match=re.compile(message, re.DOTALL)):
        convert(write(tmp_path, tensors))


@pytest.mark.parametrize(("name", "damage"), [("swin, one window", "a number"), ("performer", "missing")])
def test_any_damaged_tensor(tmp_path, name, damage):
    """One after the other: the file is refused, or the tensor is none that is read."""
    tensors, _ = other_encoder(name, tasks=["positions"])
    accepted = set()
    for key in tensors:
        changed = dict(tensors)
        if damage == "missing":
            del changed[key]
        else:
            changed[key] = torch.zeros(())
        try:
            convert(write(tmp_path, changed))
        except CheckpointError:
            continue
        accepted.add(key)
    indices = {key for key in tensors if key.endswith("relative_position_index")}
    assert accepted == {"backbone.head.weight", "backbone.head.bias"} | indices
