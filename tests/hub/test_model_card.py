import re

import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from PIL import Image
from torchvision.transforms.functional import pil_to_tensor
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from hf_ssl.evaluation.features import POOLINGS, extract_features
from hf_ssl.hub import add_to_card
from hf_ssl.hub.model_card import FEATURES, CardResult, ModelCardInfo, render_card
from hf_ssl.models.reported import ReportedResults


REPORTED = {
    "columns": ("data, encoder", "kNN top-1 (%)", "linear top-1 (%)"),
    "rows": (("ImageNet-1k, ViT-S/16", "71.11", "74.22"), ("ImageNet-1k, ViT-B/16", "–", "76.33")),
    "source": "Table 2 of [the paper](https://arxiv.org/abs/2206.00481)",
    "note": "The repository gives 74.44 for the first row.",
    "weights_license": "cc-by-nc-4.0",
}


def make_info(**changes):
    protocol = "weighted kNN, k = 20, temperature 0.07, all training images as bank"
    shared = {"dataset": "CIFAR-10", "dataset_id": "uoft-cs/cifar10", "split": "test", "protocol": protocol}
    arguments = {
        "model_name": "relvit-vit-tiny-cifar10",
        "repo_id": "someone/relvit-vit-tiny-cifar10",
        "method": "RelViT",
        "method_summary": "Every patch learns to tell where the other patches lie.",
        "paper_title": "Where are my Neighbors?",
        "arxiv_id": "2206.00481",
        "bibtex": "@inproceedings{key,\n  title = {{Where} are my Neighbors?},\n}",
        "backbone": "ViT-Tiny",
        "pooling": "patch_mean",
        "dataset": "CIFAR-10",
        "dataset_id": "uoft-cs/cifar10",
        "num_train_images": 50_000,
        "limitations": "Learned from 32-pixel images.",
        "training": {"steps": 1950, "learning rate": 5e-4},
        "results": [
            CardResult(
                value=51.2345,
                metric_name="kNN top-1 (%)",
                metric_type="accuracy",
                before_training=31.2,
                raw_pixels=35.44,
                **shared,
            ),
            CardResult(value=90, metric_name="kNN top-5 (%)", metric_type="accuracy", before_training=80, **shared),
        ],
        "figures": {"figures/curves.png": "Loss and kNN accuracy during training"},
        "hardware": "2 CPU cores, 1.5 hours",
        "versions": {"torch": "2.15.0", "transformers": "5.23.0"},
    }
    return ModelCardInfo(**(arguments | changes))


def bare_info(**changes):
    nothing = {
        "repo_id": None,
        "dataset": "my photos",
        "dataset_id": None,
        "training": {},
        "results": [],
        "figures": {},
        "hardware": None,
        "versions": {},
    }
    return make_info(**(nothing | changes))


def converted_info(**changes):
    conversion = {"num_train_images": None, "converted_from": "last.pth", "license": "cc-by-nc-4.0"}
    return bare_info(**({"dataset": None} | conversion | changes))


def classifier_info(**changes):
    return make_info(
        **(
            {"num_classes": 10, "origin": "It was fine-tuned from the pretrained encoder `vit`.", "pooling": None}
            | changes
        )
    )


def code_block(card):
    return re.search(r"```python\n(.*?)```", card.text, re.DOTALL).group(1)


def test_metadata_round_trips(tmp_path):
    card = render_card(make_info())
    card.save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert data.to_dict() == card.data.to_dict()
    assert data.library_name == "transformers"
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.license == "apache-2.0"
    assert data.datasets == ["uoft-cs/cifar10"]
    assert data.tags == ["hf_ssl", "self-supervised-learning", "relvit"]
    assert data.model_name == "relvit-vit-tiny-cifar10"
    top1, top5 = data.eval_results
    assert (top1.metric_value, top1.metric_name, top1.metric_type) == (51.23, "kNN top-1 (%)", "accuracy")
    assert (top1.dataset_type, top1.dataset_name, top1.dataset_split) == ("uoft-cs/cifar10", "CIFAR-10", "test")
    assert top1.task_type == "image-classification"
    assert top5.metric_value == 90


@pytest.mark.parametrize(
    "info",
    [
        make_info(),
        make_info(reported=ReportedResults(**REPORTED)),
        bare_info(),
        bare_info(reported=ReportedResults(**REPORTED | {"note": None})),
        bare_info(trust_remote_code=True, uses_labels=True),
        bare_info(pooling="class_token"),
        classifier_info(),
        classifier_info(license="unknown", uses_labels=True),
        converted_info(),
        converted_info(
            reported=ReportedResults(**REPORTED), conversion_notes=["It was checked.", "It is the teacher."]
        ),
        converted_info(license="unknown", uses_labels=True),
    ],
)
def test_text_is_clean(info):
    text = str(render_card(info))
    body = text.replace(info.bibtex, "")
    assert not re.search(r"\{\{|\}\}|\{%|%\}|None|Undefined", body)
    assert "\n\n\n" not in body
    assert not re.search(r"(?<![\w.:/])/\w+/", body), "an absolute path"
    assert info.bibtex in text and info.limitations in text and info.method_summary in text
    assert "https://huggingface.co/papers/2206.00481" in text


