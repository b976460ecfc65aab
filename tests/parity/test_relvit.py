"""RelViT with all of its encoders against numbers recorded from the authors' code."""

import re

import pytest
import torch

from hf_ssl import RelViTForPreTraining
from hf_ssl.backbones import interpolate_positions
from hf_ssl.data import TensorSource
from hf_ssl.models.relvit.convert_relvit import convert, load_official, to_official
from hf_ssl.models.relvit.modeling_relvit import angle_targets, distance_targets, relation_targets
from hf_ssl.models.relvit.views_relvit import mega_patch_bands, mega_patches
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments
from hf_ssl.views import join_patches, permute_patches, split_patches

from ..device import DEVICE
from .cases import Case, assert_close, assert_equal, find_cases


# The authors' names of heads and tasks, and ours.
TASKS = {
    "rel": "relations",
    "abs_pos": "positions",
    "dist": "distances",
    "angle": "angles",
    "clf": "classification",
}
CHECKPOINTS = {"upstream": "checkpoint.pth", "joint": "checkpoint_joint.pth", "mega": "checkpoint_mega.pth"}

# Of Swin; what is no parameter in the authors' code is not listed among the parameters without gradient.
BUFFERS = re.compile(r"relative_position_index|attn_mask")
CASES = [case for case in find_cases("relvit") if "backbone" in case.info]

pytestmark = pytest.mark.parametrize("case", CASES, ids=str)


# The names of everything that the tests below compare.
COMPARED = re.compile(
    r"""
    (upstream|joint|mega)/(z_cls|z_pooled|z_patches|z_patches_pooled|logits_\w+|loss(_[a-z_]+)?|acc_\w+|total)
    | (upstream|joint)/target_(relations|distances|angles|abs_positions)
    | (upstream|joint|mega)/(grad_l2/.+|grad/.+|grad_total_l2)
    | (upstream|joint)/(grad_clipped_l2/.+|grad_clipped/.+)
    | (upstream|joint)/(after_step|after_step2|decay_step)/.+/(sum|l2)
    | (upstream|joint)/step2_(total|grad_total_l2)
    | upstream/pixel_values_shuffled
    | upstream/loss_rel_smooth[0-9.]+
    | upstream_smooth/(loss_rel|total|grad_l2/.+)
    | upstream_identity/(loss|acc)\w*
    | (low_contrast|drop_path|interp|attn_mask/diagonal|attn_mask/diagonal_clf_row|performer_sharp)
      /(z_cls|z_pooled|z_patches|z_patches_pooled)
    | interp/pos_embed
    | add_clf/logits_(rel|abs_pos|abs_pos_unpooled)
    | mega/(bands|images|images_antialias)
    """,
    re.VERBOSE,
)


def test_everything_recorded_is_compared(case):
    assert [key for key in case.expected if not COMPARED.fullmatch(key)] == []


def load(case: Case, run: str, **overrides) -> RelViTForPreTraining:
    heads = case.info["config"]["num_heads"]
    model = convert(case.folder / CHECKPOINTS[run], heads if isinstance(heads, int) else None)
    if overrides:
        config = type(model.config).from_dict({**model.config.to_dict(), **overrides})
        changed = RelViTForPreTraining(config)
        changed.load_state_dict(model.state_dict(), strict=True)
        model = changed.eval()
    return model.to(DEVICE)


def inputs_of(case: Case, run: str) -> dict[str, torch.Tensor]:
    if run == "upstream":
        return {"pixel_values": case.expected["upstream/pixel_values_shuffled"], "patch_order": case.inputs["perm"]}
    if run == "mega":
        return {"pixel_values": case.expected["mega/images"]}
    inputs = {"pixel_values": case.inputs["pixel_values"]}
    return {**inputs, "labels": case.inputs["labels"]} if run == "joint" else inputs


def check_tokens(case: Case, run: str, model: RelViTForPreTraining, *args: torch.Tensor) -> None:
    """All tokens that were recorded, under whatever names."""
    tokens, classified, patches = (tensor.detach() for tensor in model.encode(*args))
    is_pooled = model.config.backbone_config.model_type == "t2t_vit"
    found = {"z_cls": classified, "z_pooled": classified, "z_patches": tokens[:, 1:] if is_pooled else patches}
    if is_pooled:
        found["z_patches_pooled"] = patches
    recorded = [name for name in found if f"{run}/{name}" in case.expected]
    assert recorded
    for name in recorded:
        assert_close(found[name], case.expected[f"{run}/{name}"], rel=1e-5, name=f"{run}/{name}")


