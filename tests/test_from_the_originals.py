"""docs/from_the_originals.md: every command of the originals is there, and ours does what the page says.

All of ours are parsed as they are, with their recipes, and compared with the authors' values. Then they are run, in the order
of the page, on a few images, with smaller encoders and one step.
"""

import json
import re
import runpy
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import datasets
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_image
from transformers import HfArgumentParser

from hf_ssl.arguments import PretrainArguments, parse_with_recipe
from hf_ssl.hub import evaluation_processor, save_published
from training import convert, copy_detection, finetune, knn, linear, match, pretrain, retrieval

from .data.miniatures import make_copydays, make_revisited
from .marks import slow
from .training.common import make_model


ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "from_the_originals.md"
GOLDEN = ROOT / "tests" / "fixtures" / "golden"

# The commands in the authors' READMEs, without those that install something, in their order.
ORIGINALS = {
    "APS": [
        "python main_pretrain.py --arch='vit-small' --dataset='cifar100' --data-root='./dataset/cifar100' --nepoch=1600",
        "python main_finetune.py --arch='vit-small' --dataset='cifar100' --data-root='./dataset/cifar100' "
        "--pretrained-weights='./weight/pretrain/cifar100/small_1600ep_5e-4_100.pth'",
    ],
    "ISL": [
        "python small_main.py --data='data/' --arch='resnet18/resnet50/alexnet' --dataset='svhn/cifar10/cifar100'",
        "python small_main.py --data='data/' --arch='resnet18/resnet50/alexnet' --dataset='svhn/cifar10/cifar100' "
        "--test-only=True --recompute=True --resume='weight_file'",
        "python imagenet_main.py --data='data/' --arch='resnet18/resnet50/alexnet'",
        "python imagenet_main.py --data='data/' --arch='resnet18/resnet50/alexnet' --test-only=True --recompute=True "
        "--resume='weight_file'",
    ],
    "PatchMix": [
        "python main_pretrain.py --arch vit-small",
        "python main_knn.py --arch vit-small --pretrained-weights /path/to/pretrained-weights.pth",
        "python main_linear.py --arch vit-small --pretrained-weights /path/to/pretrained-weights.pth",
        "python python main_finetune.py --arch vit-small --pretrained-weights /path/to/pretrained-weights.pth",
    ],
    "PW-Self": [
        "python patch_wise_dino.py --help",
        "torchrun --nproc_per_node=4 patch_wise_dino.py --arch vit_small --data_path "
        "/path/to/imagenet-or-imagenet100-or-cifar10/train --output_dir /path/to/saving_dir",
        "torchrun --nproc_per_node=1 eval_knn.py --data_path /path/to/imagenet-or-imagenet100-or-cifar10",
        "torchrun --nproc_per_node=1 eval_knn.py --pretrained_weights /path/to/checkpoint.pth --checkpoint_key teacher "
        "--data_path /path/to/imagenet-or-imagenet100-or-cifar10",
        "torchrun --nproc_per_node=4 eval_linear.py --data_path /path/to/imagenet-or-imagenet100-or-cifar10",
        "torchrun --use_env --nproc_per_node=1 eval_image_retrieval.py --imsize 512 --multiscale 1 --data_path "
        "/path/to/revisited_paris_oxford/ --dataset rparis6k",
        "torchrun --use_env --nproc_per_node=1 eval_image_retrieval.py --imsize 224 --multiscale 0 --data_path "
        "/path/to/revisited_paris_oxford/ --dataset roxford5k",
        "torchrun --use_env --nproc_per_node=1 eval_copy_detection.py --data_path /path/to/copydays/ --whitening_path "
        "/path/to/whitening_data/ --distractors_path /path/to/distractors/",
        "--epochs 300",
        "--teacher_temp 0.07 --warmup_teacher_temp_epochs 30",
        "--norm_last_layer false",
        "python patch_matching.py",
    ],
    "RelViT": [
        "bash scripts/upstream.sh --exp_id upstream_cifar10 --backbone vit --model_size small --num_gpus 1 --epochs 100 "
        "--dataset cifar10 --weight_decay 0.1 --drop_path_rate 0.1 --dropout 0.0",
        "bash scripts/downstream.sh --exp_id downstream_cifar10 --backbone vit --num_gpus 1 --epochs 100 --dataset cifar10 "
        "--weight_decay 0.1 --drop_path_rate 0.1 --model_size small --dropout 0.0 --model_checkpoint checkpoint_path",
        "bash scripts/downstream-only.sh --seed 2022 --exp_id downstream-only_vit_cifar10 --backbone vit --dataset cifar10 "
        "--weight_decay 0.1 --drop_path_rate 0.1 --model_size small --dropout 0.0 --patch_trans "
        "colJitter:0.8-grayScale:0.2",
        "bash scripts/downstream-only.sh --seed 2022 --exp_id downstream-only_swin_cifar10 --backbone swin --dataset "
        "cifar10_224 --batch_size 64 --weight_decay 0.1 --drop_path_rate 0.1 --model_size tiny --dropout 0.0 --patch_trans "
        "colJitter:0.8-grayScale:0.2",
        "bash scripts/downstream-only.sh --seed 2022--exp_id downstream-only_t2t_cifar10 --backbone t2t_vit --dataset "
        "cifar10_224 --batch_size 64 --weight_decay 0.1 --drop_path_rate 0.1 --model_size 14 --dropout 0.0",
        "bash scripts/upstream_MEGApatch.sh --exp_id upstream_megapatch_imagenet100 --backbone vit --model_size small "
        "--dataset imagenet100 --batch_size 256 --weight_decay 0.1 --drop_path_rate 0.1 --dropout 0.0 --side_megapatches 6",
        "bash scripts/downstream.sh --exp_id downstream_imagenet100 --backbone vit --dataset imagenet100 --weight_decay 0.1 "
        "--drop_path_rate 0.1 --model_size small --dropout 0.0 --model_checkpoint checkpoint_path",
        "bash scripts/upstream.sh --dataset cifar10 --mode validation",
        "bash scripts/downstream.sh --dataset cifar10 --mode validation",
    ],
}


