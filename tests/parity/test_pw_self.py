"""PW-Self's pretraining against numbers recorded from the authors' code; its evaluations have files of their own."""

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainerCallback

from hf_ssl.backbones.vit import interpolate_positions
from hf_ssl.clipping import clip_per_parameter_
from hf_ssl.data import TensorSource, originals_of
from hf_ssl.evaluation import (
    CopyBlock,
    FeatureSpec,
    LoadedEncoder,
    ProbeMonitor,
    Whitening,
    attention_maps,
    attention_masks,
    average_precision,
    average_precision_of_ranks,
    copy_detection,
    grid_tokens,
    instance_similarity,
    knn_votes,
    mean_average_precision,
    means_of_queries,
    mutual_nearest_patches,
    nearest_neighbors,
    ranks_of,
)
from hf_ssl.hub import evaluation_processor
from hf_ssl.models.linear_probe import LinearProbeConfig, LinearProbesForTraining
from hf_ssl.models.official_files import load_checkpoint
from hf_ssl.models.pw_self import PWSelfConfig, PWSelfForPreTraining, match_views
from hf_ssl.models.pw_self.convert_pw_self import convert, from_official, load_official, to_official
from hf_ssl.parameter_groups import parameter_groups
from hf_ssl.schedules import cosine, warmup_cosine
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments

from ..device import DEVICE
from .cases import Case, assert_close, assert_equal, find_cases


pytestmark = pytest.mark.parametrize("case", find_cases("pw_self"), ids=str)


def load(case: Case) -> PWSelfForPreTraining:
    model = convert(case.folder / "checkpoint.pth", case.info["config"]["num_heads"])
    model.set_attn_implementation("eager")
    return model.to(DEVICE).eval()