def check_losses(case: Case, run: str, output) -> None:
    checked = 0
    for name, task in TASKS.items():
        for key, actual in (
            (f"{run}/loss_{name}", output.losses.get(task)),
            (f"{run}/acc_{name}", output.metrics.get(f"accuracy_{task}")),
        ):
            if key in case.expected:
                exact = "/acc_" in key
                assert_close(actual.detach(), case.expected[key], rel=0 if exact else 2e-6, name=key)
                checked += 1
    for key in (f"{run}/loss", f"{run}/total"):
        if key in case.expected:
            assert_close(output.loss.detach(), case.expected[key], rel=2e-6, name=key)
            checked += 1
    assert checked


@pytest.mark.parametrize("run", ["upstream", "joint", "mega"])
def test_forward(case, run):
    case.need(f"{run}/")
    model, inputs = load(case, run), inputs_of(case, run)
    output = model(**inputs)
    check_tokens(case, run, model, inputs["pixel_values"])
    check_losses(case, run, output)
    for name, task in TASKS.items():
        if f"{run}/logits_{name}" in case.expected:
            expected = case.expected[f"{run}/logits_{name}"]
            assert_close(output.logits[task].detach(), expected, rel=1e-5, name=f"{run}/logits_{name}")


def test_forward_without_shuffling(case):
    case.need("upstream_identity/")
    check_losses(case, "upstream_identity", load(case, "upstream")(pixel_values=case.inputs["pixel_values"]))


@pytest.mark.parametrize("run", ["upstream", "joint"])
def test_targets(case, run):
    case.need(f"{run}/target_")
    side = case.info["grid_side"]
    order = case.inputs["perm"] if run == "upstream" else torch.arange(side * side, device=DEVICE)[None]
    expected = {name: case.expected[f"{run}/target_{name}"] for name in ("relations", "distances", "angles")}
    if run == "joint":
        expected = {name: target[None] for name, target in expected.items()}
    assert_equal(order[0] if run == "joint" else order, case.expected[f"{run}/target_abs_positions"])
    assert_equal(relation_targets(order, side), expected["relations"])
    assert_close(distance_targets(order, side), expected["distances"], abs=1e-6)
    assert_close(angle_targets(order, side), expected["angles"], abs=3e-4)


def test_shuffled_image(case):
    case.need("upstream/pixel_values_shuffled")
    patches = split_patches(case.inputs["pixel_values"], case.info["config"]["patch_size"])
    shuffled = join_patches(permute_patches(patches, case.inputs["perm"]))
    assert_equal(shuffled, case.expected["upstream/pixel_values_shuffled"])


def test_low_contrast(case):
    """Nearly constant images: the epsilon of the LayerNorms shows."""
    case.need("low_contrast/")
    model = load(case, "upstream")
    check_tokens(case, "low_contrast", model, case.inputs["pixel_values_low_contrast"])


def test_stochastic_depth(case):
    case.need("drop_path/")
    rates = case.inputs["drop_path/rates"].tolist()
    model = load(case, "upstream", drop_path_rate=max(rates))
    assert model.student.drop_path_rates == pytest.approx(rates)
    check_tokens(case, "drop_path", model, case.inputs["pixel_values"], case.inputs["drop_path/keep"])


def test_sharp_kernels(case):
    """Denominators of the performer fall near its epsilon."""
    case.need("performer_sharp/")
    model, factor = load(case, "upstream"), case.info["config"]["performer_sharp_factor"]
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if re.search(r"token_attention\d\.[kq]_proj", name):
                weight *= factor
    check_tokens(case, "performer_sharp", model, case.inputs["pixel_values"][:2])


def test_position_interpolation(case):
    case.need("interp/")
    model = load(case, "joint")
    pixel_values = case.inputs["pixel_values_interp"]
    side = pixel_values.shape[-1] // case.info["config"]["patch_size"]
    table = interpolate_positions(
        model.student.embeddings.position_embeddings, (side, side), model.config.position_interpolation
    )
    assert_close(table.detach(), case.expected["interp/pos_embed"], abs=2e-6)
    check_tokens(case, "interp", model, pixel_values)


@pytest.mark.parametrize(("pattern", "name"), [("diagonal", "diagonal"), ("diagonal_class_row", "diagonal_clf_row")])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_attention_pattern(case, pattern, name, attention):
    case.need(f"attn_mask/{name}/")
    model = load(case, "joint", attention_pattern=pattern)
    model.set_attn_implementation(attention)
    check_tokens(case, f"attn_mask/{name}", model, case.inputs["pixel_values"])


