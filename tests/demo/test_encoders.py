"""The shelf of encoders: names, what is kept, and untrained twins that are the same for everybody."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch
from PIL import Image
from transformers import CONFIG_MAPPING, AutoConfig, AutoImageProcessor, AutoModel, ViTConfig, ViTModel

from hf_ssl.demo import EncoderShelf, encoders, hub_policy
from hf_ssl.demo.encoders import MAX_PATCHES_KEPT, NUM_KEPT, NUM_PATCHES_KEPT, encoder_input, feature_of
from hf_ssl.demo.photos import Photo
from hf_ssl.evaluation import FeatureSpec, LoadedEncoder
from hf_ssl.hub import evaluation_processor, save_published

from ..marks import slow


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Encoders that differ in their weights and in their width."""
    folder = tmp_path_factory.mktemp("several")
    for number in range(4):
        sizes = {
            "hidden_size": 12 + 4 * number,
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "intermediate_size": 64,
        }
        torch.manual_seed(number)
        model = ViTModel(ViTConfig(image_size=32, patch_size=8, pooler_act="linear", **sizes))
        save_published(model, evaluation_processor(32, [0.5] * 3, [0.5] * 3), folder / f"encoder-{number}")
    return [str(folder / f"encoder-{number}") for number in range(4)]


def photo(color: int) -> Photo:
    image = Image.linear_gradient("L").rotate(color * 37).convert("RGB")
    return Photo(image, f"digest {color}")


def test_names(several):
    shelf = EncoderShelf(several)
    assert shelf.names == [Path(folder).name for folder in several]
    assert shelf.get("encoder-2") is shelf.get(" encoder-2 ") is shelf.load("encoder-2")
    assert shelf.get(None) is shelf.get("") is shelf.get("encoder-0")
    assert shelf.get("encoder-2").describe().startswith("**encoder-2**: vit, ")
    for models in ([], [several[0], several[0]], [several[0], f"{several[0]}/"]):
        with pytest.raises(ValueError, match="must be at least one model, of different names"):
            EncoderShelf(models)


def test_hub_ids_can_be_forbidden(several, monkeypatch):
    monkeypatch.setattr(encoders, "download", lambda *_: pytest.fail("The Hub was asked."))
    shelf = EncoderShelf(several[:2], allow_hub_ids=False)
    for name in ("org/name", several[2], "x"):
        with pytest.raises(
            gr.Error, match="There is no encoder of this name here. Choose one of encoder-0, encoder-1"
        ):
            shelf.get(name)
    assert shelf.get("encoder-1").trained.name == "encoder-1"
    component = encoder_input(shelf)
    assert not component.allow_custom_value and component.info is None
    assert encoder_input(EncoderShelf(several)).allow_custom_value


def test_errors_name_the_encoder_and_not_its_folder(several, tmp_path):
    shutil.copytree(several[0], tmp_path / "broken")
    (tmp_path / "broken/preprocessor_config.json").unlink()
    shelf = EncoderShelf([several[0], str(tmp_path / "broken")])
    with pytest.raises(gr.Error, match="broken cannot be evaluated") as refused:
        shelf.get("broken")
    assert str(tmp_path) not in refused.value.message
    shutil.copy(Path(several[0], "preprocessor_config.json"), tmp_path / "broken")
    assert shelf.get("broken").trained.name == "broken"


def test_as_many_as_the_operator_has_are_kept(several, monkeypatch):
    loaded = []
    monkeypatch.setattr(
        encoders, "load_encoder", lambda name, load=encoders.load_encoder, **options: loaded.append(name) or load(name)
    )
    shelf = EncoderShelf(several)
    assert len(several) > NUM_KEPT
    for _ in range(2):
        for name in shelf.names:
            shelf.get(name)
    assert loaded == several


def test_untrained_twins(several):
    """Random weights depend on nothing but the architecture: not on what was drawn before, nor on who else asks."""
    expected = []
    for folder in several:
        torch.manual_seed(0)
        expected.append(AutoModel.from_config(AutoConfig.from_pretrained(folder)).state_dict())
    torch.manual_seed(99)
    for _ in range(3):
        shelf = EncoderShelf(several)
        barrier = threading.Barrier(8)

        def load(
            number: int, shelf: EncoderShelf = shelf, barrier: threading.Barrier = barrier
        ) -> encoders.ShownEncoder:
            barrier.wait()
            return shelf.get(shelf.names[number % 4])

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(load, range(8)))
        for number, shown in enumerate(found):
            assert shown is found[number % 4]
            state = shown.untrained.model.state_dict()
            assert all(torch.equal(state[name], tensor) for name, tensor in expected[number % 4].items())
            weights = AutoModel.from_pretrained(several[number % 4]).state_dict()
            assert all(torch.equal(tensor, weights[name]) for name, tensor in shown.trained.model.state_dict().items())


