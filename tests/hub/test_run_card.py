from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard

from hf_ssl import METHODS, PatchMixConfig, PWSelfConfig, RelViTConfig
from hf_ssl.hub import write_run_card
from hf_ssl.hub.run_card import describe_view
from hf_ssl.views import View


def settings_of_card(
    output_dir, method, config, results=(), num_classes=None, dataset="digits", model=None, trainer=(), **changed
):
    """
    The rows of the table of settings, in a card of a run that never was: those of the method, or all if training arguments
    are changed.
    """
    args = {"learning_rate": 5e-4, "schedule": None, "lr_scheduler_type": "cosine", "weight_decay": 0.05, "seed": 0}
    args |= {"max_grad_norm": 0, "bf16": False, "fp16": False, "device": SimpleNamespace(type="cpu"), "world_size": 1}
    args |= {"final_weight_decay": None, "gradient_clipping": "global", "warmup_steps": 0, "optim": "adamw_torch"}
    args |= {"optim_args": None, "adam_beta1": 0.9, "adam_beta2": 0.95} | changed
    known = {
        "args": SimpleNamespace(**args),
        "model": SimpleNamespace(config=config),
        "views": SimpleNamespace(config=METHODS[method].views_config_class()),
        "output_dir": output_dir,
        "hub_model_id": None,
        "num_train_images": 1437,
        "images_per_step": 64,
        "first_step": 0,
        "state": SimpleNamespace(global_step=100, epoch=4.5),
    }
    trainer = SimpleNamespace(**known | dict(trainer))
    arguments = {"method": method, "mode": "some", "recipe": "digits", "dataset": dataset, "backbone": "vit-tiny"}
    arguments |= {"patch_size": 4, "image_size": 16, "encoder": "auto", "validation_samples": 10}
    arguments |= {"model": model, "revision": None}
    data = SimpleNamespace(num_classes=num_classes, test_name="held-out", test=range(360))
    write_run_card(trainer, arguments, data, {"train_seconds": 60, **dict(results)}, {})
    table = (output_dir / "README.md").read_text().split("| setting | value |\n|---|---|\n")[1].split("\n\n")[0]
    rows = [row.removeprefix("| ").removesuffix(" |").split(" | ") for row in table.split("\n")]
    assert all(len(row) == 2 for row in rows)
    names = [name for name, _ in rows]
    assert len(set(names)) == len(names)
    assert names[:2] == ["mode", "recipe"] and "seed" in names
    return dict(rows if changed else rows[names.index("seed") + 1 :])


@pytest.mark.parametrize(
    ("method", "config", "expected"),
    [
        (
            "patchmix",
            PatchMixConfig(use_teacher=False, teacher_momentum=0.99999995, temperature=1, mix_smoothing=1e-8),
            {
                "group size": "2",
                "num local views": "8",
                "use teacher": "no",
                "teacher momentum": "0.99999995",
                "ema schedule": "iter",
                "temperature": "1",
                "mix smoothing": "1e-08",
                "plain smoothing": "0.1",
                "projection dim": "256",
                "projection hidden dim": "4096",
                "num projector layers": "3",
                "num predictor layers": "2",
                "drop path rate": "0.1",
            },
        ),
        (
            "relvit",
            RelViTConfig(tasks=["classification", "relations"], use_position_embeddings=True, num_labels=10),
            {
                "tasks": "classification, relations",
                "use position embeddings": "yes",
                "add class token to patches": "no",
                "attention pattern": "full",
                "drop path rate": "0",
                "projection dropout": "0",
                "relation label smoothing": "0",
                "relation loss dropout": "0",
            },
        ),
    ],
)
def test_settings_of_the_method(tmp_path, method, config, expected):
    settings = settings_of_card(tmp_path, method, config)
    assert list(settings)[: len(expected)] == list(expected) and expected.items() <= settings.items()
    others = ("view", "image augmentation", "patch augmentation", "mega ", "shuffle patches")
    assert all(name.startswith(others) for name in settings.keys() - expected.keys())