def test_results_table():
    text = render_card(make_info()).text
    assert "| evaluation | data | this model | before training | raw pixels |\n|---|---|---|---|---|\n" in text
    assert "| kNN top-1 (%) | CIFAR-10, test | **51.23** | 31.20 | 35.44 |\n" in text
    assert "| kNN top-5 (%) | CIFAR-10, test | **90.00** | 80.00 | – |\n" in text
    assert (
        "- kNN top-1 (%), kNN top-5 (%): Weighted kNN, k = 20, temperature 0.07, all training images as bank.\n"
        in text
    )
    assert "| steps | 1950 |\n| learning rate | 0.0005 |\n" in text
    assert "50,000 images of CIFAR-10, no labels." in text
    assert "![Loss and kNN accuracy during training](figures/curves.png)" in text


def test_comparison_columns_only_where_measured():
    result = CardResult(
        value=50, metric_name="linear", metric_type="accuracy", dataset="photos", split="test", protocol="probe"
    )
    card = render_card(make_info(results=[result]))
    assert "| evaluation | data | this model |\n|---|---|---|\n" in card.text
    assert "efore training" not in card.text and "aw pixels" not in card.text
    assert card.data.eval_results[0].dataset_type == "photos"


def test_card_without_hub_dataset_or_results():
    card = render_card(bare_info())
    assert card.data.datasets is None
    assert card.data.eval_results is None
    assert "model_name" not in card.data.to_dict()
    assert "This model has not been evaluated." in card.text
    assert "Pictures" not in card.text


@pytest.mark.parametrize("note", [None, REPORTED["note"]])
@pytest.mark.parametrize("make", [make_info, bare_info])
def test_authors_numbers_stand_apart(make, note):
    card, without = render_card(make(reported=ReportedResults(**REPORTED | {"note": note}))), render_card(make())
    assert card.data.to_dict() == without.data.to_dict()
    section = re.search(r"## What the authors report\n.*?(?=## )", card.text, re.DOTALL).group()
    assert card.text.replace(section, "") == without.text
    paragraphs = section.strip().split("\n\n")
    assert "not measured by us" in paragraphs[1] and "not numbers of this model" in paragraphs[1]
    assert paragraphs[2].split("\n") == [
        "| data, encoder | kNN top-1 (%) | linear top-1 (%) |",
        "|---|---|---|",
        "| ImageNet-1k, ViT-S/16 | 71.11 | 74.22 |",
        "| ImageNet-1k, ViT-B/16 | – | 76.33 |",
    ]
    assert paragraphs[3] == f"Source: {REPORTED['source']}."
    assert paragraphs[4:-1] == ([note] if note else [])
    assert "`cc-by-nc-4.0`" in paragraphs[-1] and "`apache-2.0`" in paragraphs[-1]


@pytest.mark.parametrize("reported", [None, ReportedResults(**REPORTED)])
def test_converted_weights_are_the_authors(reported):
    card = render_card(converted_info(reported=reported, conversion_notes=["It was checked."]))
    assert card.data.datasets is None and card.data.eval_results is None and card.data.license == "cc-by-nc-4.0"
    for absent in ("from scratch", "## Training", "apache-2.0", "numbers under", "not numbers of this model"):
        assert absent not in card.text, absent
    assert "ViT-Tiny, pretrained without labels by the authors of\nRelViT ([" in card.text
    assert "the authors' file `last.pth`;" in card.text and "\n\nIt was checked.\n\n" in card.text
    assert "remain under the authors' license, `cc-by-nc-4.0`." in card.text
    assert card.text.count("not measured by us, and which of them are numbers of this model") == (reported is not None)


def test_unknown_license_is_said_to_be_unknown():
    card = render_card(converted_info(license="unknown"))
    assert card.data.license == "unknown"
    assert "is not known to us: look it up" in card.text and "remain under" not in card.text


@pytest.mark.parametrize("row", [("ViT-S", "71.11"), ("ViT-S", "71.11", "74.22", "80.00")])
def test_reported_rows_have_a_cell_for_each_column(row):
    with pytest.raises(ValueError, match=f"has {len(row)} cells for 3 columns"):
        ReportedResults(**REPORTED | {"rows": (*REPORTED["rows"], row)})


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("trust_remote_code", [False, True])
def test_code_compiles(pooling, trust_remote_code):
    code = code_block(render_card(make_info(pooling=pooling, trust_remote_code=trust_remote_code)))
    compile(code, "card", "exec")
    assert code.count("trust_remote_code=True") == 2 * trust_remote_code
    assert code.count('"someone/relvit-vit-tiny-cifar10"') == 2


def test_every_pooling_is_explained():
    assert tuple(FEATURES) == POOLINGS


