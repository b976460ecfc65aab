"""APS against numbers recorded from the authors' code."""

import copy
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from transformers import AutoModelForImageClassification, ViTForImageClassification

from hf_ssl import APSForPreTraining
from hf_ssl.data import TensorSource
from hf_ssl.models.aps import modeling_aps
from hf_ssl.models.aps.convert_aps import convert, encoder_to_official, load_official, to_official
from hf_ssl.models.classification import (
    ClassificationConfig,
    ClassificationViews,
    ClassificationViewsConfig,
    ClassifierForTraining,
)
from hf_ssl.models.conversion import vit_to_official
from hf_ssl.parameter_groups import parameter_groups
from hf_ssl.schedules import per_epoch, warmup_under_cosine
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import overlap_ratio, sampling_probabilities

from ..device import DEVICE
from ..training.test_recipes_aps import RECIPES
from .cases import Case, assert_close, assert_equal, find_cases
from .finetuning import rates_of_fine_tuning
from .test_views import aps_boxes


pytestmark = pytest.mark.parametrize("case", find_cases("aps"), ids=str)


def load(case: Case, dtype: torch.dtype = torch.float32) -> APSForPreTraining:
    """The checkpoint with the options of the case, which no tensor tells."""
    dims = case.info["dims"]
    model = convert(case.folder / "checkpoint.pth", dims["heads"])
    options = {
        "sampling_ratio": dims["ratio"],
        "num_samplings": dims["nsampling"],
        "sampling_power": dims["power"],
        "temperature": dims["T"],
    }
    changed = APSForPreTraining(type(model.config).from_dict({**model.config.to_dict(), **options}))
    changed.load_state_dict(model.state_dict(), strict=True)
    assert changed.config.num_sampled_patches == dims["n_selected"] == case.expected["idxs1"].shape[-1]
    # The eager attention takes its softmax in float32, in a model of float64 too.
    changed.set_attn_implementation("sdpa")
    return changed.to(DEVICE, dtype).eval()


