"""The cards of every method and kind of model: what they say of the folder they lie in is so, and their code runs."""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, PreTrainedModel, ViTForImageClassification
from transformers.pipelines import SUPPORTED_TASKS

from hf_ssl import METHODS
from hf_ssl.arguments import PretrainArguments, build_inputs, parse_with_recipe
from hf_ssl.backbones.modeling_cifar_resnet import CifarResNetConfig
from hf_ssl.data import load_image_data
from hf_ssl.hub import (
    evaluation_processor,
    export_run,
    save_published,
    write_classifier_card,
    write_conversion_card,
    write_run_card,
)
from hf_ssl.hub.checkpoint_file import CheckpointFile
from hf_ssl.models.classification import (
    ClassificationConfig,
    ClassificationViews,
    ClassificationViewsConfig,
    ClassifierForTraining,
)
from hf_ssl.scripts import finetune
from hf_ssl.views import save_views

from ..hub_server import Hub, run_with_hub
from ..training.common import (
    make_aps,
    make_backbone,
    make_isl,
    make_model,
    make_patchmix,
    make_pw_self,
    make_swin,
    make_t2t,
    make_timm,
    make_trainer,
)


MODELS = {
    "relvit": make_model,
    "relvit, joint": lambda: make_model(tasks=["classification", "relations"], num_labels=10),
    "relvit, swin": make_swin,
    "relvit, t2t": make_t2t,
    "relvit, timm": make_timm,
    "patchmix": make_patchmix,
    "patchmix, no teacher": lambda: make_patchmix(use_teacher=False),
    "aps": make_aps,
    "pw_self": make_pw_self,
    "isl": make_isl,
}
NUMBERS = {f"knn_top{n}{of}": 50.0 for n in (1, 5) for of in ("", "_before")} | {"knn_top1_pixels": 40.0, "k": 20}
NUMBERS |= {"temperature": 0.07, "num_query_images": 360, "num_bank_images": 1437, "train_seconds": 60.0}
NUMBERS |= {f"finetune_{name}top{n}": 60.0 for name in ("", "ema_") for n in (1, 5)}
NUMBERS |= {"selected_by": None, "last_epoch_top1": None, "num_test_images": 360, "split": "test"}
RECIPES = Path(__file__).parents[2] / "training" / "recipes"
# Of the identifiers that the Hub knows, those that cards of this library may have.
LICENSES = {"apache-2.0", "cc-by-nc-4.0", "unknown"}
FIGURES = {"curves.png": "A curve.", "neighbors.png": "Some neighbors."}


@dataclass
class Published:
    """A folder with its card."""

    folder: Path
    model: PreTrainedModel

    @property
    def card(self) -> ModelCard:
        return ModelCard.load(self.folder / "README.md")

    def run_code(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """All blocks of Python, one after the other, beside a photo."""
        photo = Image.linear_gradient("L").resize((80, 60))
        photo.save(self.folder.parent / "photo.jpg")
        monkeypatch.chdir(self.folder.parent)
        blocks = re.findall(r"```python\n(.*?)```", self.card.text, re.DOTALL)
        assert blocks and all("path/to/this/folder" in block for block in blocks)
        names: dict[str, Any] = {}
        features = []
        for block in blocks:
            exec(block.replace("path/to/this/folder", self.folder.name), names)
            features += [names.pop("feature")] if "feature" in names else []
        return names | {"blocks": blocks, "features": features}


def make_figures(folder: Path) -> dict[str, str]:
    for name in FIGURES:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / "figures" / name)
    return {f"figures/{name}": caption for name, caption in FIGURES.items()}


def make_processor(config: Any) -> Any:
    return evaluation_processor(config.image_size, [0.3] * 3, [0.4] * 3)


def publish_run(name: str, folder: Path) -> Published:
    """As after a run of pretraining, on CIFAR-10 by its name alone."""
    model = MODELS[name]()
    with torch.no_grad():
        model.student.get_parameter(next(iter(dict(model.student.named_parameters())))).add_(0.1)
    method = str(model.config.model_type)
    trainer = make_trainer(folder, model)
    trainer._initial_global_step = 0  # it has trained, it says
    export_run(model, make_processor(model.config.backbone_config), folder)
    save_views(trainer.views.config, folder / "pretraining")
    arguments = {"method": method, "mode": "some", "recipe": "cifar10", "dataset": "cifar10", "backbone": "other"}
    arguments |= {"encoder": "auto", "validation_samples": 100, "model": None, "revision": None}
    results = NUMBERS | {"feature": model.config.feature, "dataset_revision": "5678ef"}
    results |= {"validation_accuracy_classification": 70.0} if "joint" in name else {}
    write_run_card(trainer, arguments, load_image_data("digits"), results, make_figures(folder))
    return Published(folder, model)