def grids(case: Case) -> tuple[tuple[int, int], tuple[int, int]]:
    config = case.info["config"]
    large, small = (config[f"{name}_size"] // config["patch_size"] for name in ("global", "local"))
    return (large, large), (small, small)


def inputs_of(case: Case, iteration: int) -> dict[str, Tensor]:
    """The recorded views, and the matches of their boxes."""
    boxes, flips = case.inputs[f"it{iteration}.crop_boxes"], case.inputs[f"it{iteration}.crop_flips"]
    boxes = torch.cat([boxes.long(), flips.long()[:, None]], dim=1)[None]
    inputs = {"pixel_values": case.inputs[f"it{iteration}.global_crops"]}
    inputs["global_matches"], local_matches = match_views(boxes, *grids(case), strict=True)
    if case.info["config"]["n_local"]:
        inputs |= {
            "local_pixel_values": case.inputs[f"it{iteration}.local_crops"],
            "local_matches": local_matches,
        }
    return inputs


def num_iterations(case: Case) -> int:
    return len(case.expected["trajectory"])


COMPARED = re.compile(
    r"""
    (student|teacher)\.tokens\..+ | teacher\.(attention_last\.square|pos_embed\.local)
    | it0\.(teacher_logits|student_(global|local)_logits|center_before)
    | it\d+\.(corr\..+|pair_terms|loss|center_after|lr_wd_momentum|teacher_temp)
    | it\d+\.(grad_norm|grad_norm_clipped|student_after|teacher_after)\..+
    | fresh\.(loss|grad_norm\..+|(student|teacher)_after\..+|(student|teacher)_after_full\.pos_embed)
    | ema_m[\d.]+\..+ | final\..+ | trajectory | schedule\.(lr|wd|momentum|teacher_temp) | knn\.k\d+
    | linear\.(features\.n\d+(_avgpool)?|train_loss_mean|val|(weight|bias)_after|lr_after_epoch)
    | retrieval\.(ranks|(single|multi)_scale|(easy|medium|hard)\.(ap|map|p_per_query|mp_at_[\d_]+))
    | copydetect\.features(_rect)?
    | copydays\.(raw|whiten|whiten_centered_cov)\.(similarity|top\d+|map_.+)
    | mutual_nn\.(pairs|similarity) | visualize\.(attention|mask_[\d.]+)
    """,
    re.VERBOSE,
)
# Evaluations, which hf_ssl does not have yet.
EVALUATIONS = ("video.",)


def test_everything_recorded_of_the_pretraining_is_compared(case):
    assert [k for k in case.expected if not COMPARED.fullmatch(k) and not k.startswith(EVALUATIONS)] == []


# ---- the networks as they are in the checkpoint ----


@torch.no_grad()
def test_tokens(case):
    model = load(case)
    images = {name.removeprefix("eval."): x for name, x in case.inputs.items() if name.startswith("eval.")}
    views = {name: case.inputs.get(f"it0.{name}_crops") for name in ("local", "global")}
    images |= {name: x[0] for name, x in views.items() if x is not None and len(x)}
    compared = 0
    for name, pixel_values in images.items():
        for which, branch in (("teacher", model.teacher), ("student", model.student)):
            if f"{which}.tokens.{name}" in case.expected:
                tokens = branch.backbone(pixel_values)
                assert_close(tokens, case.expected[f"{which}.tokens.{name}"], rel=1e-5, name=name)
                compared += 1
    assert compared == sum(".tokens." in key for key in case.expected)


@torch.no_grad()
def test_positions_and_attention(case):
    """Of the teacher: positions at the size of small views, and the last layer of what is published."""
    model = load(case)
    table = model.teacher.backbone.embeddings.position_embeddings
    if case.has("teacher.pos_embed.local"):
        small = interpolate_positions(table, grids(case)[1], model.config.position_interpolation)
        assert_close(small, case.expected["teacher.pos_embed.local"], rel=1e-5)
    encoder = model.export_encoder()
    encoder.set_attn_implementation("eager")
    attentions = encoder(case.inputs["eval.square"], output_attentions=True).attentions
    assert_close(attentions[-1], case.expected["teacher.attention_last.square"], rel=1e-5)


def teacher_of(case: Case) -> LoadedEncoder:
    """With the positions of the training at other image sizes."""
    model = load(case)
    processor = evaluation_processor(case.info["config"]["global_size"], [0.5] * 3, [0.5] * 3)
    return LoadedEncoder(
        model.export_encoder(), processor, "teacher", position_interpolation=model.config.position_interpolation
    )


def test_attention_maps_and_masks(case):
    """Of the class token, in the first image; masks by the share of the attention that is in their name."""
    case.need("visualize.")
    attention = attention_maps(teacher_of(case), case.inputs["eval.square"])[0]
    assert_close(attention, case.expected["visualize.attention"], rel=1e-5)
    names = [name for name in case.expected if name.startswith("visualize.mask_")]
    assert names
    for name in names:
        mask = attention_masks(attention, float(name.removeprefix("visualize.mask_")))
        assert_equal(mask, case.expected[name].bool(), name)


def test_mutual_nearest_patches(case):
    """Of two images of different sizes; nearly equal similarities may have changed places."""
    case.need("mutual_nn.")
    encoder = teacher_of(case)
    tokens = [grid_tokens(encoder, case.inputs[f"eval.{name}"])[0].flatten(0, 1) for name in ("square", "large")]
    pairs, similarities = mutual_nearest_patches(*tokens)
    expected = case.expected["mutual_nn.pairs"]
    assert_equal(pairs[pairs[:, 0].argsort()], expected[expected[:, 0].argsort()])
    assert_close(similarities, case.expected["mutual_nn.similarity"], rel=1e-5)


def test_descriptors(case):
    """Of photos that patches do not fill, at one and at three scales, and for copy detection."""
    encoder = teacher_of(case)
    scales = {"single_scale": (1.0,), "multi_scale": (1.0, 2**-0.5, 0.5)}
    specs = {f"retrieval.{name}": FeatureSpec("class_token", scales=some) for name, some in scales.items()}
    wanted = {name: ("eval.multiscale", spec) for name, spec in specs.items()}
    copies = FeatureSpec("class_token", gem=4.0)
    wanted |= {"copydetect.features": ("eval.square", copies), "copydetect.features_rect": ("eval.rect", copies)}
    for name, (images, spec) in wanted.items():
        if case.has(name):
            (features,) = encoder.features(case.inputs[images], [spec])
            assert_close(features, case.expected[name], rel=1e-5, name=name)


def test_features_of_the_last_blocks(case):
    """Of the teacher, as its folder is evaluated."""
    case.need("linear.features.")
    model = load(case)
    processor = evaluation_processor(case.info["config"]["global_size"], [0.5] * 3, [0.5] * 3)
    encoder = LoadedEncoder(model.export_encoder(), processor, "teacher")
    names = [name for name in case.expected if name.startswith("linear.features.")]
    specs = [
        FeatureSpec("class_token", int(re.search(r"\.n(\d+)", name)[1]), name.endswith("_avgpool")) for name in names
    ]
    for name, rows in zip(names, encoder.features(case.inputs["eval.square"], specs), strict=True):
        assert_close(rows, case.expected[name], rel=1e-5, name=name)


def test_linear_probe(case, tmp_path):
    """An epoch of the trainer: both batches, and then the learning rate of the next one."""
    case.need("linear.weight_after")
    protocol, inputs = case.info["protocol"]["linear"], case.inputs
    processor = evaluation_processor(case.info["config"]["global_size"], [0.5] * 3, [0.5] * 3)
    encoder = LoadedEncoder(load(case).export_encoder(), processor, "teacher")
    spec = FeatureSpec("class_token", protocol["n"], protocol["avgpool"])
    features = [encoder.features(pixel_values, [spec])[0] for pixel_values in inputs["linear.images"]]
    batches = list(zip(features, inputs["linear.labels"], strict=True))
    to_train = iter(batches)
    losses = []

    def views(*_: object) -> dict[str, Tensor]:
        return dict(zip(("features", "labels"), next(to_train), strict=True))

    size = inputs["linear.weight"].shape
    config = LinearProbeConfig(learning_rates=[protocol["lr"]], num_labels=size[0], feature_size=size[1])
    probes = LinearProbesForTraining(config)
    probes.load_state_dict({name: inputs[f"linear.{name}"][None] for name in ("weight", "bias")})
    hook = probes.register_forward_hook(lambda _, __, output: losses.append(output.losses["classification"].detach()))
    args = SSLTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=DEVICE == "cpu",
        optim="sgd",
        optim_args=f"momentum={protocol['momentum']}",
        weight_decay=protocol["weight_decay"],
        learning_rate=1.0,
        schedule="warmup_in_cosine",
        schedule_unit="epoch",
        num_train_epochs=protocol["t_max"],
        per_device_train_batch_size=len(batches[0][1]),
        save_strategy="no",
        disable_tqdm=True,
    )
    count = sum(len(labels) for _, labels in batches)
    source = TensorSource(torch.zeros(count, 3, 4, 4, dtype=torch.uint8))
    trainer = SSLTrainer(probes, args, source, views, callbacks=[StopAfterEpoch()])
    trainer.train()
    hook.remove()
    assert_close(torch.stack(losses).mean(), case.expected["linear.train_loss_mean"], rel=1e-5)
    assert_close(probes.weight[0].detach(), case.expected["linear.weight_after"], rel=1e-5)
    assert_close(probes.bias[0].detach(), case.expected["linear.bias_after"], rel=1e-5)
    next_rate = torch.tensor(trainer.lr_scheduler.get_last_lr()[0], dtype=torch.float64) * protocol["lr"]
    assert_close(next_rate, case.expected["linear.lr_after_epoch"].cpu(), rel=1e-12)
    loss = torch.stack([probes(*batch).loss.detach() / protocol["lr"] for batch in batches]).mean()
    measured = ProbeMonitor({"test": (torch.cat(features), inputs["linear.labels"].flatten())}, 3)(probes)
    top1, top5 = (measured[f"test_top{k}_lr{protocol['lr']:g}"] for k in (1, 5))
    found = torch.tensor([loss.item(), top1, top5], dtype=torch.float64)
    expected = case.expected["linear.val"].cpu()
    assert_close(found[0], expected[0], rel=1e-5)
    assert_close(found[1:], expected[1:], rel=1e-12)


