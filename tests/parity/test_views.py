"""The geometry of views, and their pixels, against numbers recorded from the authors' code."""

import json

import pytest
import torch

from hf_ssl.views import correspondences, normalize, overlap_ratio, resample, resample_each, sampling_probabilities

from .cases import assert_close, find_cases


aps_cases = pytest.mark.parametrize("case", find_cases("aps"), ids=str)
pw_self_cases = pytest.mark.parametrize("case", find_cases("pw_self"), ids=str)

# APS's statistics of CIFAR.
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2023, 0.1994, 0.2010]


def aps_boxes(case):
    """Boxes of the two views of each image with their flips: `(batch_size, 1, 5)` each, to meet several samplings."""
    boxes = torch.cat([case.inputs["boxes"], case.inputs["flips"].long()[..., None]], dim=-1)
    return boxes[:, :1], boxes[:, 1:]


@aps_cases
def test_aps_sampling_maps(case):
    grid = (case.info["dims"]["grid"],) * 2
    boxes1, boxes2 = aps_boxes(case)
    selected = case.expected["idxs1"]
    count = case.info["dims"]["n_selected"]
    slices = case.inputs["permutations"][:, : count * selected.shape[1]].unflatten(1, selected.shape[1:])
    assert torch.equal(slices, selected)
    for group, flip_aware in (("", False), ("ext_flip_aware_", True)):
        if group and not case.has(group):
            continue
        ratio = overlap_ratio(boxes1, boxes2, selected, grid, flip_aware)
        probabilities = sampling_probabilities(ratio, case.info["dims"]["power"])
        assert_close(ratio, case.expected[group + ("ratio_map" if group else "overlap_ratio_map")], abs=1e-12)
        assert_close(probabilities, case.expected[group + ("probs" if group else "sampling_probs")], abs=1e-12)


@aps_cases
def test_aps_overlap_on_the_larger_grid(case):
    case.need("geom_ratio_map")
    side = round(case.expected["geom_ratio_map"].shape[-1] ** 0.5)
    boxes1, boxes2 = case.inputs["geom_boxes"].unbind(1)
    ratio = overlap_ratio(boxes1, boxes2, case.inputs["geom_idxs1"], (side, side))
    assert_close(ratio, case.expected["geom_ratio_map"], abs=1e-12)
    probabilities = sampling_probabilities(ratio, case.info["dims"]["of_power"])
    assert_close(probabilities, case.expected["geom_probs"], abs=1e-12)


@aps_cases
@pytest.mark.parametrize("number", [0, 1])
def test_aps_pixels(case, number):
    """The authors crop 8-bit images with PIL: the same to rounding in float; image by image, nearly all are equal."""
    boxes = aps_boxes(case)[number][:, 0]
    images, size = case.inputs["source_images"], case.info["dims"]["image_size"]
    expected = case.inputs[f"view{number + 1}"]
    bytes_ = resample_each(images.cpu(), boxes.cpu(), size).to(boxes.device)
    for pixels, largest, mean in ((resample(images, boxes, size), 1.3, 0.5), (bytes_, 2.3, 0.1)):
        difference = (normalize(pixels / 255, MEAN, STD) - expected).abs() * min(STD) * 255
        assert difference.max() < largest and difference.mean() < mean


def pairs(box1, flip1, grid1, box2, flip2, grid2, strict):
    """Tokens of both views, counted from 1 after the class token 0, as the authors list them."""
    boxes = (torch.tensor([*box, flip]) for box, flip in ((box1, flip1), (box2, flip2)))
    index1, index2, valid = correspondences(*boxes, (grid1, grid1), (grid2, grid2), strict=strict)
    return [[0, *(index[valid] + 1).tolist()] for index in (index1, index2)]


@pw_self_cases
def test_pw_self_correspondences(case):
    recorded = json.loads((case.folder / "correspondences.json").read_text())
    assert recorded
    for entry in recorded:
        views = [entry[name] for name in ("box1", "flip1", "grid1", "box2", "flip2", "grid2")]
        expected = [entry["idx1"], entry["idx2"]]
        assert pairs(*views, strict=True) == expected, entry
        if "flip_overflow_quirk" not in entry["note"]:
            assert pairs(*views, strict=False) == expected, entry


@pw_self_cases
def test_pw_self_pairs_of_whole_pipelines(case):
    for entry in json.loads((case.folder / "official_pipeline_views.json").read_text()):
        views = entry["views"]
        assert entry["pairs"]
        for pair in entry["pairs"]:
            first, second = (views[pair[which]] for which in ("teacher", "student"))
            found = pairs(
                first["box"], first["flip"], first["grid"], second["box"], second["flip"], second["grid"], strict=True
            )
            assert found == [pair["teacher_idx"], pair["student_idx"]]
