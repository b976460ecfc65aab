from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from hf_ssl import PatchMixConfig, PWSelfConfig, RelViTConfig
from hf_ssl.hub import write_run_card


def settings_of_card(output_dir, method, config, results=(), num_classes=None, **changed):
    """
    The rows of the table of settings, in a card of a run that never was: those of the method, or all if training arguments
    are changed.
    """
    args = {"learning_rate": 5e-4, "schedule": None, "lr_scheduler_type": "cosine", "weight_decay": 0.05, "seed": 0}
    args |= {"max_grad_norm": 0, "bf16": False, "fp16": False, "device": SimpleNamespace(type="cpu"), "world_size": 1}
    args |= {"final_weight_decay": None, "gradient_clipping": "global"} | changed
    trainer = SimpleNamespace(
        args=SimpleNamespace(**args),
        model=SimpleNamespace(config=config),
        output_dir=output_dir,
        hub_model_id=None,
        num_train_images=1437,
        images_per_step=64,
        state=SimpleNamespace(global_step=100, epoch=4.5),
    )
    arguments = {"method": method, "mode": "some", "recipe": "digits", "dataset": "digits", "backbone": "vit-tiny"}
    arguments |= {"patch_size": 4, "image_size": 16}
    data = SimpleNamespace(num_classes=num_classes, test_name="held-out")
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
    assert settings_of_card(tmp_path, method, config) == expected


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


@pytest.mark.parametrize(("num_classes", "names"), [(5, ["top-1"]), (6, ["top-1", "top-5"])])
def test_numbers_in_the_model_index(tmp_path, num_classes, names):
    """With their protocol, and with top-5 only where it says something."""
    numbers = {f"knn_top{n}{of}": 50 for n in (1, 5) for of in ("", "_before")} | {"knn_top1_pixels": 40}
    numbers |= {"k": 20, "temperature": 0.07, "feature": "pooled", "num_query_images": 3, "num_bank_images": 30}
    numbers["dataset_revision"] = "5678ef"
    settings_of_card(tmp_path, "pw_self", PWSelfConfig(), numbers, num_classes)
    entries = ModelCard.load(tmp_path / "README.md").data.eval_results
    assert [entry.metric_name for entry in entries] == [f"kNN {name} (%)" for name in names]
    for entry in entries:
        assert "k = 20 and temperature 0.07" in entry.metric_args["protocol"] and entry.dataset_revision == "5678ef"