def test_features(several):
    shown = EncoderShelf(several).get("encoder-1")
    assert shown.spec == FeatureSpec("class_token") and not shown.is_named
    processor, model = AutoImageProcessor.from_pretrained(several[1]), AutoModel.from_pretrained(several[1]).eval()
    with torch.no_grad():
        tokens = model(**processor(images=photo(3).image, return_tensors="pt")).last_hidden_state
    feature = feature_of(shown.trained, photo(3).image, shown.spec)
    torch.testing.assert_close(feature, torch.nn.functional.normalize(tokens[0, 0], dim=0), atol=1e-5, rtol=0)
    assert float(feature.norm()) == pytest.approx(1)
    assert not torch.allclose(feature, feature_of(shown.untrained, photo(3).image, shown.spec), atol=0.05)


def test_patches_are_kept(several, monkeypatch):
    seen = []

    def look(encoder: LoadedEncoder, image: Image.Image) -> SimpleNamespace:
        seen.append(image)
        return SimpleNamespace(of=(encoder.name, image.tobytes()), tokens=torch.zeros(width))

    width = 10
    monkeypatch.setattr(encoders, "image_patches", look)
    shelf = EncoderShelf(several)
    first, second = shelf.get("encoder-0"), shelf.get("encoder-1")
    for _ in range(3):
        for shown in (first, second):
            found = shelf.patches(shown.trained, photo(0), shown.fingerprint)
            assert found.of == (shown.trained.name, photo(0).image.tobytes())
    assert len(seen) == 2
    for number in range(NUM_PATCHES_KEPT + 1):
        shelf.patches(first.trained, photo(number), first.fingerprint)
    shelf.patches(second.trained, photo(0), second.fingerprint)  # was forgotten
    assert len(seen) == 2 + NUM_PATCHES_KEPT + 1
    width = MAX_PATCHES_KEPT
    for _ in range(2):
        shelf.patches(first.trained, photo(99), first.fingerprint)
    assert len(seen) == 2 + NUM_PATCHES_KEPT + 1 + 2  # too large to be kept

    def fail(encoder: object, image: object) -> None:
        raise ValueError("It makes no patches.")

    monkeypatch.setattr(encoders, "image_patches", fail)
    with pytest.raises(gr.Error, match="It makes no patches"):
        shelf.patches(first.trained, photo(100), first.fingerprint)


KINDS = ["vit", "dinov2", "swin", "convnext", "resnet", "clip_vision_model"]
MORE = ["deit", "beit", "dinov2_with_registers", "dinov3_vit", "vit_mae", "vit_msn", "siglip_vision_model", "ijepa"]
MORE += ["swinv2", "convnextv2", "data2vec-vision", "efficientnet", "hiera", "cifar_resnet", "t2t_vit", "mobilevitv2"]
MORE += ["regnet"]


@pytest.mark.parametrize("kind", [*KINDS, *map(slow, MORE)])
def test_architectures_that_visitors_may_name(tmp_path, kind):
    """Those of usual size are below the limits."""
    config = CONFIG_MAPPING[kind]()
    config.save_pretrained(tmp_path)
    side = config.image_size if isinstance(getattr(config, "image_size", None), int) else 224
    evaluation_processor(side, [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path)
    hub_policy.check(tmp_path)


def test_timm(tmp_path):
    pretrained = {"input_size": [3, 224, 224], "crop_pct": 0.95}
    config = {"architecture": "resnet18.a1_in1k", "num_classes": 1000, "pretrained_cfg": pretrained}
    (tmp_path / "config.json").write_text(json.dumps(config))
    hub_policy.check(tmp_path)


def test_limits_of_one_do_not_stop_others(tmp_path, monkeypatch):
    """Models that are built at the same time in other threads are not counted."""
    monkeypatch.setattr(hub_policy, "MAX_MODULES", 100)
    config = ViTConfig(hidden_size=12, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    big = ViTConfig(hidden_size=12, num_hidden_layers=30, num_attention_heads=2, intermediate_size=8, image_size=32)
    with ThreadPoolExecutor(1) as pool, hub_policy._bounded():
        assert pool.submit(lambda: len(list(ViTModel(big).modules()))).result() > 100
        ViTModel(config)
        with pytest.raises(ValueError, match="It has more than 100 modules"):
            ViTModel(big)
    assert len(list(ViTModel(big).modules())) > 100  # and afterwards nothing is