def publish_converted(name: str, folder: Path) -> Published:
    model = MODELS[name]()
    export_run(model, make_processor(model.config.backbone_config), folder)
    checkpoint = CheckpointFile(Path("last.pth"), "last.pth")
    write_conversion_card(folder, METHODS[str(model.config.model_type)], model, checkpoint)
    return Published(folder, model)


def publish_converted_classifier(folder: Path) -> Published:
    config = make_backbone(num_labels=5)
    model = ViTForImageClassification(config).eval()
    save_published(model, make_processor(config), folder)
    write_conversion_card(folder, METHODS["aps"], model, CheckpointFile(Path("last.pth"), "last.pth"))
    return Published(folder, model)


def publish_classifier(folder: Path, encoder: str, config: Any) -> Published:
    """As after fine-tuning the encoder of a folder, or none."""
    model = ClassifierForTraining(ClassificationConfig(backbone_config=config, num_labels=10))
    views = ClassificationViews(ClassificationViewsConfig(image_mean=[0.3] * 3, image_std=[0.4] * 3), model.config)
    trainer = make_trainer(folder, model, views=views)
    trainer._initial_global_step = 0
    save_published(model.export_classifier([f"class {i}" for i in range(10)]), make_processor(config), folder)
    arguments = {"model": encoder, "revision": None, "method": "relvit", "recipe": "cifar10", "dataset": "cifar10"}
    make_figures(folder)
    write_classifier_card(trainer, arguments, load_image_data("digits"), NUMBERS, FIGURES)
    return Published(folder, model)


def check_metadata(card: ModelCard, folder: Path) -> None:
    """Everything that a client can know of the Hub's rules."""
    data = card.data
    assert data.library_name == "transformers" and data.license in LICENSES and "hf_ssl" in data.tags
    assert data.pipeline_tag in SUPPORTED_TASKS
    assert ModelCard(str(card)).data.to_dict() == data.to_dict()
    if data.eval_results:
        index = eval_results_to_model_index(data.model_name, data.eval_results)
        assert model_index_to_eval_results(index) == (data.model_name, data.eval_results)
        assert data.model_name == folder.name and data.datasets == ["uoft-cs/cifar10"]
        for result in data.eval_results:
            assert result.metric_args["protocol"] and result.dataset_type == "uoft-cs/cifar10"
    else:
        assert data.model_name is data.datasets is None


def check_text(card: ModelCard, folder: Path, sections: list[str]) -> None:
    """It has these sections, none of them empty, and links to files that are there."""
    found = re.split(r"^#{2,3} (.*)$", card.text, flags=re.MULTILINE)
    assert found[1::2] == sections
    assert all(text.strip() for text in found[2::2])
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", card.text) if not link.startswith("https://")]
    assert all((folder / link).is_file() for link in links), links
    words = re.sub(r"```bibtex.*?```", "```", card.text, flags=re.DOTALL)
    assert not re.search(r"\{\{|\}\}|\{%|%\}|\bNone\b|Undefined|\n\n\n|TODO", words)
    assert str(folder.parent) not in str(card)


FIRST, LAST = ["How to use it"], ["License", "Limitations", "Citation"]
FURTHER = ["Train it further"]


def sections_of(method: str, *own: str) -> list[str]:
    reported = ["What the authors report"] if METHODS[method].reported else []
    return [*FIRST, *own, *reported, *LAST]