# ---- the page ----


@dataclass(frozen=True)
class Command:
    """One of ours: `training/SCRIPT.py ARGV`, in so many processes."""

    script: str
    argv: tuple[str, ...]
    num_processes: int = 1

    def value(self, flag):
        """What comes after a flag."""
        return self.argv[self.argv.index(flag) + 1] if flag in self.argv else None

    def __str__(self):
        return f"{self.script} {shlex.join(self.argv)}"


def lines_of(block):
    """The commands of a fenced block: lines that end with a backslash go on."""
    commands = (" ".join(line.split()) for line in re.sub(r"\\\n", " ", block).splitlines())
    return [command for command in commands if command]


def read_command(text):
    words = shlex.split(text)
    launcher = words[: next(i for i, word in enumerate(words) if word.endswith(".py"))]
    script, argv = words[len(launcher)], tuple(words[len(launcher) + 1 :])
    assert (ROOT / script).is_file() and Path(script).parent.name == "training", text
    assert launcher[0] == "python" or launcher[:2] == ["accelerate", "launch"], text
    processes = launcher[launcher.index("--num_processes") + 1] if "--num_processes" in launcher else 1
    return Command(Path(script).stem, argv, int(processes))


def read_page():
    """Of each method, pairs of their commands and ours."""
    pairs = {}
    for section in re.split(r"^## ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        blocks = re.findall(r"^```(\w+)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
        kinds = [kind for kind, _ in blocks]
        assert kinds == ["console", "bash"] * (len(blocks) // 2), f"theirs and ours take turns: {kinds}"
        texts = [lines_of(block) for _, block in blocks]
        name = section.partition("\n")[0]
        pairs[name] = [(a, [read_command(b) for b in ours]) for a, ours in zip(texts[::2], texts[1::2], strict=True)]
    return pairs


PAIRS = read_page()
OURS = [command for pairs in PAIRS.values() for _, ours in pairs for command in ours]


def test_every_original_command_is_there():
    theirs = {name: [command for commands, _ in pairs for command in commands] for name, pairs in PAIRS.items()}
    assert theirs == ORIGINALS
    assert all(ours for pairs in PAIRS.values() for _, ours in pairs)


# ---- what ours mean ----


# What the authors set, by the folder that our command writes to. Warm-up is in epochs, a batch that of all processes.
COSINE_OF_CLASSIFIERS = {"schedule": "warmup_in_cosine", "schedule_unit": "epoch", "schedule_lag": 1}
MIXED = {"auto_augment": "rand-m9-mstd0.5-inc1", "mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1, "erase": 0.25}
ISL_SMALL = {
    **{"num_train_epochs": 800, "num_rounds": 4, "batch": 128, "learning_rate": 0.03, "weight_decay": 5e-4},
    **{"image_size": 32, "projection_dim": 128, "temperature": 0.1, "bank_momentum": 0.5, "num_negatives": 4096},
    **{"gan_stop": "official", "gan_max_epochs": 200, "gan_learning_rate": 1e-4, "mining_max_passes": 200},
    **{"score_threshold": 0.5, "similarity_threshold": 0.6, "links_per_proxy": 10, "neighbors_per_round": 0.5},
    **{"metric_for_best_model": "knn_top1", "knn_k": 200, "knn_temperature": 0.1, "eval_epochs": 5},
    **{"hard_positive_weight": 0.5, "knn_features": "projected", "lr_scheduler_type": "reduce_lr_on_plateau"},
}
ISL_IMAGENET = ISL_SMALL | {
    **{"num_train_epochs": 400, "batch": 256, "weight_decay": 1e-4, "temperature": 0.07, "knn_temperature": 0.07},
    **{"score_threshold": 0.3, "similarity_threshold": 0.3, "knn_k": 1, "final_knn_k": 200, "eval_epochs": 2},
}
PW_SELF = {
    **{"backbone": "vit-small", "patch_size": 8, "image_size": 224, "num_local_views": 8, "canvas": 256, "batch": 24},
    **{"learning_rate": 5e-4 * 24 / 256, "min_learning_rate": 1e-6, "warmup": 10, "weight_decay": 0.04},
    **{"final_weight_decay": 0.4, "teacher_momentum": 0.996, "num_prototypes": 10000, "frozen_last_layer_epochs": 1},
    **{"max_grad_norm": 3.0, "gradient_clipping": "per_parameter", "drop_path_rate": 0.1, "shared_colors": True},
    **{"geometry": "batch", "warmup_teacher_temperature": 0.04},
}
BOOSTED = PW_SELF | {"num_train_epochs": 300, "teacher_temperature": 0.07, "norm_last_layer": False}
BOOSTED |= {"teacher_temperature_warmup_epochs": 30}
RELVIT = {
    **{"num_train_epochs": 100, "batch": 256, "learning_rate": 5e-4, "min_learning_rate": 1.25e-6, "warmup": 10},
    **{"schedule": "quarter_cosine", "weight_decay": 0.1, "weight_decay_rule": "all", "max_grad_norm": 1.0},
    **{"backbone": "vit-small", "drop_path_rate": 0.1, "dropout": 0.0},
}
UPSTREAM = RELVIT | {"mode": "upstream", "tasks": ["relations", "positions"]}
JOINT = RELVIT | {"mode": "joint", "tasks": ["classification", "relations", "positions"], "seed": 2022}
DOWNSTREAM = {name: value for name, value in RELVIT.items() if name != "dropout"}
SETTINGS = {
    "aps-cifar100": {
        **{"num_train_epochs": 1600, "batch": 512, "learning_rate": 1e-3, "weight_decay": 0.05, "warmup": 20},
        **{"weight_decay_rule": "all", "schedule": "warmup_under_cosine", "schedule_unit": "epoch"},
        **{"backbone": "vit-small", "image_size": 32, "patch_size": 2, "sampling_ratio": 0.25, "num_samplings": 4},
        **{"sampling_power": 3.0, "temperature": 0.1, "flip_aware": False, "projection_dim": 128},
    },
    "aps-classifier": {
        **{"num_train_epochs": 100, "batch": 128, "learning_rate": 2.5e-4, "weight_decay": 0.05, "warmup": 5},
        **{"warmup_learning_rate": 1e-6, "min_learning_rate": 1e-5, "layer_decay": 1.0, "drop_path_rate": 0.0},
        **{"load_best_model_at_end": True, **COSINE_OF_CLASSIFIERS, **MIXED},
    },
    "isl-svhn": ISL_SMALL | {"backbone": "resnet18"},
    "isl-cifar10": ISL_SMALL | {"backbone": "resnet50"},
    "isl-cifar100": ISL_SMALL | {"backbone": "alexnet"},
    "isl-imagenet": ISL_IMAGENET | {"backbone": "resnet18", "image_size": 224},
    "isl-imagenet-alexnet": ISL_IMAGENET | {"backbone": "alexnet", "image_size": 227},
    "patchmix-imagenet": {
        **{"num_train_epochs": 300, "batch": 1024, "learning_rate": 2e-3, "min_learning_rate": 1e-6, "warmup": 10},
        **{"weight_decay": 0.04, "final_weight_decay": 0.4, "group_size": 2, "temperature": 0.2, "use_teacher": True},
        **{"teacher_momentum": 0.996, "num_local_views": 8, "plain_smoothing": 0.1, "mix_smoothing": 0.0},
        **{"backbone": "vit-small", "image_size": 224, "patch_size": 16, "drop_path_rate": 0.1},
    },
    "patchmix-linear": {
        **{"num_train_epochs": 100, "batch": 1024, "learning_rates": [0.02], "augment": True, "select_on": "test"},
        **{"optim_args": "momentum=0.9,nesterov=true", "weight_decay": 0.0, **COSINE_OF_CLASSIFIERS},
    },
    "patchmix-classifier": {
        **{"num_train_epochs": 100, "batch": 1024, "learning_rate": 2e-3, "weight_decay": 0.05, "warmup": 10},
        **{"warmup_learning_rate": 1e-6, "min_learning_rate": 1e-5, "layer_decay": 0.75, "drop_path_rate": 0.1},
        **{"load_best_model_at_end": True, **COSINE_OF_CLASSIFIERS, **MIXED},
    },
    "pw-self": PW_SELF
    | {"num_train_epochs": 100, "teacher_temperature": 0.04, "norm_last_layer": True}
    | {"teacher_temperature_warmup_epochs": 0},
    "pw-self-300-epochs": BOOSTED,
    "pw-self-boosted": BOOSTED,
    "pw-self-linear": {
        **{"num_train_epochs": 100, "batch": 4 * 1500, "learning_rates": [0.001], "num_blocks": 4, "augment": True},
        **{"average_pool": False, "initialization": "normal", "weight_decay": 0.0, "select_on": "test"},
    },
    "upstream_cifar10": UPSTREAM | {"image_size": 32, "patch_size": 4, "mega_patches": None},
    "downstream_cifar10": DOWNSTREAM | {"image_size": 32},
    "downstream_cifar10_converted": DOWNSTREAM | {"image_size": 32},
    "downstream-only_vit_cifar10": JOINT | {"image_size": 32, "patch_size": 4},
    "downstream-only_swin_cifar10": JOINT | {"image_size": 224, "batch": 64, "backbone": "swin-tiny"},
    "downstream-only_t2t_cifar10": JOINT
    | {"image_size": 224, "batch": 64, "backbone": "t2t-vit-14", "drop_path_rate": 0.0},
    "upstream_megapatch_imagenet100": UPSTREAM | {"image_size": 224, "patch_size": 32, "mega_patches": 6},
    "downstream_imagenet100": DOWNSTREAM | {"image_size": 224},
}


def parse(command, monkeypatch):
    """The arguments that a script makes of its command line and recipe."""
    argv = list(command.argv)
    monkeypatch.setattr(sys, "argv", [f"{command.script}.py", *argv])
    if command.script == "pretrain":
        return parse_with_recipe(PretrainArguments, pretrain.RECIPES, argv)
    if command.script == "finetune":
        return finetune.parse()
    if command.script == "linear":
        return linear.parse(argv)
    if command.script == "match":
        return HfArgumentParser(match.MatchArguments).parse_args_into_dataclasses(argv[1:])
    arguments = {
        "convert": convert.ConvertArguments,
        "knn": knn.KNNArguments,
        "retrieval": retrieval.RetrievalArguments,
        "copy_detection": copy_detection.CopyDetectionArguments,
    }
    return HfArgumentParser(arguments[command.script]).parse_args_into_dataclasses(argv)


def setting(parsed, command, name):
    """A value by the name that `SETTINGS` has for it."""
    args, training_args, *_ = parsed
    if name == "batch":
        size = training_args.per_device_train_batch_size
        return size if command.script == "linear" else size * command.num_processes
    if name == "warmup":
        return pytest.approx(training_args.warmup_steps * training_args.num_train_epochs, rel=1e-5)
    if name == "erase":
        return parsed[-1].view.erase
    found = [getattr(group, name) for group in parsed if hasattr(group, name)]
    assert found, f"{command.script}.py has no {name}"
    return found[0]


@pytest.mark.parametrize("command", [command for command in OURS if "--help" not in command.argv], ids=str)
def test_settings(command, monkeypatch):
    parsed = parse(command, monkeypatch)
    if command.script not in ("pretrain", "finetune", "linear"):
        return
    expected = SETTINGS[Path(command.value("--output_dir")).name]
    actual = {name: setting(parsed, command, name) for name in expected}
    assert actual == expected


def test_all_settings_are_compared():
    written = {Path(command.value("--output_dir")).name for command in OURS if "--recipe" in command.argv}
    assert written | {"pw-self-linear"} == set(SETTINGS)


# ---- ours, run ----


TINY_VIT = ["--backbone", "vit-micro", "--image_size", "32", "--patch_size", "8"]
RUN = ["--max_train_samples", "24", "--per_device_train_batch_size", "8", "--dataloader_num_workers", "0"]
RUN += ["--logging_steps", "1"]
KNN = ["--knn_k", "3"]
ROUNDS = ["--num_rounds", "1", "--num_train_epochs", "1", "--num_negatives", "8", "--gan_max_epochs", "1"]
ROUNDS += ["--mining_max_passes", "1", "--eval_epochs", "1", "--knn_train_samples", "4", "--final_knn_k", "3"]
SMALLER = {
    "aps": [*TINY_VIT, "--max_steps", "4"],
    "patchmix": [*TINY_VIT, "--max_steps", "1", "--num_local_views", "1", "--local_size", "16"],
    "pw_self": [*TINY_VIT, "--max_steps", "1", "--num_local_views", "1", "--local_size", "16", "--canvas", "36"],
    "relvit": [*TINY_VIT, "--max_steps", "1", "--eval_strategy", "no", "--save_strategy", "no"],
    "isl": ["--backbone", "resnet-micro", "--image_size", "32", *ROUNDS],
}
SMALLER["relvit"] += ["--load_best_model_at_end", "false", "--knn_query_samples", "8", "--validation_samples", "8"]
# The golden checkpoints, with their numbers of heads where the tensors do not tell them.
CHECKPOINTS = {
    "aps": ("aps/square/checkpoint.pth", 2),
    "isl": ("isl/basic_blocks/checkpoint_official_pickle.pth", None),
    "patchmix": ("patchmix/momentum/checkpoint.pth", 2),
    "pw_self": ("pw_self/even_grid/checkpoint_namespace_args.pth", 2),
    "relvit": ("relvit/vit/checkpoint_pl_class_key.ckpt", 4),
}


def make_images(folder, count=24, side=32):
    """Cuttings of two photos, in a folder for each of them."""
    for name in ("china", "flower"):
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        (folder / name).mkdir(parents=True)
        for i in range(count // 2):
            left, top = 50 * i, 20 * i
            photo.crop((left, top, left + 64, top + 64)).resize((side, side)).save(folder / name / f"{i:02}.png")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """What stands for the data, files and models of the page."""
    folder = tmp_path_factory.mktemp("world")
    make_images(folder / "images" / "train")
    make_images(folder / "images" / "val", count=8)
    make_images(folder / "path" / "to" / "whitening_data", count=8)
    make_images(folder / "path" / "to" / "distractors", count=4)
    make_copydays(folder / "path" / "to" / "copydays")
    make_revisited(folder)
    Image.fromarray(load_sample_image("china.jpg")).save(folder / "test.png")
    save_published(
        make_model().export_encoder(),
        evaluation_processor(16, [0.5] * 3, [0.5] * 3),
        folder / "facebook" / "dino-vits16",
    )
    return folder


@pytest.fixture
def run(world, monkeypatch, tmp_path_factory, capsys):
    """Run a command of the page in the world; what it printed."""
    monkeypatch.chdir(world)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets_cache"))
    monkeypatch.setattr("hf_ssl.evaluation.feature_cache.DEFAULT_FOLDER", tmp_path_factory.mktemp("features"))

    def run(command):
        capsys.readouterr()
        torch.manual_seed(0)
        monkeypatch.setattr(sys, "argv", [f"{command.script}.py", *made_small(command)])
        runpy.run_path(str(ROOT / "training" / f"{command.script}.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def made_small(command):
    """Its arguments, with our few images in the place of the data, and flags that make the run short."""
    argv = list(command.argv)
    for flag, value in (("--dataset", "images"), ("--benchmark", "miniature")):
        if flag in argv:
            argv[argv.index(flag) + 1] = value
    if command.script == "pretrain":
        argv += [*RUN, *KNN, *SMALLER[command.value("--method")]]
        if "mega" in str(command):
            argv += ["--image_size", "64"]
    elif command.script == "finetune":
        argv += [*RUN, "--image_size", "32", "--max_steps", "1"]
    elif command.script == "linear":
        argv += [*RUN, "--max_steps", "1", "--num_blocks", "2", "--per_device_eval_batch_size", "8"]
    elif command.script == "convert":
        checkpoint, heads = CHECKPOINTS[command.value("--method")]
        argv[argv.index("--checkpoint") + 1] = str(GOLDEN / checkpoint)
        argv += ["--verify"] + ([] if heads is None else ["--num_attention_heads", str(heads)])
    elif command.script == "knn":
        argv += ["--k", "3"] + (["--image_size", "16"] if "--image_size" in argv else [])
    elif command.script == "retrieval":
        argv += ["--image_size", "64"]
    elif command.script == "copy_detection":
        argv += ["--image_size", "32", "--other_counts", "true"]
    return argv


def check(command, world, printed):
    """That a run left, or printed, what it is for."""
    if command.script in ("knn", "retrieval", "copy_detection"):
        number = {"knn": "knn_top1", "retrieval": "mAP_medium", "copy_detection": "mAP_strong"}[command.script]
        assert 0 < json.loads(printed)[number] <= 100
        return
    if command.script == "match":
        assert (world / "result.png").is_file() and re.search(r"large view: \[0, \d+", printed)
        return
    folder = world / command.value("--output_dir")
    if command.script == "convert":
        assert "differ by" in printed and (folder / "model.safetensors").is_file() and (folder / "README.md").is_file()
        return
    number = {"pretrain": "knn_top1", "finetune": "finetune_top1", "linear": "linear_top1"}[command.script]
    results = json.loads((folder / "all_results.json").read_text())
    assert 0 <= results[number] <= 100
    if "--do_train" in command.argv:
        assert results[number] == json.loads(printed)[number]
    elif command.script != "linear":
        assert results["num_steps"] >= 1 and (folder / "model.safetensors").is_file()


# Encoders whose sizes are fixed, and large; their settings are compared above, and other tests train them.
LARGE = ("swin", "t2t", "resnet50", "alexnet")


@pytest.mark.parametrize("method", ["PatchMix", *(slow(name) for name in PAIRS if name != "PatchMix")])
def test_ours_run(method, run, world):
    for _, ours in PAIRS[method]:
        for command in ours:
            if "--help" in command.argv:
                with pytest.raises(SystemExit, match="0"):
                    run(command)
            elif not any(name in str(command) for name in LARGE):
                check(command, world, run(command))