def test_views_are_told(tmp_path):
    settings = settings_of_card(tmp_path, "pw_self", PWSelfConfig())
    assert (settings["canvas"], settings["shared colors"]) == ("256", "no")
    assert settings["view local"].startswith("random resized crop; size 96; scale 0.05 to 0.4; ratio 0.75 to 1.333;")
    assert "view local" in settings_of_card(tmp_path, "patchmix", PatchMixConfig(num_local_views=2))
    assert "view local" not in settings_of_card(tmp_path, "patchmix", PatchMixConfig(num_local_views=0))
    assert settings_of_card(tmp_path, "relvit", RelViTConfig())["image augmentation"] == "random_resized_crop"


@pytest.mark.parametrize(
    ("view", "words"),
    [
        (View(crop="resize", interpolation="bicubic", flip=0), "resize; interpolation bicubic"),
        (View(crop="padded_crop", size=8), "padded crop; size 8; padding 4; interpolation bilinear; flip 0.5"),
        (
            View(flip=0, jitter=0.8, hue=0, grayscale_first=True, blur=0.1, erase=0.25),
            "random resized crop; scale 0.08 to 1; ratio 0.75 to 1.333; interpolation bilinear; jitter 0.8; brightness 0.4; "
            "contrast 0.4; saturation 0.4; grayscale first yes; blur 0.1; blur sigma 0.1 to 2; erase 0.25",
        ),
    ],
)
def test_view_in_words(view, words):
    """What is off, and what depends on it, is left out."""
    assert describe_view(view) == words


def test_options_that_are_set_are_told(tmp_path):
    assert settings_of_card(tmp_path, "relvit", RelViTConfig(mega_patches=4))["mega patches"] == "4"


def test_crops_of_a_batch_or_of_each_image(tmp_path):
    for geometry in ("batch", "sample"):
        assert settings_of_card(tmp_path, "pw_self", PWSelfConfig(geometry=geometry))["geometry"] == geometry


@pytest.mark.parametrize(
    ("changed", "decay", "clipping"),
    [
        ({"max_grad_norm": 0.0}, "0.05", "none"),
        ({"max_grad_norm": 1.0}, "0.05", "norm of all gradients at most 1"),
        ({"max_grad_norm": 3.0, "gradient_clipping": "per_parameter"}, "0.05", "norm of each parameter at most 3"),
        ({"final_weight_decay": 0.4}, "0.05 to 0.4", "none"),
    ],
)
def test_weight_decay_and_clipping(tmp_path, changed, decay, clipping):
    settings = settings_of_card(tmp_path, "pw_self", PWSelfConfig(), **changed)
    assert (settings["weight decay"], settings["gradient clipping"]) == (decay, clipping)


@pytest.mark.parametrize(
    ("changed", "optimizer", "warmup"),
    [
        ({"warmup_steps": 0.1}, "adamw_torch (betas 0.9 and 0.95)", "10 % of the steps"),
        ({"optim": "sgd", "optim_args": "momentum=0.9", "warmup_steps": 50}, "sgd (momentum=0.9)", "50 steps"),
        ({"optim": "sgd"}, "sgd", "none"),
    ],
)
def test_optimizer_and_warmup(tmp_path, changed, optimizer, warmup):
    settings = settings_of_card(tmp_path, "relvit", RelViTConfig(), **changed)
    assert (settings["optimizer"], settings["warm-up"]) == (optimizer, warmup)


@pytest.mark.parametrize(
    ("seconds", "first_step", "time"),
    [
        (90, 0, "1.5 minutes."),
        (7200, 0, "2.0 hours."),
        (90, 40, "1.5 minutes for the last 60 of 100 steps, since the run was resumed."),
    ],
)
def test_time(tmp_path, seconds, first_step, time):
    trainer = {"first_step": first_step}
    settings_of_card(tmp_path, "relvit", RelViTConfig(), {"train_seconds": seconds}, trainer=trainer)
    assert f"cores, {time}\n" in (tmp_path / "README.md").read_text()


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("validation_loss", "step 70, the best by validation loss on held-out images"),
        ("knn_top1_train", "step 70, the best by knn top1 train on training images"),
        (None, None),
    ],
)
def test_whose_step_is_published(tmp_path, metric, expected):
    results = {} if metric is None else {"selected_by": metric, "best_step": 70}
    assert settings_of_card(tmp_path, "pw_self", PWSelfConfig(), results).get("published model") == expected