@pytest.mark.parametrize("publish", [publish_run, publish_converted])
@pytest.mark.parametrize("name", MODELS)
def test_encoder(tmp_path, monkeypatch, name, publish):
    folder, method = tmp_path / "published", name.partition(",")[0]
    published = publish(name, folder)
    if publish is publish_run:
        sections = sections_of(method, *FURTHER, "Training", "Results", "Pictures")
    else:
        sections = sections_of(method, *FURTHER, "Where the weights come from", "Evaluation")
    check_text(published.card, folder, sections)
    check_metadata(published.card, folder)
    assert published.card.data.license == ("apache-2.0" if publish is publish_run else LICENSE_OF_AUTHORS[method])
    names = published.run_code(monkeypatch)
    # The feature that evaluations use, and once more from the pipeline, where it can give it.
    model = AutoModel.from_pretrained(folder)
    pixels = AutoImageProcessor.from_pretrained(folder)(Image.open("photo.jpg").convert("RGB"), return_tensors="pt")
    expected = reference_feature(model, published.model.config, pixels["pixel_values"])
    for feature in names["features"]:
        torch.testing.assert_close(feature, expected)
    has_pipeline = published.model.config.feature != "patch_mean"
    assert len(names["features"]) == 1 + has_pipeline == len(names["blocks"]) - 1
    # The last block loads the whole pretraining model.
    assert type(names["model"]) is METHODS[method].model_class
    for key, tensor in names["model"].state_dict().items():
        assert torch.equal(tensor, published.model.state_dict()[key]), key
    needs_code = name in ("isl", "relvit, t2t")
    assert all(("trust_remote_code=True" in block) == needs_code for block in names["blocks"][:-1])


LICENSE_OF_AUTHORS = {"patchmix": "cc-by-nc-4.0", "aps": "cc-by-nc-4.0"} | dict.fromkeys(
    ("relvit", "pw_self", "isl"), "unknown"
)


@torch.no_grad()
def reference_feature(model: PreTrainedModel, config: Any, pixel_values: torch.Tensor) -> torch.Tensor:
    """Written out, for the encoders here."""
    outputs = model(pixel_values)
    if config.feature == "pooled":
        return outputs.pooler_output.reshape(1, -1)
    has_class_token = config.backbone_config.model_type != "timm_wrapper"
    tokens = outputs.last_hidden_state
    return tokens[:, 0] if config.feature == "class_token" else tokens[:, int(has_class_token) :].mean(1)


@pytest.mark.parametrize("name", MODELS)
def test_commands_of_a_card(tmp_path, monkeypatch, name):
    """Those for fine-tuning and for further training are understood, and fit the encoder."""
    published = publish_run(name, tmp_path / "published")
    commands = re.findall(r"```bash\nhf-ssl (.*?)\n```", published.card.text, re.DOTALL)
    scripts = {}
    for command in commands:
        script, *flags = command.replace("path/to/this/folder", str(published.folder)).split()
        scripts[script] = flags
    assert list(scripts) == ["finetune", "pretrain"]
    monkeypatch.setattr(sys, "argv", ["hf-ssl finetune", *scripts["finetune"]])
    args, training_args, model_args, _ = finetune.parse()
    assert training_args.output_dir == "outputs/classifier"
    encoder = finetune.encoder_config(args)
    model = ClassifierForTraining(ClassificationConfig(backbone_config=encoder, num_labels=3, **vars(model_args)))
    model.load_encoder(args.model)
    flags = [
        *scripts["pretrain"],
        "--recipe",
        "default",
        "--dataset",
        "digits",
    ]  # in the place of photos; the last one counts
    args, training_args, model_args, views_config = parse_with_recipe(PretrainArguments, RECIPES, flags)
    _, config, _, _ = build_inputs(args, model_args, views_config, seed=0)
    assert training_args.output_dir == "outputs/trained-on"
    assert type(config) is type(published.model.config)


def test_which_encoder_is_published(tmp_path):
    """Of two, the card names one."""
    rows = {}
    for name in ("patchmix", "patchmix, no teacher", "pw_self", "aps"):
        card = publish_run(name, tmp_path / name).card
        rows[name] = re.findall(r"\| published encoder \| (\w+), (.*) \|", card.text)
    teacher = [("teacher", "the moving average of the student")]
    assert rows == {"patchmix": teacher, "patchmix, no teacher": [], "pw_self": teacher, "aps": []}


def test_joint_training(tmp_path):
    """The card says that labels were used, and how well the class head does."""
    card = publish_run("relvit, joint", tmp_path / "run").card
    assert "pretrained with labels" in card.text and "images of cifar10 with their labels" in card.text
    assert "| class head top-1 (%) | cifar10, test | **70.00** |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [50, 50, 70]


def check_predictions(published: Published, monkeypatch: pytest.MonkeyPatch, labels: set[str]) -> None:
    predictions = published.run_code(monkeypatch)["predictions"]
    assert {prediction["label"] for prediction in predictions} <= labels
    assert len(predictions) == 5 and predictions[0]["score"] >= predictions[-1]["score"] > 0


