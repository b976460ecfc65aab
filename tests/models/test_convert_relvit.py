"""Official checkpoints of other sizes, odd ones and hostile ones."""

import os
import pickle

import pytest
import torch
from transformers import ViTConfig

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.models.relvit.convert_relvit import CheckpointError, convert, to_official


def official(tmp_path, state=None, **fields):
    """An official-format file, and the model that it was made from."""
    torch.manual_seed(0)
    config = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 1, "intermediate_size": 96}
    config |= {"image_size": 24, "patch_size": 4, "layer_norm_eps": 1e-6, "pooler_act": "linear"}
    model = RelViTForPreTraining(RelViTConfig(backbone_config=ViTConfig(**config), **fields)).eval()
    tensors = to_official(model.state_dict())
    for change in state or ():
        change(tensors)
    path = tmp_path / "official.ckpt"
    torch.save({"epoch": 3, "state_dict": tensors}, path)
    return path, model


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
        with pytest.raises(CheckpointError, match=r"holds an object of `\w+\.system`"):
            convert(tmp_path / name)
    assert not (tmp_path / "ran").exists()
