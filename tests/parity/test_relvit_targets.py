"""RelViT's targets, patch augmentation, mega-patch cuts, learning rate and initialization against recorded numbers."""

import math

import pytest
import torch

from hf_ssl import RelViTConfig, RelViTForPreTraining
from hf_ssl.backbones import vit_config
from hf_ssl.models.relvit.convert_relvit import to_official
from hf_ssl.models.relvit.modeling_relvit import angle_targets, distance_targets, relation_targets
from hf_ssl.models.relvit.views_relvit import (
    PatchAugmentation,
    augment_patches,
    mega_patch_bands,
    parse_patch_augmentation,
    replace_by_noise,
)
from hf_ssl.schedules import quarter_cosine
from hf_ssl.views import Colors, join_patches, permute_patches, split_patches

from ..device import DEVICE
from .cases import assert_close, assert_equal, find_cases


target_cases = pytest.mark.parametrize("case", find_cases("relvit", kind="targets"), ids=str)


@target_cases
@pytest.mark.parametrize("order_name", ["identity", "perm"])
def test_encodings(case, order_name):
    for side in case.info["sides"]:
        prefix = f"side{side}/{order_name}"
        order = (
            torch.arange(side * side, device=DEVICE) if order_name == "identity" else case.inputs[f"side{side}/perm"]
        )
        assert_equal(order, case.expected[f"{prefix}/abs_positions"])
        assert_equal(relation_targets(order[None], side)[0], case.expected[f"{prefix}/relations"])
        assert_close(distance_targets(order[None], side)[0], case.expected[f"{prefix}/distances"], abs=1e-6)
        assert_close(angle_targets(order[None], side)[0], case.expected[f"{prefix}/angles"], abs=3e-4)


@target_cases
def test_patch_augmentation_replay(case):
    """The recorded draws, replayed."""
    names = [name for name in case.info if name.startswith("patch_aug")]
    assert names
    for name in names:
        size = case.info[name]["patch_size"]
        operations = parse_patch_augmentation(case.info[name]["patch_trans"])
        draws = {key.removeprefix(f"{name}/"): v for key, v in case.inputs.items() if key.startswith(f"{name}/")}
        crop = draws["crop"].clone()
        if "centCrop" in operations:
            crop[:, :2] += int(round((size - math.ceil(size / 1.15)) / 2.0))
        augmentation = PatchAugmentation(
            crop=torch.cat([crop, torch.zeros_like(crop[:, :1])], dim=1),
            colors=Colors(
                jitter_apply=draws["jitter_apply"],
                jitter_factors=draws["jitter_factors"],
                # -1 marks patches that are not jittered; any order will do there.
                jitter_order=torch.where(
                    draws["jitter_order"] < 0, torch.arange(4, device=DEVICE), draws["jitter_order"]
                ),
                gray_apply=draws["gray_apply"],
            ),
            noise_apply=draws.get("noise_apply"),
            noise=draws.get("noise"),
        )
        patches = split_patches(draws["image"][None], size)
        assert_equal(patches[0].transpose(0, 1), case.expected[f"{name}/patches"])
        augmented = replace_by_noise(augment_patches(patches[0], augmentation), augmentation)
        assert_close(augmented.transpose(0, 1), case.expected[f"{name}/patches_aug"], abs=5e-6, name=name)
        assert_close(join_patches(augmented[None])[0], case.expected[f"{name}/image_aug"], abs=5e-6)
        shuffled = join_patches(permute_patches(augmented[None], draws["perm"][None]))[0]
        assert_close(shuffled, case.expected[f"{name}/image_aug_shuffled"], abs=5e-6)


@target_cases
def test_mega_patch_bands(case):
    recorded = case.info["mega_cuts"]
    for side in recorded["sides"]:
        cuts = case.inputs[f"mega_cuts/side{side}/cuts_h"]
        _, bands = mega_patch_bands(cuts, recorded["grid_side"], recorded["patch_size"])
        assert_equal(bands, case.expected[f"mega_cuts/side{side}/bands"])


@target_cases
def test_learning_rate(case):
    recorded = case.info["lr"]
    schedule = quarter_cosine(recorded["lr"], recorded["lr_end"], recorded["max_steps"], recorded["warmup_steps"])
    for step, expected in zip(case.inputs["lr/steps"].tolist(), case.expected["lr/values"].tolist(), strict=True):
        assert schedule(step) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("case", find_cases("relvit", kind="init"), ids=str)
def test_initialization(case):
    """Each recorded kind of parameter follows its law, within the tolerances that the recording states."""
    recorded = {name: m for name, m in case.info["models"].items() if m["backbone"] == "vit"}
    assert recorded
    names = {
        "clf": "classification",
        "rel": "relations",
        "dist": "distances",
        "angle": "angles",
        "abs_pos": "positions",
    }
    for model_info in recorded.values():
        torch.manual_seed(0)
        size = {"image_size": model_info["image_size"], "patch_size": model_info["patch_size"]}
        config = RelViTConfig(
            backbone_config=vit_config(f"vit-{model_info['size']}", layer_norm_eps=1e-6, **size),
            tasks=[names[task] for task in model_info["tasks"]],
            num_labels=model_info["num_classes"],
        )
        weights = to_official(RelViTForPreTraining(config).state_dict())
        for name, law in model_info["parameters"].items():
            if name.endswith(".v_lin.weight"):
                continue  # never read, not carried
            check_law(name, weights[name].detach().double(), law)


def check_law(name: str, weight: torch.Tensor, law: dict) -> None:
    assert list(weight.shape) == law["shape"], name
    if law["law"] == "constant":
        assert (weight == law["value"]).all(), name
        return
    count = weight.numel()
    sigma = law["sigma"] if law["law"] == "normal" else law["bound"] / 3**0.5
    assert abs(weight.mean()) <= 5 * sigma / count**0.5, name
    assert abs(weight.std() / sigma - 1) <= 5 / (2 * count) ** 0.5, name
    if law["law"] == "normal":
        assert weight.abs().max() < 0.2, name
    else:
        assert law["bound"] * (1 - 10 / count) <= weight.abs().max() <= law["bound"] * (1 + 1e-6), name