class StopAfterEpoch(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = True


def test_knn(case):
    """Votes; the authors rank classes without a vote too, the lower number first (ours never count)."""
    inputs, protocol = case.inputs, case.info["protocol"]["knn"]
    labels = inputs["knn.test_labels"]
    votes = knn_votes(
        inputs["knn.test_features"],
        inputs["knn.train_features"],
        inputs["knn.train_labels"],
        protocol["num_classes"],
        k=protocol["ks"],
        temperature=protocol["temperature"],
    )
    for k, of_classes in zip(protocol["ks"], votes, strict=True):
        hits = of_classes.sort(dim=1, descending=True, stable=True).indices == labels[:, None]
        found = [100 * hits[:, :best].any(1).double().mean() for best in (1, min(5, k))]
        assert_close(torch.stack(found), case.expected[f"knn.k{k}"], abs=1e-4, name=f"k={k}")


# Positives and junk of the revisited Oxford and Paris benchmarks.
SETTINGS = {
    "easy": (("easy",), ("junk", "hard")),
    "medium": (("easy", "hard"), ("junk",)),
    "hard": (("hard",), ("junk", "easy")),
}


def of_setting(truth: list[dict[str, list[int]]], setting: str) -> tuple[list[list[int]], list[list[int]]]:
    """Positives and junk of each query."""
    positives, junk = ([[n for name in names for n in query[name]] for query in truth] for names in SETTINGS[setting])
    return positives, junk


def test_ranking(case):
    case.need("retrieval.ranks")
    rankings = case.expected["retrieval.ranks"].T
    queries, database = (case.inputs[f"retrieval.{name}_features"] for name in ("query", "db"))
    assert_equal(nearest_neighbors(queries, database, len(database)), rankings, "rankings")
    everything = ranks_of(queries, database, [range(len(database))] * len(queries))
    assert_equal(torch.stack(everything).argsort(1), rankings, "ranks")


@pytest.mark.parametrize("setting", SETTINGS)
def test_retrieval(case, setting):
    """From features, and from the recorded rankings: of each query, and the means."""
    case.need(f"retrieval.{setting}.")
    ks, prefix = case.info["protocol"]["retrieval"]["ks"], f"retrieval.{setting}."
    queries, database = (case.inputs[f"retrieval.{name}_features"] for name in ("query", "db"))
    positives, junk = of_setting(case.info["retrieval_gnd"], setting)
    ranks = [ranks_of(queries, database, wanted) for wanted in (positives, junk)]
    rankings = case.expected["retrieval.ranks"].T
    for average, precision in (
        average_precision_of_ranks(*ranks, k=ks),
        average_precision(rankings, positives, junk, k=ks),
    ):
        for actual, name in ((average, "ap"), (precision, "p_per_query")):
            expected = case.expected[f"{prefix}{name}"]
            assert actual.dtype == expected.dtype == torch.float64
            torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12, equal_nan=True)
        means = means_of_queries(average, precision, ks)
        assert means == pytest.approx(mean_average_precision(rankings, positives, junk, k=ks), rel=1e-12)
        assert list(means) == ["mAP", *(f"mP@{k}" for k in ks)]
        names = ["map", "mp_at_" + "_".join(map(str, ks))]
        expected = 100 * torch.cat([case.expected[f"{prefix}{name}"].flatten().cpu() for name in names])
        assert_close(torch.tensor(list(means.values()), dtype=torch.float64), expected, rel=1e-12)


