import json
import math
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import NearestNeighbors
from torch import nn
from transformers import ViTConfig, ViTImageProcessor, ViTModel
from transformers.modeling_outputs import BaseModelOutput

from hf_ssl.evaluation import match_ranks, patch_retrieval


SCRIPT = Path(__file__).parents[2] / "training" / "patch_retrieval.py"
MEAN, STD = [0.0] * 3, [1.0] * 3


class Places(nn.Module):
    """An encoder of images whose pixels tell their places: its tokens are directions that differ from place to place."""

    def __init__(self, side, size, token=None):
        super().__init__()
        self.config = ViTConfig(image_size=side, patch_size=size)
        self.device, self.dtype, self.size, self.token = torch.device("cpu"), torch.float32, size, token

    def forward(self, pixel_values):
        places = nn.functional.avg_pool2d(pixel_values, self.size)[:, :2].flatten(2).mT
        if self.token is not None:
            places = torch.full_like(places, self.token)
        # Distances on the plane become angles between directions.
        tokens = torch.cat([torch.cos(places), torch.sin(places)], dim=-1)
        return BaseModelOutput(torch.cat([torch.zeros_like(tokens[:, :1]), tokens], dim=1))


def images_of_places(count=6, side=96):
    """Red grows from top to bottom, green from left to right."""
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    image = np.stack([np.repeat(ramp[:, None], side, 1), np.repeat(ramp[None], side, 0), np.zeros((side, side))], -1)
    features = Features({"image": Image(decode=False), "label": Value("int64")})
    return Dataset.from_dict(
        {"image": [encode(image.astype(np.uint8))] * count, "label": [0] * count}, features=features
    )


def encode(pixels):
    import io

    from PIL import Image as PILImage

    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def test_places_are_found():
    """An encoder that knows where a patch lies finds nearly all; matches may be off by half a patch."""
    results = patch_retrieval(Places(32, 4), images_of_places(), MEAN, STD)
    assert results["patch_retrieval_top5"] > 90 and results["patch_retrieval_top1"] > 40
    assert results["patch_retrieval_top1_chance"] == 1.56 and results["patch_retrieval_top5_chance"] == 7.81
    assert 6 * 15 < results["patch_retrieval_queries"] < 6 * 64


@pytest.mark.parametrize("token", [1.0, math.nan])
def test_blind_encoder_finds_nothing(token):
    """All tokens are alike, or not even numbers: which one is nearest means nothing, and none counts."""
    results = patch_retrieval(Places(32, 4, token), images_of_places(), MEAN, STD)
    assert results["patch_retrieval_top1"] == results["patch_retrieval_top5"] == 0


def test_random_encoder_and_batches():
    """Near chance or somewhat above; the size of the batch does not matter; nothing random is used up."""
    torch.manual_seed(0)
    config = ViTConfig(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    config.image_size, config.patch_size = 16, 4
    encoder = ViTModel(config).train()
    state = torch.get_rng_state()
    first = patch_retrieval(encoder, images_of_places(5), MEAN, STD, k=[1, 4, 16], batch_size=2)
    assert torch.equal(torch.get_rng_state(), state) and encoder.training
    assert first == patch_retrieval(encoder, images_of_places(5), MEAN, STD, k=[1, 4, 16], batch_size=64)
    assert first["patch_retrieval_top1"] <= first["patch_retrieval_top4"] <= first["patch_retrieval_top16"] == 100
    assert first != patch_retrieval(encoder, images_of_places(5), MEAN, STD, k=[1, 4, 16], seed=1)


def test_mistakes_are_explained():
    with pytest.raises(ValueError, match=r"k=\[0\] must be numbers from 1 to 64"):
        patch_retrieval(Places(32, 4), images_of_places(), MEAN, STD, k=[0])
    with pytest.raises(ValueError, match=r"k=\[65\]"):
        patch_retrieval(Places(32, 4), images_of_places(), MEAN, STD, k=[65])
    for config, message in (
        (object(), "Places has image_size=None and patch_size=None"),
        (ViTConfig(image_size=30, patch_size=8), "image_size=30 and patch_size=8"),
        (ViTConfig(image_size=32, patch_size=8), "returns 64 tokens beside the first, for 16 patches"),
    ):
        encoder = Places(32, 4)
        encoder.config = config
        with pytest.raises(ValueError, match=message):
            patch_retrieval(encoder, images_of_places(), MEAN, STD)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 3), st.integers(2, 12), st.integers(2, 12), st.integers(1, 8), st.integers(0, 1000))
def test_ranks_are_those_of_scikit_learn(batch, count1, count2, pairs, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.randn(batch, n, 7, generator=generator, dtype=torch.float64) for n in (count1, count2))
    matches = torch.stack([torch.randint(0, n, (batch, pairs), generator=generator) for n in (count1, count2)], dim=-1)
    ranks = match_ranks(first, second, matches)
    for i in range(batch):
        neighbors = NearestNeighbors(n_neighbors=count2, metric="cosine").fit(second[i].numpy())
        order = neighbors.kneighbors(first[i].numpy(), return_distance=False)
        expected = [list(order[a]).index(b) for a, b in matches[i].tolist()]
        assert ranks[i].tolist() == expected


def test_script(tmp_path, monkeypatch, capsys):
    """A folder that stock transformers loads, on the digits: the trained encoder and an untrained one."""
    config = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    torch.manual_seed(3)
    ViTModel(ViTConfig(**config, image_size=16, patch_size=4)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 16, "width": 16}, image_mean=[0.3] * 3, image_std=[0.4] * 3).save_pretrained(
        tmp_path
    )
    (tmp_path / "all_results.json").write_text('{"knn_top1": 50.0}')
    flags = ["--model", str(tmp_path), "--max_samples", "20", "--k", "1", "3", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["patch_retrieval.py", *flags])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = json.loads(capsys.readouterr().out)
    names = {f"patch_retrieval_top{k}{ending}" for k in (1, 3) for ending in ("", "_chance", "_untrained")}
    assert printed.keys() == names | {"patch_retrieval_queries", "patch_retrieval_split"}
    assert printed["patch_retrieval_split"] == "test"
    assert printed["patch_retrieval_top3_chance"] == 18.75
    assert json.loads((tmp_path / "all_results.json").read_text()) == {"knn_top1": 50.0} | printed