def test_converted_classifier(tmp_path, monkeypatch):
    published = publish_converted_classifier(tmp_path / "published")
    sections = sections_of("aps", "Where the weights come from", "Evaluation")
    check_text(published.card, published.folder, sections)
    check_metadata(published.card, published.folder)
    check_predictions(published, monkeypatch, {f"LABEL_{i}" for i in range(5)})


CLASSIFIER_SECTIONS = ["How to use it", "Training", "Results", "Pictures"]


@pytest.mark.parametrize(
    "name", ["none", "relvit", "relvit, joint", "relvit, t2t", "patchmix", "aps", "pw_self", "isl"]
)
def test_classifier(tmp_path, monkeypatch, name):
    """What it began as is told, with its method and license, if it has one."""
    folder, method = tmp_path / "classifier", name.partition(",")[0]
    if name == "none":
        published = publish_classifier(folder, name, make_backbone())
        sections = [*CLASSIFIER_SECTIONS, "License", "Limitations"]
    else:
        encoder = publish_converted(name, tmp_path / "encoder")
        published = publish_classifier(folder, str(encoder.folder), encoder.model.config.backbone_config)
        reported = ["What the authors report"] if METHODS[method].reported else []
        sections = [*CLASSIFIER_SECTIONS, *reported, *LAST]
    card = published.card
    check_text(card, folder, sections)
    check_metadata(card, folder)
    check_predictions(published, monkeypatch, {f"class {i}" for i in range(10)})
    if name == "none":
        assert card.data.license == "apache-2.0" and "It was trained from scratch." in card.text
        assert card.data.tags == ["hf_ssl"] and "https://huggingface.co/papers" not in card.text
    else:
        assert card.data.license == LICENSE_OF_AUTHORS[method], "that of the encoder"
        assert "fine-tuned from the pretrained encoder `encoder`" in card.text and "from scratch" not in card.text
        assert METHODS[method].citation in card.text and METHODS[method].title.lower() in card.data.tags
        assert ("pretrained with labels" in card.text) == (name == "relvit, joint")


@pytest.mark.parametrize(
    ("text", "license"),
    [
        ("---\nlicense: mit\n---\n", "mit"),
        ("---\nlicense: [mit, other]\n---\n", "unknown"),
        ("---\nlicense: {\n---\n", "unknown"),
        ("No metadata.", "unknown"),
        (None, "unknown"),
    ],
)
def test_license_of_the_encoder(tmp_path, text, license):
    (tmp_path / "encoder").mkdir()
    if text is not None:
        (tmp_path / "encoder" / "README.md").write_text(text)
    published = publish_classifier(tmp_path / "run", str(tmp_path / "encoder"), make_backbone())
    assert published.card.data.license == license


def test_encoder_of_others(tmp_path):
    """In the Hub's words: whose it is, if it has an id there; no path of this machine."""
    config = CifarResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], image_size=16
    )
    card = publish_classifier(tmp_path / "run", "someone/resnet", config).card
    assert card.data.base_model == "someone/resnet" and card.data.license == "unknown"
    assert "from the pretrained encoder `someone/resnet`." in card.text and "Citation" not in card.text


def test_the_hub_takes_every_card(tmp_path, hub: Hub):
    """Its validation, as far as the tests' Hub has one, and what it shows: one push of each card."""
    names = {
        "run": lambda folder: publish_run("patchmix", folder),
        "remote-code": lambda folder: publish_run("isl", folder),
        "converted": lambda folder: publish_converted("relvit", folder),
        "converted-classifier": publish_converted_classifier,
        "classifier": lambda folder: publish_classifier(folder, "none", make_backbone()),
    }
    for name, publish in names.items():
        publish(tmp_path / name)
        hub.create_repository(f"org/{name}")
    code = f"""
import json
from huggingface_hub import ModelCard
found = {{}}
for name in {list(names)}:
    card = ModelCard.load({str(tmp_path)!r} + f"/{{name}}/README.md")
    card.validate()
    card.push_to_hub(f"org/{{name}}")
    data = ModelCard.load(f"org/{{name}}").data
    assert data.to_dict() == card.data.to_dict()
    found[name] = [data.license, len(data.eval_results or [])]
print(json.dumps(found))
"""
    done = run_with_hub(hub, code, home=tmp_path / "home", token=hub.tokens["alice"])
    assert json.loads(done.stdout) == {
        "run": ["apache-2.0", 2],
        "remote-code": ["apache-2.0", 2],
        "converted": ["unknown", 0],
        "converted-classifier": ["cc-by-nc-4.0", 0],
        "classifier": ["apache-2.0", 2],
    }