@pytest.mark.parametrize("setting", SETTINGS)
def test_retrieval_by_hand(case, setting):
    if "retrieval_hand_case" not in case.info:
        pytest.skip(f"{case} has no case by hand")
    hand = case.info["retrieval_hand_case"]
    positives, junk = of_setting([hand["gnd"]], setting)
    expected = hand["expected"][setting]
    (name,) = (name for name in expected if name.startswith("mp_at_"))
    ks = [int(k) for k in name.removeprefix("mp_at_").split("_")]
    average, precision = average_precision(torch.tensor([hand["ranking"]]), positives, junk, k=ks)
    assert average.item() == pytest.approx(expected["map"], rel=1e-12)
    assert precision[0].tolist() == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("variant", ["raw", "whiten", "whiten_centered_cov"])
def test_copy_detection(case, variant):
    """Where recorded similarities are nearly equal, images may have changed places."""
    prefix, inputs = f"copydays.{variant}.", case.inputs
    case.need(prefix)
    files, num_neighbors = case.info["copydays_files"], case.info["protocol"]["copydays"]["topk"]
    names = {block: files[block.replace("/", "")] for block in files["blocks"]}
    originals = {block: originals_of(block, copies, names["original"]) for block, copies in names.items()}
    parts = inputs["copydays.queries"].split([len(rows) for rows in originals.values()])
    blocks = {block: CopyBlock(part, originals[block]) for block, part in zip(originals, parts, strict=True)}
    whitening = None
    if variant != "raw":
        centered = variant == "whiten_centered_cov"
        whitening = Whitening.fit(inputs["copydays.whitening"], center_covariance=centered)
    results = copy_detection(inputs["copydays.database"], blocks, whitening=whitening, k=num_neighbors)

    features = [inputs[f"copydays.{name}"] for name in ("queries", "database")]
    similarities = instance_similarity(*(whitening.apply(rows) if whitening else rows for rows in features))
    recorded = case.expected[f"{prefix}similarity"]
    assert_close(similarities, recorded, rel=1e-4 if whitening else 1e-5)
    error = (similarities - recorded).abs().max().item()
    neighbors = torch.cat([result.neighbors for result in results.values()])
    assert_close(
        recorded.gather(1, neighbors), recorded.gather(1, case.expected[f"{prefix}top{num_neighbors}"]), abs=2 * error
    )
    means = torch.tensor([result.mean_average_precision for result in results.values()], dtype=torch.float64)
    name = "map_" + "_".join(block.replace("/", "") for block in originals)
    assert_close(means, 100 * case.expected[f"{prefix}{name}"].cpu(), rel=1e-12)