KNN = {f"knn_top{n}{of}": 50 for n in (1, 5) for of in ("", "_before")} | {"knn_top1_pixels": 40, "feature": "pooled"}
KNN |= {"k": 20, "temperature": 0.07, "num_query_images": 3, "num_bank_images": 30, "dataset_revision": "5678ef"}


@pytest.mark.parametrize(("num_classes", "names"), [(5, ["top-1"]), (6, ["top-1", "top-5"])])
def test_numbers_in_the_model_index(tmp_path, num_classes, names):
    """With their protocol, and with top-5 only where it says something."""
    settings_of_card(tmp_path, "pw_self", PWSelfConfig(), KNN, num_classes)
    entries = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [entry.metric_name for entry in entries] == [f"kNN {name} (%)" for name in names]
    for entry in entries:
        assert "k = 20 and temperature 0.07" in entry.metric_args["protocol"] and entry.dataset_revision == "5678ef"
    assert not (tmp_path / ".eval_results").exists(), "digits have no id of the Hub"


def test_numbers_in_the_format_of_the_hub(tmp_path):
    """Of images with an id there; a new run of the folder leaves none of an earlier model."""
    folder = tmp_path / ".eval_results"
    for dataset, name in (("cifar10", "uoft-cs--cifar10"), ("someone/photos", "someone--photos")):
        settings_of_card(tmp_path, "pw_self", PWSelfConfig(), KNN, 10, dataset)
        assert [path.name for path in folder.iterdir()] == [f"hf_ssl-{name}.yaml"]
        entries = yaml.safe_load((folder / f"hf_ssl-{name}.yaml").read_text())
        assert [entry["dataset"]["task_id"] for entry in entries] == ["knn_top_1", "knn_top_5"]
    settings_of_card(tmp_path, "pw_self", PWSelfConfig())
    assert not list(folder.iterdir())


def test_number_that_chose_the_model(tmp_path):
    name = "validation_accuracy_classification"
    chosen = "it chose the step that was published"
    for metric in ("knn_top1", name):
        results = KNN | {name: 70.0, "selected_by": metric, "best_step": 7}
        settings_of_card(tmp_path, "relvit", RelViTConfig(tasks=["classification"], num_labels=5), results, 5)
        knn, head = ModelCard.load(tmp_path / "README.md").data.eval_results
        assert (knn.metric_name, head.metric_name) == ("kNN top-1 (%)", "class head top-1 (%)")
        assert head.metric_value == 70 and "on 10 images that were not trained on" in head.metric_args["protocol"]
        assert (chosen in knn.metric_args["protocol"]) == (metric == "knn_top1")
        assert (chosen in head.metric_args["protocol"]) == (metric == name)


@pytest.mark.parametrize("text", ["---\nlicense: cc-by-nc-4.0\n---\n", None])
def test_license_of_what_was_trained_on(tmp_path, text):
    """Of a run that began with weights of others."""
    (tmp_path / "first").mkdir()
    if text is not None:
        (tmp_path / "first" / "README.md").write_text(text)
    settings_of_card(tmp_path / "run", "patchmix", PatchMixConfig(), model=str(tmp_path / "first"))
    card = ModelCard.load(tmp_path / "run" / "README.md")
    assert card.data.license == ("unknown" if text is None else "cc-by-nc-4.0")
    assert "began with the weights of `first`" in card.text
    assert "from scratch" not in card.text and "apache-2.0" not in str(card) and str(tmp_path) not in str(card)