def inputs_of(case: Case, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The recorded views, and the recorded patches in our order: sampling, view, image, patch."""
    return {
        "pixel_values": torch.stack([case.inputs["view1"], case.inputs["view2"]]).to(dtype),
        "patch_indices": torch.stack([case.expected["idxs1"], case.expected["idxs2"]]).permute(2, 0, 1, 3),
    }


COMPARED = re.compile(
    r"""
    overlap_ratio_map | sampling_probs | ext_flip_aware_(ratio_map|probs)          # also in test_views
    | idxs[12] | choice_uniforms_used | geom_(ratio_map|probs|idxs2)
    | feat_(cls_full|tokens_(full|full_prenorm|sampled[12])) | eval_(z1|z2|p1)
    | (f64\.)?(train_(z1|z2|p1|p2)|loss[12]?) | sim | dist_loss
    | (f64\.)?gradnorm\..+ | grad\..+ | bn_after_forward\..+
    | traj_(losses_f(32|64)|logged_loss_f64) | after_T_steps(_f64)?\..+
    | ft_(cutmix|mixup)_(images|targets) | ft_(logits|loss|step_losses|eval_logits|ema_eval_logits)
    | ft_(gradnorm|after2|ema_after2)\..+ | (ft|pt)_lr_per_epoch\..+
    """,
    re.VERBOSE,
)


def test_everything_recorded_is_compared(case):
    assert [key for key in case.expected if not COMPARED.fullmatch(key)] == []


# ---- the sampling ----


def choose(probabilities: np.ndarray, uniforms: np.ndarray, count: int) -> tuple[list[int], int]:
    """numpy's weighted choice without replacement from a stream of uniforms, and how many of them it took."""
    weights, found, used = probabilities.copy(), [], 0
    while len(found) < count:
        missing = count - len(found)
        weights[found] = 0
        edges = weights.cumsum()
        drawn = (edges / edges[-1]).searchsorted(uniforms[used : used + missing], side="right")
        found += list(dict.fromkeys(drawn.tolist()))
        used += missing
    return found, used


def our_probabilities(case: Case, flip_aware: bool = False) -> Tensor:
    dims = case.info["dims"]
    boxes1, boxes2 = aps_boxes(case)
    ratio = overlap_ratio(boxes1, boxes2, case.expected["idxs1"], (dims["grid"],) * 2, flip_aware)
    return sampling_probabilities(ratio, dims["power"])


def test_selections_for_given_draws(case):
    """From our probabilities and the recorded uniforms, the patches that the authors' code chose."""
    probabilities = our_probabilities(case).cpu().numpy()
    uniforms, count = case.inputs["choice_uniforms"].cpu().numpy(), case.info["dims"]["n_selected"]
    for i, j in np.ndindex(probabilities.shape[:2]):
        found, used = choose(probabilities[i, j], uniforms[i, j], count)
        assert found == case.expected["idxs2"][i, j].tolist()
        assert used == case.expected["choice_uniforms_used"][i, j]


def test_selections_of_numpy(case):
    """The whole draw of an image by numpy itself, from the recorded seeds and our probabilities."""
    dims, probabilities = case.info["dims"], our_probabilities(case).cpu().numpy()
    for i, seed in enumerate(case.inputs["numpy_seeds"].tolist()):
        generator = np.random.RandomState(seed)
        order = np.arange(dims["num_patches"])
        generator.shuffle(order)
        assert order.tolist() == case.inputs["permutations"][i].tolist()
        for j in range(dims["nsampling"]):
            found = generator.choice(dims["num_patches"], dims["n_selected"], replace=False, p=probabilities[i, j])
            assert found.tolist() == case.expected["idxs2"][i, j].tolist()


def test_selections_on_the_larger_grid(case):
    case.need("geom_idxs2")
    side = round(case.expected["geom_ratio_map"].shape[-1] ** 0.5)
    boxes1, boxes2 = case.inputs["geom_boxes"].unbind(1)
    ratio = overlap_ratio(boxes1, boxes2, case.inputs["geom_idxs1"], (side, side))
    probabilities = sampling_probabilities(ratio, case.info["dims"]["of_power"]).cpu().numpy()
    expected = case.expected["geom_idxs2"].tolist()

    def chosen(row: int, seed: int) -> list[int]:
        generator = np.random.RandomState(seed)
        return generator.choice(side**2, len(expected[row]), replace=False, p=probabilities[row]).tolist()

    first = case.info["dims"]["seed"] % 1000 + 500
    assert [chosen(row, first + row) for row in range(len(expected))] == expected


# ---- the networks as they are in the checkpoint ----


@torch.no_grad()
def test_tokens(case):
    backbone, inputs = load(case).student.backbone, inputs_of(case)
    view1, view2 = inputs["pixel_values"]
    seen: list[Tensor] = []
    backbone.layernorm.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    tokens = backbone(view1)
    assert_close(tokens, case.expected["feat_tokens_full"], rel=1e-5)
    assert_close(tokens[:, 0], case.expected["feat_cls_full"], rel=1e-5)
    assert_close(seen[0], case.expected["feat_tokens_full_prenorm"], rel=1e-5)
    for view, number in ((view1, 1), (view2, 2)):
        sampled = backbone(view, patch_indices=inputs["patch_indices"][0, number - 1])
        assert_close(sampled, case.expected[f"feat_tokens_sampled{number}"], rel=1e-5)


@torch.no_grad()
def test_heads(case):
    model = load(case)
    z1, z2 = (model.project(case.expected[f"feat_tokens_sampled{number}"][:, 0]) for number in (1, 2))
    assert_close(z1, case.expected["eval_z1"], rel=1e-5)
    assert_close(z2, case.expected["eval_z2"], rel=1e-5)
    assert_close(model.predictor(z1), case.expected["eval_p1"], rel=1e-5)


@torch.no_grad()
def test_published_encoder(case, tmp_path):
    """The folder that stock transformers loads gives the recorded tokens."""
    from transformers import AutoModel

    load(case).export_encoder().save_pretrained(tmp_path)
    output = AutoModel.from_pretrained(tmp_path).to(DEVICE)(case.inputs["view1"])
    assert_close(output.last_hidden_state, case.expected["feat_tokens_full"], rel=1e-5)
    assert_equal(output.pooler_output, output.last_hidden_state[:, 0])


# ---- a step ----

PRECISIONS = pytest.mark.parametrize(
    ("dtype", "prefix", "rel"),
    [(torch.float32, "", 1e-4), (torch.float64, "f64.", 1e-9)],
    ids=["float32", "float64"],
)


@PRECISIONS
def test_queries_keys_and_losses(case, dtype, prefix, rel):
    output = load(case, dtype).train()(**inputs_of(case, dtype))
    compared = {
        "train_p1": output.query_embeddings["view1"],
        "train_p2": output.query_embeddings["view2"],
        "train_z1": output.key_embeddings["view1"],
        "train_z2": output.key_embeddings["view2"],
        "loss1": output.losses["view1_to_view2"],
        "loss2": output.losses["view2_to_view1"],
        "loss": output.loss,
        "sim": output.metrics["similarity"],
    }
    keys = [name for name in compared if prefix + name in case.expected]
    assert {"loss1", "loss2"} <= set(keys)
    for name in keys:
        assert_close(compared[name].detach(), case.expected[prefix + name], rel=rel, name=name)
    assert output.last_hidden_state.shape[1] == 1 + case.info["dims"]["n_selected"]


@PRECISIONS
def test_gradients(case, dtype, prefix, rel):
    model = load(case, dtype).train()
    model(**inputs_of(case, dtype)).loss.backward()
    table = model.student.backbone.embeddings.position_embeddings.grad
    assert not table[:, 0].any(), "the class token has no position"
    gradients = to_official({name: p.grad for name, p in model.named_parameters()})
    norms = [key for key in case.expected if key.startswith(f"{prefix}gradnorm.")]
    assert norms
    for key in norms:
        gradient = gradients[key.removeprefix(f"{prefix}gradnorm.")]
        assert_close(gradient.double().norm(), case.expected[key], rel=rel, name=key)
    for key in case.expected:
        if key.startswith("grad."):
            assert_close(gradients[key.removeprefix("grad.")], case.expected[key], rel=1e-4, name=key)


def test_batch_statistics(case):
    """Each view on its own, the first one first."""
    model = load(case).train()
    model(**inputs_of(case))
    state = to_official(model.state_dict())
    keys = [key for key in case.expected if key.startswith("bn_after_forward.")]
    assert keys
    for key in keys:
        assert_close(state[key.removeprefix("bn_after_forward.")], case.expected[key], abs=1e-6, name=key)


def test_two_processes(case, monkeypatch):
    """Each process's queries among the keys of both, from what was recorded for one."""
    case.need("dist_loss")
    model, size = load(case), case.info["dims"]["B"] // 2
    both = {name: case.expected[f"train_{name}"] for name in ("p1", "p2", "z1", "z2")}
    keys = torch.stack([F.normalize(both["z1"]), F.normalize(both["z2"])], dim=1)
    for process, expected in enumerate(case.expected["dist_loss"]):
        monkeypatch.setattr(modeling_aps, "rank", lambda process=process: process)
        monkeypatch.setattr(modeling_aps, "all_gather", lambda own: keys)
        rows = slice(process * size, (process + 1) * size)
        queries, own = (
            {view: both[f"{name}{number}"][rows] for number, view in ((1, "view1"), (2, "view2"))} for name in "pz"
        )
        losses, _, similarity = model._contrast(queries, own)
        assert_close(torch.stack([*losses.values(), similarity]), expected, rel=1e-6)


# ---- all steps of a batch, by the trainer ----


def run(case: Case, dtype: torch.dtype, tmp_path) -> SSLTrainer:
    """The trainer as it runs, with the recorded views."""
    dims, model = case.info["dims"], load(case, dtype).train()
    args = SSLTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=DEVICE == "cpu",
        learning_rate=dims["lr"],
        lr_scheduler_type="constant",
        weight_decay=dims["wd"],
        weight_decay_rule="all",
        per_device_train_batch_size=dims["B"],
        num_train_epochs=1,
        logging_steps=1,
        save_strategy="no",
        disable_tqdm=True,
    )
    images = TensorSource(torch.zeros(dims["B"], 3, 4, 4, dtype=torch.uint8))
    trainer = SSLTrainer(model, args, images, views=lambda batch, draws: inputs_of(case, dtype))
    trainer.train()
    assert trainer.state.global_step == dims["nsampling"]
    return trainer