@torch.no_grad()
def test_scores(case):
    model = load(case)
    for key, branch, name in (
        ("teacher_logits", model.teacher, "global"),
        ("student_global_logits", model.student, "global"),
        ("student_local_logits", model.student, "local"),
    ):
        if not case.has(f"it0.{key}"):
            assert name == "local" and not case.info["config"]["n_local"]
            continue
        views = case.inputs[f"it0.{name}_crops"].flatten(0, 1)
        assert_close(branch.head(branch.backbone(views)), case.expected[f"it0.{key}"], rel=1e-5, name=key)
    assert_equal(model.center[None], case.expected["it0.center_before"])


def test_file_with_a_namespace(case):
    """As the authors write it; of the case, cut down to the teacher."""
    path = case.folder / "checkpoint_namespace_args.pth"
    checkpoint = load_official(path)
    assert checkpoint.arguments["out_dim"] == case.info["config"]["out_dim"]
    model = convert(path, case.info["config"]["num_heads"])
    assert model.config.num_local_views == case.info["config"]["n_local"]
    expected = load(case).state_dict()
    for name, tensor in model.state_dict().items():
        assert_equal(tensor, expected[name.replace("student.", "teacher.")].cpu(), name)


# ---- the steps ----


def recorded_matches(case: Case, iteration: int, teacher: int, student: int) -> Tensor:
    prefix = f"it{iteration}.corr.t{teacher}.s{student}."
    return torch.stack([case.expected[f"{prefix}{name}_idx"] for name in ("teacher", "student")], dim=1)


def test_matches(case):
    for iteration in range(num_iterations(case)):
        inputs = inputs_of(case, iteration)
        for teacher in (0, 1):
            for student in range(2 + case.info["config"]["n_local"]):
                if student == teacher:
                    continue
                if student < 2:
                    matches = inputs["global_matches"][teacher, 0]
                else:
                    matches = inputs["local_matches"][teacher, student - 2, 0]
                expected = recorded_matches(case, iteration, teacher, student)
                assert expected[0].tolist() == [0, 0]  # class tokens
                assert_equal(matches[matches[:, 0] >= 0] + 1, expected[1:].long())