@pytest.mark.parametrize(
    ("num_prefix_tokens", "code"),
    [(0, "last_hidden_state.mean(dim=1)"), (1, "last_hidden_state[:, 1:].mean"), (5, "last_hidden_state[:, 5:].mean")],
)
def test_tokens_that_stand_for_no_patch(num_prefix_tokens, code):
    assert f"model(**inputs).{code}" in code_block(render_card(make_info(num_prefix_tokens=num_prefix_tokens)))


def test_pipeline_only_where_it_gives_the_feature():
    for pooling in POOLINGS:
        text = render_card(make_info(pooling=pooling)).text
        assert ('pipeline("image-feature-extraction"' in text) == (pooling != "patch_mean")
        assert ("is another\nfeature" in text) == (pooling == "patch_mean")


def test_classifier_without_a_method():
    """Of somebody else's encoder, or of none: nothing is said of a method that is not known."""
    nothing = dict.fromkeys(("method", "method_summary", "paper_title", "arxiv_id", "bibtex"))
    card = render_card(classifier_info(**nothing, base_model="someone/vit"))
    assert card.data.tags == ["hf_ssl"] and card.data.base_model == "someone/vit"
    assert "which tells which of 10 classes an image belongs to. It was fine-tuned from" in card.text
    for absent in ("None", "Citation", "papers/", "bibtex", "pretraining/", "hf-ssl finetune", "Train it further"):
        assert absent not in card.text, absent
    with_method = render_card(classifier_info())
    assert "That encoder was pretrained without labels with RelViT ([Where are my Neighbors?](" in with_method.text
    assert "RelViT" in with_method.text and "## Citation" in with_method.text and "no labels" not in with_method.text


def test_license_of_what_a_classifier_began_as():
    text = render_card(classifier_info(license="cc-by-nc-4.0")).text
    assert "The weights are licensed `cc-by-nc-4.0`." in text and "apache" not in text
    card = render_card(classifier_info(license="unknown"))
    assert card.data.license == "unknown" and "the training began with is not known to us: look it up" in card.text


def test_place_of_evaluations(tmp_path):
    """Between the results and what the authors report, whether there are results or not."""
    reported = ReportedResults(**REPORTED)
    result = CardResult(
        value=12.5, metric_name="linear", metric_type="accuracy", dataset="photos", split="test", protocol="probe"
    )
    result.settings = {"model": "run", "encoder": "auto"}
    for make in (make_info, bare_info, converted_info):
        path = tmp_path / "README.md"
        render_card(make(reported=reported)).save(path)
        before = path.read_text()
        add_to_card(path, [result], {})
        after = path.read_text()
        assert after.index("**12.50**") < after.index("## What the authors report")
        assert ("has not been evaluated" in before) == (make is not make_info)
        assert "has not been evaluated" not in after and after.count("## Evaluation\n") == 1


@pytest.mark.parametrize("pooling", POOLINGS)
def test_code_gives_the_evaluated_feature(tmp_path, monkeypatch, pooling):
    config = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    encoder, processor = ViTModel(config), ViTImageProcessor(size={"height": 8, "width": 8})
    for part in (encoder, processor):
        part.save_pretrained(tmp_path / "path/to/this/folder")
    Image.linear_gradient("L").save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    namespace = {}
    exec(code_block(render_card(bare_info(pooling=pooling))), namespace)
    photo = pil_to_tensor(Image.open("photo.jpg").convert("RGB"))
    expected, _ = extract_features(encoder, processor, [{"image": photo}], pooling=pooling)
    torch.testing.assert_close(namespace["feature"].detach(), expected)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"pooling": "cls"}, "`pooling` must be one of class_token, patch_mean, pooled"),
        ({"figures": {"/tmp/run/curves.png": "curves"}}, "`figures` has '/tmp/run/curves.png', an absolute path"),
        ({"dataset": "C:\\photos"}, "`dataset`"),
        ({"training": {"recipe": "/home/me/recipe.yaml"}}, "`training`"),
        ({"converted_from": "last.pth"}, "trained or converted"),
        ({"dataset": None}, "trained or converted"),
        ({"num_train_images": None}, "trained or converted"),
        ({"num_train_images": None, "converted_from": "last.pth"}, "trained or converted"),
        ({"dataset": None, "converted_from": "/home/me/last.pth"}, "`converted_from`"),
        ({"bibtex": None}, "`bibtex`, or, where `origin` tells another one, none of them"),
        (dict.fromkeys(("method", "method_summary", "paper_title", "arxiv_id", "bibtex")), "none of them"),
    ],
)
def test_errors(changes, message):
    with pytest.raises(ValueError, match=message):
        render_card(make_info(**changes))


@pytest.mark.parametrize("name", ["dataset_id", "repo_id", "base_model"])
def test_ids_must_be_hub_ids(name):
    with pytest.raises(HFValidationError):
        render_card(make_info(**{name: "photos/of/mine"}))