def test_class_token_added_to_patches(case):
    case.need("add_clf/")
    model = load(case, "joint", add_class_token_to_patches=True)
    number = len(case.expected["add_clf/logits_rel"])  # of T2T-ViT, the first two images
    output = model(**{name: tensor[:number] for name, tensor in inputs_of(case, "joint").items()})
    if "add_clf/logits_abs_pos_unpooled" in case.expected:  # the authors' code does not pool here
        tokens = output.last_hidden_state
        unpooled = model.position_head(tokens[:, 1:] + tokens[:, :1]).mT.detach()
        assert_close(unpooled, case.expected["add_clf/logits_abs_pos_unpooled"], rel=1e-5)
    for name in ("rel", "abs_pos"):
        expected = case.expected[f"add_clf/logits_{name}"]
        assert_close(output.logits[TASKS[name]].detach(), expected, rel=1e-5, name=f"add_clf/logits_{name}")


def test_label_smoothing(case):
    case.need("upstream_smooth/")
    (key,) = [key for key in case.expected if key.startswith("upstream/loss_rel_smooth")]
    smoothing = float(key.removeprefix("upstream/loss_rel_smooth"))
    model = load(case, "upstream", relation_label_smoothing=smoothing)
    output = model(**inputs_of(case, "upstream"))
    assert_close(output.losses["relations"].detach(), case.expected["upstream_smooth/loss_rel"], rel=2e-6)
    assert_close(output.losses["relations"].detach(), case.expected[key], rel=2e-6)
    assert_close(output.loss.detach(), case.expected["upstream_smooth/total"], rel=2e-6)
    output.loss.backward()
    check_gradient_norms(case, "upstream_smooth/grad_l2", gradients(model))