def make_optimizer(case: Case, model: PWSelfForPreTraining, fresh: bool) -> torch.optim.Optimizer:
    """AdamW, with the checkpoint's state: first all parameters that decay, then all others, in the order of the model."""
    adamw = case.info["adamw"]
    groups = parameter_groups(model, 1.0, 1.0)
    optimizer = torch.optim.AdamW(groups, betas=adamw["betas"], eps=adamw["eps"])
    if fresh:
        return optimizer
    saved = load_checkpoint(case.folder / "checkpoint.pth")["optimizer"]["state"]
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    official = {
        n: t for n, t in load_official(case.folder / "checkpoint.pth").tensors.items() if n.startswith("student.")
    }
    frozen = {f"student.{name}" for name in case.info["frozen_params"]}
    names = [name for name in official if name not in frozen]
    names.sort(key=lambda name: official[name].ndim < 2 or name.endswith(".bias"))  # stable
    for key in ("step", "exp_avg", "exp_avg_sq"):
        values = {name: saved[i][key].expand_as(official[name]) for i, name in enumerate(names) if i in saved}
        for name, value in from_official(values).items():
            assert name in trained
            value = value.flatten()[0] if key == "step" else value
            optimizer.state[model.get_parameter(name)][key] = value.clone().to(DEVICE if key != "step" else "cpu")
    return optimizer


def train_step(case: Case, model: PWSelfForPreTraining, optimizer: torch.optim.Optimizer, iteration: int) -> dict:
    """What the trainer does in a step, with the scheduled values that were recorded."""
    rate, decay, momentum = case.expected[f"it{iteration}.lr_wd_momentum"].tolist()
    config = case.info["config"]
    epoch = case.info["protocol"]["start_epoch"] + iteration // config["iters_per_epoch"]
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = rate, decay if group["weight_decay"] else 0.0
    values = {"momentum": momentum, "last_layer_frozen": float(epoch < config["freeze_last_layer"])}
    model.on_step_begin(values)
    temperature = case.expected[f"it{iteration}.teacher_temp"].item()
    output = model(**inputs_of(case, iteration), teacher_temperature=temperature)
    optimizer.zero_grad()
    output.loss.backward()
    parameters = {name: p for name, p in model.named_parameters() if p.grad is not None}
    before = {name: p.grad.clone() for name, p in parameters.items()}
    clip_per_parameter_(parameters.items(), config["clip"])
    after = {name: p.grad.clone() for name, p in parameters.items()}
    model.on_gradients(values)
    optimizer.step()
    model.on_optimizer_step(values)
    return {"output": output, "before": to_official(before), "after": to_official(after)}


def check_sums(case: Case, prefix: str, weights: dict[str, Tensor], branch: str) -> None:
    keys = [key for key in case.expected if key.startswith(prefix)]
    assert keys
    for key in keys:
        weight = weights[f"{branch}.{key.removeprefix(prefix)}"].double()
        assert_close(torch.stack([weight.sum(), weight.norm()]), case.expected[key], rel=1e-5, name=key)


def test_trajectory(case):
    """All iterations from the checkpoint and the state of its optimizer."""
    model = load(case).train()
    optimizer = make_optimizer(case, model, fresh=False)
    for iteration in range(num_iterations(case)):
        result, prefix = train_step(case, model, optimizer, iteration), f"it{iteration}."
        output, terms = result["output"], case.expected[f"{prefix}pair_terms"]
        assert_close(output.loss.detach(), case.expected[f"{prefix}loss"], rel=1e-5)
        assert_close(output.loss.detach(), case.expected["trajectory"][iteration, 2], rel=1e-5)
        assert_close(output.pair_entropies, terms[:, 4:], rel=1e-5)
        assert_equal(output.num_matches + 1, terms[:, 2])
        assert_close(sum(output.losses.values()), output.loss.detach(), rel=1e-5)
        for group, gradients in (("grad_norm", result["before"]), ("grad_norm_clipped", result["after"])):
            keys = [key for key in case.expected if key.startswith(f"{prefix}{group}.")]
            assert keys
            for key in keys:
                norm = gradients[f"student.{key.removeprefix(f'{prefix}{group}.')}"].norm()
                assert_close(norm, case.expected[key], rel=1e-5, name=key)
        assert_close(model.center[None], case.expected[f"{prefix}center_after"], rel=1e-5)
        state = to_official(model.state_dict())
        for branch in ("student", "teacher"):
            check_sums(case, f"{prefix}{branch}_after.", state, branch)
    qkv = state["student.backbone.blocks.0.attn.qkv.weight"]
    assert_close(qkv, case.expected["final.student.qkv0"], rel=1e-5)
    assert_close(state["teacher.backbone.cls_token"], case.expected["final.teacher.cls_token"], rel=1e-5)
    last_layer = state["teacher.head.last_layer.weight_v"]
    assert_close(last_layer, case.expected["final.teacher.last_layer_weight_v"], rel=1e-5)