def trajectory(trainer: SSLTrainer) -> Tensor:
    terms = ("loss_view1_to_view2", "loss_view2_to_view1")
    return torch.tensor([[log[term] for term in terms] for log in trainer.state.log_history if "loss" in log])


def test_steps_of_a_batch(case, tmp_path):
    trainer = run(case, torch.float64, tmp_path)
    # The log is kept in float32.
    assert_close(trajectory(trainer), case.expected["traj_losses_f64"].cpu(), rel=1e-6)
    check_sums(case, "after_T_steps_f64", to_official(trainer.model.state_dict()))
    assert not trainer.model.student.backbone.embeddings.position_embeddings[:, 0].any()
    counters = [value for name, value in trainer.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert all(value == case.expected["after_T_steps.bn_num_batches"] for value in counters)


def test_first_step_in_float32(case, tmp_path):
    losses = trajectory(run(case, torch.float32, tmp_path))
    assert_close(losses[0], case.expected["traj_losses_f32"][0].cpu(), rel=1e-4)


def test_losses_of_the_steps(case):
    """Without the trainer, to the last digits: the same batch, one sampling after the other."""
    dims, model, inputs = case.info["dims"], load(case, torch.float64).train(), inputs_of(case, torch.float64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=dims["lr"], weight_decay=dims["wd"])
    for j, expected in enumerate(case.expected["traj_losses_f64"]):
        output = model(**inputs, sampling=j)
        assert_close(torch.stack(list(output.losses.values())).detach(), expected, rel=1e-9)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    assert_close(output.loss.detach(), case.expected["traj_logged_loss_f64"], rel=1e-9)


def check_sums(case: Case, group: str, weights: dict[str, Tensor], rel: float = 1e-9) -> None:
    """Sum and norm of a weight, or a whole buffer; relative to the norm, as a sum may cancel."""
    keys = [key for key in case.expected if key.startswith(f"{group}.")]
    assert keys
    for key in keys:
        weight, expected = weights[key.removeprefix(f"{group}.")].double(), case.expected[key]
        if "running_" not in key:
            weight = torch.stack([weight.sum(), weight.norm()])
        assert_close(weight, expected, rel=rel, name=key)


# ---- schedules ----


def test_schedules(case):
    """Per epoch, of a run of some steps in each."""
    case.need("pt_lr_per_epoch")
    steps_per_epoch = 3
    for size, peak in (("tiny", 2e-3), ("small", 1e-3), ("base", 1e-3)):
        expected = case.expected[f"pt_lr_per_epoch.{size}"].cpu()
        schedule = per_epoch(warmup_under_cosine(peak, 0.0, len(expected), 20), steps_per_epoch)
        actual = torch.tensor([schedule(step) for step in range(steps_per_epoch * len(expected))], dtype=torch.float64)
        assert_close(actual, expected.repeat_interleave(steps_per_epoch), rel=1e-12)


def test_schedules_of_fine_tuning(case, tmp_path):
    """An epoch behind: the authors tell the schedule which epoch is finished, so the first value is used twice."""
    case.need("ft_lr_per_epoch")
    for size in ("tiny", "small", "base"):
        recipe = finetune_recipe(size)
        names = (
            "schedule",
            "schedule_unit",
            "schedule_lag",
            "warmup_steps",
            "warmup_learning_rate",
            "min_learning_rate",
        )
        settings = {name: recipe[name] for name in ("learning_rate", *names)}
        encoder = load(case).config.backbone_config
        actual = rates_of_fine_tuning(encoder, tmp_path, recipe["num_train_epochs"], **settings)
        assert_close(actual, case.expected[f"ft_lr_per_epoch.{size}"].cpu()[:, None].expand(-1, 2), rel=1e-12)


# ---- fine-tuning ----


def finetune_recipe(size: str = "small") -> dict:
    name = "cifar10" if size == "small" else f"cifar10_{size}"
    return yaml.safe_load((RECIPES / "aps" / "finetune" / f"{name}.yaml").read_text())


def classifier_of(case: Case, folder: Path) -> ClassifierForTraining:
    """What fine-tuning begins with: the published encoder of the checkpoint, and the recorded layer on its class token."""
    encoder, dims = load(case).export_encoder(), case.info["dims"]
    encoder.save_pretrained(folder)
    smoothing = finetune_recipe()["label_smoothing"]
    config = ClassificationConfig(
        backbone_config=encoder.config, num_labels=dims["classes"], label_smoothing=smoothing, ema_decay=dims["ema"]
    )
    model = ClassifierForTraining(config)
    model.load_encoder(folder)
    head = {"weight": case.inputs["ft_fc_weight"], "bias": case.inputs["ft_fc_bias"]}
    for classifier in (model, model.teacher):
        classifier.head.load_state_dict(head)
    return model.to(DEVICE).train()


def official(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a classifier under the authors' names."""
    encoder = {name.removeprefix("student."): t for name, t in state.items() if name.startswith("student.")}
    head = {name.replace("classifier", "fc"): t for name, t in state.items() if name.startswith("classifier.")}
    return encoder_to_official(vit_to_official(encoder)) | head


def mixed(case: Case, kind: str, monkeypatch) -> tuple[Tensor, Tensor]:
    """What the views of the recipe mix, with the recorded draws."""
    case.need(f"ft_{kind}_images")
    names = ("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "mixup_mode", "image_mean", "image_std")
    views_config = ClassificationViewsConfig(**{name: finetune_recipe()[name] for name in names})
    config = ClassificationConfig(
        backbone_config=load(case).config.backbone_config, num_labels=case.info["dims"]["classes"]
    )
    mixup = ClassificationViews(views_config, config)._mixup
    weight = case.inputs[f"ft_{kind}_lambda"].item()
    monkeypatch.setattr(mixup, "_params_per_batch", lambda: (weight, kind == "cutmix"))
    box = case.inputs["ft_cutmix_box"].tolist()
    monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *args, **kwargs: (box, weight))
    images, labels = case.inputs["ft_images"].clone(), case.inputs["ft_labels"]
    return mixup(images, labels)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixing_of_fine_tuning(case, kind, monkeypatch):
    """The authors smooth the targets, and we the loss."""
    images, targets = mixed(case, kind, monkeypatch)
    smoothing = finetune_recipe()["label_smoothing"]
    assert_close(images, case.expected[f"ft_{kind}_images"], rel=1e-6)
    smoothed = (1 - smoothing) * targets + smoothing / targets.shape[1]
    assert_close(smoothed, case.expected[f"ft_{kind}_targets"], rel=1e-6)


def decay_of(case: Case) -> float:
    """Of the parameters that decay; which ones do is told by the recipe."""
    return max(group["weight_decay"] for group in case.info["finetune_param_groups"])


def test_groups_of_fine_tuning(case, tmp_path):
    case.need("ft_loss")
    model = classifier_of(case, tmp_path)
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    groups = parameter_groups(model, 1.0, decay_of(case), finetune_recipe()["weight_decay_rule"])
    decays = {p: group["weight_decay"] for group in groups for p in group["params"]}
    state = {name: torch.full_like(p.detach(), decays[p]) for name, p in trained.items()}
    actual = {name: tensor.unique().item() for name, tensor in official(state).items()}
    expected = {name: group["weight_decay"] for group in case.info["finetune_param_groups"] for name in group["names"]}
    assert actual == {name: pytest.approx(decay) for name, decay in expected.items()}


def test_steps_of_fine_tuning(case, tmp_path, monkeypatch):
    """Two steps on mixed images: the loss, its gradient, the weights and their moving average."""
    case.need("ft_loss")
    model, recipe = classifier_of(case, tmp_path), finetune_recipe()
    groups = parameter_groups(model, case.info["dims"]["ft_lr"], decay_of(case), recipe["weight_decay_rule"])
    optimizer = torch.optim.AdamW(groups)
    for number, (kind, expected) in enumerate(zip(("mixup", "cutmix"), case.expected["ft_step_losses"], strict=True)):
        output = model(*mixed(case, kind, monkeypatch))
        assert_close(output.loss.detach(), expected, rel=1e-5)
        optimizer.zero_grad()
        output.loss.backward()
        if number == 0:
            assert_close(output.loss.detach(), case.expected["ft_loss"], rel=1e-5)
            assert_close(output.logits["classification"].detach(), case.expected["ft_logits"], rel=1e-5)
            gradients = official({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
            for key in case.expected:
                if key.startswith("ft_gradnorm."):
                    norm = gradients[key.removeprefix("ft_gradnorm.")].norm()
                    assert_close(norm, case.expected[key], rel=1e-5, name=key)
        optimizer.step()
        model.on_optimizer_step({})
    for classifier, which in ((model, ""), (model.teacher, "ema_")):
        check_sums(case, f"ft_{which}after2", official(classifier.state_dict()), rel=1e-6)
        logits = classifier.eval()(case.inputs["ft_images"]).logits["classification"]
        assert_close(logits.detach(), case.expected[f"ft_{which}eval_logits"], rel=1e-5)


@pytest.mark.parametrize("name", ["finetuned_state_dict.pth", "finetuned_module_OFFICIAL_PICKLE.pth"])
@torch.no_grad()
def test_converted_classifier(case, name, tmp_path):
    """What fine-tuning left, as a folder that stock transformers loads."""
    case.need("ft_eval_logits")
    path = case.folder / name
    heads = load_official(path).num_attention_heads
    assert heads == (case.info["dims"]["heads"] if "module" in name else None)
    model = convert(path, None if heads else case.info["dims"]["heads"])
    assert type(model) is ViTForImageClassification
    assert model.config.layer_norm_eps == case.info["dims"]["layer_norm_eps"]
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    logits = loaded.to(DEVICE)(case.inputs["ft_images"]).logits
    assert_close(logits, case.expected["ft_eval_logits"], rel=1e-5)
    official = copy.deepcopy(model).vit.embeddings.position_embeddings[:, 0]
    assert not official.any()