def gradients(model: RelViTForPreTraining) -> dict[str, torch.Tensor]:
    return to_official({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def check_gradient_norms(case: Case, group: str, actual: dict[str, torch.Tensor]) -> None:
    names = [key.removeprefix(f"{group}/") for key in case.expected if key.startswith(f"{group}/")]
    assert names
    for name in names:
        assert_close(actual[name].norm(), case.expected[f"{group}/{name}"], rel=1e-5, name=f"{group}/{name}")


def check_gradients(case: Case, group: str, actual: dict[str, torch.Tensor]) -> None:
    for key in case.expected:
        if key.startswith(f"{group}/"):
            assert_close(actual[key.removeprefix(f"{group}/")], case.expected[key], rel=2e-5, name=key)


def make_trainer(case: Case, model: RelViTForPreTraining, tmp_path, learning_rate: float) -> SSLTrainer:
    """The trainer as it runs, with a view that hands the recorded batch on."""
    optimizer = case.info["optimizer"]
    args = SSLTrainingArguments(
        output_dir=str(tmp_path),
        use_cpu=DEVICE == "cpu",
        learning_rate=learning_rate,
        weight_decay=optimizer["weight_decay"],
        weight_decay_rule="all",
        adam_beta1=optimizer["betas"][0],
        adam_beta2=optimizer["betas"][1],
        adam_epsilon=optimizer["eps"],
        max_grad_norm=optimizer["grad_clip_norm"],
        dataloader_drop_last=False,
        per_device_train_batch_size=case.info["config"]["batch"],
    )
    trainer = SSLTrainer(
        model,
        args,
        TensorSource(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)),
        views=lambda batch, draws: {name: value for name, value in batch.items() if name not in ("index", "epoch")},
    )
    trainer.create_optimizer()
    return trainer


def step(trainer: SSLTrainer, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Forward, backward, clip, update; the loss and the gradient norm before clipping."""
    trainer.optimizer.zero_grad()
    trainer.begin_step()
    index = torch.arange(len(batch["pixel_values"]), device=DEVICE)
    loss = trainer.compute_loss(trainer.model, {**batch, "index": index, "epoch": torch.zeros_like(index)})
    loss.backward()
    norm = trainer._clip_grad_norm(trainer.model)
    trainer.optimizer.step()
    return loss.detach(), norm


def check_weights(case: Case, group: str, model: RelViTForPreTraining, run: str, sum_tolerance: float) -> None:
    weights = to_official(model.state_dict())
    untouched = load_official(case.folder / CHECKPOINTS[run])
    keys = [key for key in case.expected if key.startswith(f"{group}/")]
    assert keys
    for key in keys:
        name, _, statistic = key.removeprefix(f"{group}/").rpartition("/")
        # Tensors without gradient that this library does not carry must have stayed as they were in the file.
        weight = (weights[name] if name in weights else untouched[name]).to(model.device).double()
        if name not in weights:
            assert name in case.info["params_with_no_gradient"][run]
        if statistic == "sum":
            assert_close(weight.sum(), case.expected[key], abs=sum_tolerance, name=key)
        else:
            assert_close(weight.norm(), case.expected[key], rel=1e-6, name=key)


@pytest.mark.parametrize("run", ["upstream", "joint", "mega"])
def test_gradients(case, run):
    case.need(f"{run}/grad_l2/")
    model = load(case, run)
    model(**inputs_of(case, run)).loss.backward()
    actual = gradients(model)
    check_gradient_norms(case, f"{run}/grad_l2", actual)
    check_gradients(case, f"{run}/grad", actual)
    total = torch.stack([gradient.norm() for gradient in actual.values()]).norm()
    assert_close(total, case.expected[f"{run}/grad_total_l2"], rel=1e-5)


@pytest.mark.parametrize("run", ["upstream", "joint"])
def test_parameters_without_gradient(case, run):
    case.need(f"{run}/")
    model = load(case, run)
    model(**inputs_of(case, run)).loss.backward()
    everything = {n for n in load_official(case.folder / CHECKPOINTS[run]) if not BUFFERS.search(n)}
    assert everything - set(gradients(model)) == set(case.info["params_with_no_gradient"][run])


@pytest.mark.parametrize("run", ["upstream", "joint"])
def test_two_steps(case, run, tmp_path):
    case.need(f"{run}/after_step/")
    model, batch = load(case, run, drop_path_rate=0.0), inputs_of(case, run)  # as it was recorded
    trainer = make_trainer(case, model, tmp_path, case.info["optimizer"]["lr"])
    loss, norm = step(trainer, batch)
    assert_close(loss, case.expected[f"{run}/total"], rel=2e-6)
    assert_close(norm, case.expected[f"{run}/grad_total_l2"], rel=1e-5)
    clipped = gradients(model)
    check_gradient_norms(case, f"{run}/grad_clipped_l2", clipped)
    check_gradients(case, f"{run}/grad_clipped", clipped)
    check_weights(case, f"{run}/after_step", model, run, 1.5e-5)
    loss, norm = step(trainer, batch)
    assert_close(loss, case.expected[f"{run}/step2_total"], rel=1e-5)
    assert_close(norm, case.expected[f"{run}/step2_grad_total_l2"], rel=1e-5)
    check_weights(case, f"{run}/after_step2", model, run, 3e-5)


@pytest.mark.parametrize("run", ["upstream", "joint"])
def test_decay_step(case, run, tmp_path):
    case.need(f"{run}/decay_step/")
    model = load(case, run, drop_path_rate=0.0)
    step(make_trainer(case, model, tmp_path, case.info["optimizer"]["decay_step_lr"]), inputs_of(case, run))
    check_weights(case, f"{run}/decay_step", model, run, 3e-4)


def test_mega_patches(case):
    case.need("mega/")
    sizes = case.info["config"]
    cuts, images = case.inputs["mega/cuts_h"], case.inputs["mega/pixel_values"]
    cells = images.shape[-1] // sizes["patch_size"]
    _, bands = mega_patch_bands(cuts, cells, sizes["patch_size"])
    assert_equal(bands, case.expected["mega/bands"])
    assert_equal(bands, case.inputs["mega/splits"])
    for antialias, name in ((False, "mega/images"), (True, "mega/images_antialias")):
        actual = mega_patches(images, cuts, cuts, sizes["patch_size"], antialias)
        assert_close(actual, case.expected[name], abs=5e-6, name=name)


def test_lightning_class_key(case):
    """Real files key their callbacks by a pickled class; they load all the same, and only safely."""
    path = case.folder / "checkpoint_pl_class_key.ckpt"
    if not path.is_file():
        pytest.skip(f"{case} has no such file")
    with pytest.raises(Exception, match="ModelCheckpoint"):
        torch.load(path, weights_only=True)
    plain, keyed = load_official(case.folder / "checkpoint.pth"), load_official(path)
    assert plain.keys() == keyed.keys()
    for name in plain:
        assert_equal(keyed[name], plain[name], name)


@pytest.mark.parametrize("run", ["upstream", "joint"])
def test_published_encoder(case, run, tmp_path):
    """The folder that stock transformers loads gives the recorded class token and patch tokens."""
    case.need(f"{run}/z_patches")
    from transformers import AutoModel

    model = load(case, run)
    model.export_encoder().save_pretrained(tmp_path)
    encoder = AutoModel.from_pretrained(tmp_path).to(DEVICE)
    output = encoder(inputs_of(case, run)["pixel_values"])
    kind = model.config.backbone_config.model_type
    pooled, tokens = output.pooler_output.detach(), output.last_hidden_state.detach()
    assert_close(pooled, case.expected[f"{run}/{'z_pooled' if kind == 'swin' else 'z_cls'}"], rel=1e-5)
    assert_close(tokens if kind == "swin" else tokens[:, 1:], case.expected[f"{run}/z_patches"], rel=1e-5)