def test_first_step_of_a_new_optimizer(case):
    case.need("fresh.")
    model = load(case).train()
    result = train_step(case, model, make_optimizer(case, model, fresh=True), 0)
    assert_close(result["output"].loss.detach(), case.expected["fresh.loss"], rel=1e-5)
    qkv = result["before"]["student.backbone.blocks.0.attn.qkv.weight"].chunk(3)
    for part, gradient in zip("qkv", qkv, strict=True):
        key = f"fresh.grad_norm.blocks.0.{part}_proj.weight"
        assert_close(gradient.norm(), case.expected[key], rel=1e-5, name=key)
    state = to_official(model.state_dict())
    for branch in ("student", "teacher"):
        check_sums(case, f"fresh.{branch}_after.", state, branch)
        table = state[f"{branch}.backbone.pos_embed"]
        assert_close(table, case.expected[f"fresh.{branch}_after_full.pos_embed"], rel=1e-5)


def test_teacher_moves(case):
    model = load(case)
    model.on_step_begin({})
    model._num_micro_batches = 1
    model.on_optimizer_step({"momentum": case.info["protocol"]["ema_momentum"]})
    (prefix,) = {re.match(r"ema_m[\d.]+\.", key)[0] for key in case.expected if key.startswith("ema_m")}
    check_sums(case, prefix, to_official(model.state_dict()), "teacher")


# ---- schedules, groups ----


def test_schedules(case):
    config = case.info["config"]
    steps_per_epoch, steps = config["iters_per_epoch"], len(case.expected["schedule.lr"])
    peak = config["lr"] * config["batch"] / 256
    schedules = load(case).schedules(steps, steps_per_epoch)
    expected = {
        "lr": warmup_cosine(peak, config["min_lr"], steps, config["warmup_epochs"] * steps_per_epoch),
        "wd": cosine(config["wd"], config["wd_end"], steps),
        "momentum": schedules["momentum"],
    }
    for name, schedule in expected.items():
        actual = torch.tensor([schedule(step) for step in range(steps)], dtype=torch.float64)
        assert_close(actual, case.expected[f"schedule.{name}"].cpu(), rel=1e-12, name=name)
    for epoch, temperature in enumerate(case.expected["schedule.teacher_temp"].tolist()):
        for step in range(epoch * steps_per_epoch, (epoch + 1) * steps_per_epoch):
            assert schedules["teacher_temperature"](step) == pytest.approx(temperature, rel=1e-12)
            assert schedules["last_layer_frozen"](step) == (epoch < config["freeze_last_layer"])


def test_groups(case):
    model = load(case)
    names = {p: name for name, p in model.named_parameters()}
    decays = {names[p]: group["weight_decay"] for group in parameter_groups(model, 1.0, 1.0) for p in group["params"]}
    shaped = {name: torch.full_like(model.get_parameter(name), decay) for name, decay in decays.items()}
    official = {name.removeprefix("student."): t.unique().item() for name, t in to_official(shaped).items()}
    assert sorted(name for name, decay in official.items() if not decay) == sorted(case.info["no_weight_decay"])
    assert not set(case.info["frozen_params"]) & official.keys()


def test_options_of_the_file(case):
    config, options = load(case).config, case.info["config"]
    assert isinstance(config, PWSelfConfig)
    assert (config.num_prototypes, config.head_hidden_dim) == (options["out_dim"], options["hidden_dim"])
    assert (config.head_bottleneck_dim, config.num_local_views) == (options["bottleneck_dim"], options["n_local"])
    assert config.norm_last_layer == options["norm_last_layer"] and config.drop_path_rate == 0
    assert config.student_temperature == case.info["student_temp"]
    assert math.isclose(config.center_momentum, case.info["center_momentum"])
