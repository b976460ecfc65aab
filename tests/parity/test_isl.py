"""ISL against numbers recorded from the authors' code."""

import pickle
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hf_ssl import ISLForPreTraining
from hf_ssl.data import TensorSource
from hf_ssl.evaluation import knn_accuracy, knn_votes
from hf_ssl.models.isl import memory_bank, mining
from hf_ssl.models.isl.convert_isl import convert, to_official
from hf_ssl.models.isl.neighbors import NeighborSets
from hf_ssl.models.isl.rounds_isl import Rounds
from hf_ssl.models.isl.stage_ends import has_enough_neighbors, official_gan_stop
from hf_ssl.trainer import SSLTrainer
from hf_ssl.training_args import SSLTrainingArguments

from ..device import DEVICE
from .cases import Case, assert_close, assert_equal, find_cases


pytestmark = pytest.mark.parametrize("case", find_cases("isl"), ids=str)

CHECKPOINTS = {
    "cifar_resnet": "checkpoint.pth",
    **{name: f"checkpoint_{name}.pth" for name in ("imagenet_resnet", "cifar_alexnet", "imagenet_alexnet")},
}
OPTIONS = {
    **{"hard_positive_weight": "hp", "num_negatives": "sample_neg", "gan_learning_rate": "adam_lr"},
    **{"gan_betas": "adam_betas", "score_threshold": "pos_score_threshold", "similarity_threshold": "R"},
    "links_per_proxy": "topk",
}
GROUPS = pytest.mark.parametrize("group", ["inst", "nbr"])


@pytest.fixture(params=["whole", "parts"])
def bank_parts(request, monkeypatch):
    """The bank at once; or few rows at a time, and negatives looked up in it for one image after the other."""
    if request.param == "parts":
        for name in ("_BLOCK_ON_CPU", "_BLOCK"):
            monkeypatch.setattr(memory_bank, name, 24)
        for name in ("_DRAWN_ON_CPU", "_DRAWN", "_ROWS_PER_CANDIDATE"):
            monkeypatch.setattr(mining, name, 0)


def load(case: Case, with_neighbors: bool = True, dtype: torch.dtype = torch.float32) -> ISLForPreTraining:
    """checkpoint.pth with the recorded bank and the options of the case, which no tensor tells."""
    config = case.info["config"]
    model = convert(case.folder / "checkpoint.pth").to(DEVICE)
    model.config.update({name: config[key] for name, key in OPTIONS.items()})
    model.make_bank(config["n_data"])
    model.bank.rows.copy_(case.inputs["bank.memory"])
    if with_neighbors:
        model.bank.neighbors.add(*case.inputs["bank.affinity"].triu(1).nonzero().unbind(1))
    return model.to(dtype)


def use_recorded_layout(model: ISLForPreTraining) -> None:
    """Channels first: with channels last the sums of batch norm are rounded in other ways, by more than is allowed here."""
    model.student.backbone.register_forward_pre_hook(lambda module, args: (args[0].contiguous(),))


def count(pattern: str, tensors: dict[str, Tensor]) -> int:
    """Steps that were recorded, from the names of one tensor of each."""
    return sum(re.fullmatch(pattern, name) is not None for name in tensors)


def affinity(neighbors: NeighborSets) -> Tensor:
    """The relation as a matrix, each image with itself, as it is recorded."""
    size = neighbors.num_images
    matrix = torch.eye(size, dtype=torch.uint8, device=DEVICE)
    matrix[neighbors.links // size, neighbors.links % size] = 1
    return matrix


def assert_near(actual: Tensor, expected: Tensor, rel: float, name: str = "") -> None:
    """The norm of the difference, relative to the norm."""
    assert actual.shape == expected.shape, name
    expected = expected.double()
    error, norm = (actual.double() - expected).norm().item(), expected.norm().item()
    assert error <= rel * norm, f"{name}: off by {error / norm:.3g}, allowed {rel:.3g}"


COMPARED = re.compile(
    r"""
    enc\.\w+\.(features|pooled)
    | (inst|nbr)\.step\d+\.(features|logits|feature_grad|loss_(total|inst|aff|hp)|grad_norms)
    | (inst|nbr)\.(memory|param_sum_l2|l2_1d)_after | (inst|nbr|train_\w+)\..+_running_(mean|var)_after
    | gan\.step\d+\.(true_pos|true_neg|neg_selected_index|fake_pos|[dg]_loss|[dg]_grad_norm\..+)
    | gan\.step\d+\.(d_true|[dg]_app|[dg]_apn)_(bce|score) | gan\.after\.[gd]_weight\..+
    | mine\.(true_neg|fake_pos|d_apn_score|radius|topk_(index|similarity)|new_directed)
    | mine\.(affinity_after|neighbour_count) | edge\.(radius|affinity_after)
    | knn\.k\d+\.(top1|top5_percent|class_scores) | knn\.recompute_(official_top1|official_memory|fixed_top1)
    | stop_gan\.(round0|later) | stop_mining
    """,
    re.VERBOSE,
)


def test_everything_recorded_is_compared(case):
    assert [key for key in case.expected if not COMPARED.fullmatch(key)] == []


# ---- the files ----


def test_options_of_the_file(case):
    options, config = case.info["config"], load(case).config
    assert [config.temperature, config.bank_momentum, config.projection_dim] == [
        options[n] for n in ("T", "m", "low_dim")
    ]
    backbone, expansion = config.backbone_config, 4 if options["block"] == "bottleneck" else 1
    assert backbone.hidden_sizes == [options["width"] * 2**stage * expansion for stage in range(4)]
    assert (backbone.layer_type, backbone.embedding_size) == (options["block"], options["width"])
    assert backbone.depths == options["depths"]
    for encoder, prefix in (("cifar_alexnet", "alex"), ("imagenet_alexnet", "ialex")):
        if case.has(f"enc.{encoder}."):
            backbone = convert(case.folder / CHECKPOINTS[encoder]).config.backbone_config
            assert (backbone.conv_widths, backbone.fc_width) == (options[f"{prefix}_c"], options[f"{prefix}_hid"])


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_official_pickle.pth"])
def test_bank_of_the_file(case, name, monkeypatch):
    """The bank as the authors' code pickles it, a whole module, says the same as its tensors; and nothing is run."""
    path, read = case.folder / name, torch.load
    if not path.is_file():
        pytest.skip(f"{case} has no {name}")
    if "pickle" in name:
        with pytest.raises(pickle.UnpicklingError):
            read(path, weights_only=True)
    safe = []

    def load_safely(*args, **options):
        safe.append(options["weights_only"])
        return read(*args, **options)

    monkeypatch.setattr(torch, "load", load_safely)
    found, plain = convert(path), convert(case.folder / "checkpoint.pth")
    assert set(safe) == {True}
    assert found.config.to_dict() == plain.config.to_dict()
    assert found.state_dict().keys() == plain.state_dict().keys()
    for key, tensor in plain.state_dict().items():
        assert_equal(found.state_dict()[key], tensor, key)
    assert_equal(found.bank.rows, case.inputs["bank.memory"])
    assert_equal(affinity(found.to(DEVICE).bank.neighbors), case.inputs["bank.affinity"])


# ---- the encoders ----


@pytest.mark.parametrize("encoder", CHECKPOINTS)
@torch.no_grad()
def test_encoders(case, encoder, tmp_path):
    """Features in training's own class, and of what is published."""
    case.need(f"enc.{encoder}.")
    model = convert(case.folder / CHECKPOINTS[encoder]).to(DEVICE)
    pixel_values = case.inputs[f"enc.{encoder}.pixel_values"]
    pooled, features = case.expected[f"enc.{encoder}.pooled"], case.expected[f"enc.{encoder}.features"]
    assert_close(model.encode(pixel_values), features, abs=1e-6)
    assert_close(model.student.backbone(pixel_values).pooler_output.flatten(1), pooled, abs=1e-6)
    model.export_encoder().save_pretrained(tmp_path)
    published = type(model.export_encoder()).from_pretrained(tmp_path).to(DEVICE).eval()
    found = published(pixel_values).pooler_output.flatten(1)
    assert_close(found, pooled, abs=1e-6)
    assert_close(F.normalize(model.project(found)), features, abs=1e-6)


@pytest.mark.parametrize("encoder", [name for name in CHECKPOINTS if name != "cifar_resnet"])
@torch.no_grad()
def test_batch_statistics(case, encoder):
    case.need(f"train_{encoder}.")
    model = convert(case.folder / CHECKPOINTS[encoder]).to(DEVICE).train()
    use_recorded_layout(model)
    model.encode(case.inputs[f"enc.{encoder}.pixel_values"])
    check_statistics(case, f"train_{encoder}", model)


def check_statistics(case: Case, group: str, model: ISLForPreTraining) -> None:
    keys = {key: re.fullmatch(rf"{group}\.(.+)_(running_(?:mean|var))_after", key) for key in case.expected}
    names = {key: f"{match[1]}.{match[2]}" for key, match in keys.items() if match}
    state = model.student.state_dict()
    assert len(names) == sum("running_" in name for name in state)
    official = to_official(state, names.values())
    for key, name in names.items():
        assert_near(official[name], case.expected[key], rel=3e-6, name=key)


# ---- training of the encoder ----

TERMS = {"loss_inst": "instance", "loss_aff": "neighbors", "loss_hp": "hard_positive"}


def inputs_of(case: Case, step: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    prefix = f"backbone.step{step}."
    return {"pixel_values": case.inputs[f"{prefix}pixel_values"].to(dtype), "index": case.inputs[f"{prefix}index"]}


def check_after(case: Case, group: str, model: ISLForPreTraining) -> None:
    """Bank, weights and statistics after all steps."""
    config, expected = case.info["config"], case.expected
    assert_close(model.bank.rows, expected[f"{group}.memory_after"], abs=2e-6)
    weights = to_official(model.student.state_dict(), {*config["grad_params"], *config["l2_1d_params"]})
    weights = {name: tensor.double() for name, tensor in weights.items()}
    sums, norms = expected[f"{group}.param_sum_l2_after"].unbind(1)
    assert_close(torch.stack([weights[name].sum() for name in config["grad_params"]]), sums, abs=5e-5)
    assert_close(torch.stack([weights[name].norm() for name in config["grad_params"]]), norms, abs=1.5e-6)
    norms = torch.stack([weights[name].norm() for name in config["l2_1d_params"]])
    assert_close(norms, expected[f"{group}.l2_1d_after"], abs=1.5e-6)
    check_statistics(case, group, model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.usefixtures("bank_parts")
@GROUPS
def test_training_steps(case, group, dtype):
    case.need(f"{group}.")
    config, expected = case.info["config"], case.expected
    model = load(case, group == "nbr", dtype).train()
    if dtype == torch.float32:
        use_recorded_layout(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, config["lr"], config["sgd_momentum"], weight_decay=config["wd"])
    for step in range(count(rf"{group}\.step\d+\.features", expected)):
        prefix, rows = f"{group}.step{step}.", model.bank.rows.clone()
        output = model(**inputs_of(case, step, dtype))
        output.features.retain_grad()
        optimizer.zero_grad()
        output.loss.backward()
        features = output.features.detach()
        assert_close(features, expected[f"{prefix}features"], abs=3e-6)
        assert_close(features @ rows.T / config["T"], expected[f"{prefix}logits"], abs=5e-5)
        assert_close(output.loss.detach(), expected[f"{prefix}loss_total"], abs=5e-6)
        for theirs, ours in TERMS.items():
            assert_close(output.losses[ours].detach(), expected[f"{prefix}{theirs}"], abs=5e-6, name=ours)
        assert_close(output.features.grad, expected[f"{prefix}feature_grad"], abs=5e-6)
        gradients = {name: p.grad.double() for name, p in model.student.named_parameters()}
        gradients = to_official(gradients, config["grad_params"])
        for (name, gradient), norm in zip(gradients.items(), expected[f"{prefix}grad_norms"], strict=True):
            assert_near(gradient.norm(), norm, rel=2e-6, name=name)
        optimizer.step()
    check_after(case, group, model)


def make_trainer(case: Case, model: ISLForPreTraining, folder, views: Callable, steps: int = 1) -> SSLTrainer:
    """The trainer, with the authors' optimizer."""
    config = case.info["config"]
    options = {"learning_rate": config["lr"], "optim": "sgd", "optim_args": f"momentum={config['sgd_momentum']}"}
    options |= {"weight_decay": config["wd"], "weight_decay_rule": "all", "max_grad_norm": 0.0}
    options |= {"per_device_train_batch_size": config["batch"], "lr_scheduler_type": "constant", "max_steps": steps}
    options |= {"logging_steps": 1, "save_strategy": "no", "disable_tqdm": True, "use_cpu": DEVICE == "cpu"}
    args = SSLTrainingArguments(output_dir=str(folder), **options)
    images = TensorSource(torch.zeros(config["batch"] * steps, 3, 4, 4, dtype=torch.uint8))
    model.config.num_rounds = 1
    return SSLTrainer(model, args, images, views)


@GROUPS
def test_training_by_the_trainer(case, group, monkeypatch, tmp_path):
    """As it runs, with the recorded views of the recorded images."""
    case.need(f"{group}.")
    model, steps = load(case, group == "nbr"), count(rf"{group}\.step\d+\.features", case.expected)
    use_recorded_layout(model)

    def recorded(name: str) -> dict[str, Tensor]:
        return {name: inputs_of(case, trainer.state.global_step)[name]}

    trainer = make_trainer(case, model, tmp_path, lambda batch, draws: recorded("pixel_values"), steps)
    monkeypatch.setattr(model, "prepare_training", lambda *args: None)
    monkeypatch.setattr(model, "step_inputs", lambda step: recorded("index"))
    monkeypatch.setattr(Rounds, "after_epoch", lambda rounds: None)
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    for step, log in zip(range(steps), logs, strict=True):
        for theirs, ours in {"loss_total": "loss", **{key: f"loss_{name}" for key, name in TERMS.items()}}.items():
            expected = case.expected[f"{group}.step{step}.{theirs}"]
            assert_close(torch.tensor(log[ours]), expected, abs=5e-6, name=ours)
    check_after(case, group, model)


def dense_losses(case: Case, features: Tensor, index: Tensor, most_similar: bool) -> Tensor:
    """The three terms, in plain words: with all similarities, and sets as masks."""
    config, rows = case.info["config"], case.inputs["bank.memory"].to(features)
    sets, batch = case.inputs["bank.affinity"][index].bool(), torch.arange(len(index), device=DEVICE)
    log_p = (features @ rows.T / config["T"]).log_softmax(1)
    others = sets.clone()
    others[batch, index] = False
    similarity = rows[index] @ rows.T * (1 if most_similar else -1)
    chosen = similarity.masked_fill(~others, -torch.inf).argmax(1)
    log_q = (rows[chosen] @ rows.T / config["T"]).log_softmax(1)
    divergence = (log_p.exp() * (log_p - log_q)).sum(1)
    own, of_set = log_p[batch, index], log_p.exp().mul(sets).sum(1).log()
    neighbored = others.any(1)
    terms = [-own[~neighbored].sum(), -of_set[neighbored].sum(), config["hp"] * divergence[neighbored].sum()]
    return torch.stack(terms) / len(index)


@pytest.mark.usefixtures("bank_parts")
@pytest.mark.parametrize("hard_positive", ["most_similar", "least_similar"])
def test_losses_in_float64(case, hard_positive):
    case.need("nbr.")
    model = load(case, dtype=torch.float64)
    model.config.update({"hard_positive": hard_positive})
    for step in range(count(r"backbone\.step\d+\.index", case.inputs)):
        inputs = inputs_of(case, step, torch.float64)
        output = model(**inputs)
        output.features.retain_grad()
        output.loss.backward()
        features = output.features.detach().requires_grad_()
        expected = dense_losses(case, features, inputs["index"], hard_positive == "most_similar")
        (gradient,) = torch.autograd.grad(expected.sum(), features)
        assert_close(torch.stack(list(output.losses.values())).detach(), expected.detach(), abs=1e-12)
        assert_close(output.features.grad, gradient, abs=1e-12)


# ---- generator and discriminator ----


def make_rounds(case: Case, model: ISLForPreTraining, folder, monkeypatch) -> Rounds:
    """The rounds as they begin; negatives come from the recorded indices, which are given in the place of draws."""
    trainer = make_trainer(case, model, folder, lambda batch, draws: batch)
    trainer.get_train_dataloader()
    rounds, neighbors = trainer.method_callback, model.bank.neighbors
    trainer.state.max_steps = 1
    rounds.on_train_begin(trainer.args, trainer.state, trainer.control)

    def draw_others(images: Tensor, recorded: Tensor, number: int) -> Tensor:
        assert recorded.shape == (len(images), number)
        assert not affinity(neighbors)[images].gather(1, recorded).any()
        return recorded

    monkeypatch.setattr(neighbors, "draw_others", draw_others)
    return rounds


def test_rejection_of_draws(case):
    """What is drawn anew because our relation has it is what the authors' code draws anew, to the last draw."""
    case.need("gan.")
    config, sets = case.info["config"], affinity(load(case).bank.neighbors).bool()
    for step in range(count(r"gan\.step\d+\.index", case.inputs)):
        names = ("index", "draw_initial", "draw_redraws", "neg_idx")
        index, initial, redraws, kept = (case.inputs[f"gan.step{step}.{name}"] for name in names)
        drawn, used = initial.clone().view(len(index), config["sample_neg"] + 1), 0
        for image, row in zip(index, drawn, strict=True):
            while (rejected := sets[image][row]).any():
                number = int(rejected.sum())
                row[rejected] = redraws[used : used + number]
                used += number
        assert used == len(redraws)
        assert_equal(drawn[:, 1:], kept)


@pytest.mark.usefixtures("bank_parts")
def test_steps_of_generator_and_discriminator(case, monkeypatch, tmp_path):
    case.need("gan.")
    expected, model = case.expected, load(case)
    rounds, generator, judge = make_rounds(case, model, tmp_path, monkeypatch), model.generator, model.discriminator
    for step in range(count(r"gan\.step\d+\.index", case.inputs)):
        prefix = f"gan.step{step}."
        anchor, index, candidates = (case.inputs[f"{prefix}{name}"] for name in ("anchor", "index", "neg_idx"))
        chosen = mining.hardest(anchor, model.bank.rows, candidates)
        assert_equal(chosen, expected[f"{prefix}neg_selected_index"])
        triplets = rounds._draw_triplets(anchor, index, candidates)
        a, p, n = triplets
        with torch.no_grad():
            proxy = generator(a, p, n)
            judged = {"d_true": (a, p, n), "d_app": (a, p, proxy), "d_apn": (a, proxy, n)}
            scores = {key: judge(*three) for key, three in judged.items()}
        with rounds.proxies.trainable():
            d_loss, g_loss = rounds.proxies.step(triplets)
            gradients = {
                key: {n: w.grad for n, w in net.named_parameters()} for key, net in (("d", judge), ("g", generator))
            }
        with torch.no_grad():
            scores |= {f"g_{kind}": judge(*judged[f"d_{kind}"]) for kind in ("app", "apn")}
        found = {"true_pos": p, "true_neg": n, "fake_pos": proxy, "d_loss": d_loss, "g_loss": g_loss}
        for key, of_kind in scores.items():
            targets = torch.full_like(of_kind, float(key not in ("d_app", "d_apn")))
            found |= {f"{key}_score": of_kind, f"{key}_bce": F.binary_cross_entropy(of_kind, targets)}
        for key, tensor in found.items():
            assert_close(tensor, expected[f"{prefix}{key}"], abs=1e-6, name=key)
        for letter, of_network in gradients.items():
            for name, gradient in of_network.items():
                norm = expected[f"{prefix}{letter}_grad_norm.{name}"]
                assert_near(gradient.double().norm(), norm, rel=1e-5, name=f"{letter} {name}")
    for letter, network in (("d", judge), ("g", generator)):
        for name, weight in network.state_dict().items():
            assert_close(weight, expected[f"gan.after.{letter}_weight.{name}"], abs=1e-6, name=name)


# ---- mining ----


@pytest.mark.usefixtures("bank_parts")
def test_mining(case, monkeypatch, tmp_path):
    """Our pass over all images, with the recorded features and negatives."""
    case.need("mine.")
    config, expected, model = case.info["config"], case.expected, load(case, with_neighbors=False)
    rounds, found = make_rounds(case, model, tmp_path, monkeypatch), []
    recorded = [case.inputs[f"mine.{name}"].split(config["batch"]) for name in ("anchor", "index", "neg_idx")]
    library = rounds._propose

    def propose(triplets: mining.Triplets, index: Tensor) -> tuple[Tensor, mining.Links]:
        proxies, links = library(triplets, index)
        scores = model.discriminator(triplets.anchor, proxies, triplets.negative)
        of_batch = {"true_neg": triplets.negative, "fake_pos": proxies, "d_apn_score": scores, "radius": links.radius}
        of_batch |= {"topk_index": links.neighbors, "topk_similarity": links.similarity, "new_directed": links.kept}
        found.append(of_batch)
        return proxies, links

    monkeypatch.setattr(rounds, "_propose", propose)
    monkeypatch.setattr(rounds, "_features", lambda stage, number: zip(*recorded, strict=True))
    new_links = rounds._mining_pass()
    for key in found[0]:
        tensor = torch.cat([of_batch[key] for of_batch in found])
        if tensor.is_floating_point():
            assert_close(tensor, expected[f"mine.{key}"], abs=2e-6, name=key)
        else:
            assert_equal(tensor, expected[f"mine.{key}"], key)
    assert_equal(affinity(model.bank.neighbors), expected["mine.affinity_after"])
    assert new_links == len(model.bank.neighbors) == expected["mine.neighbour_count"]
    assert_equal(model.bank.rows, case.inputs["bank.memory"])


@pytest.mark.usefixtures("bank_parts")
def test_thresholds_have_to_be_exceeded(case):
    case.need("edge.")
    rows, index, proxies, scores = (case.inputs[f"edge.{name}"] for name in ("bank", "index", "fake_pos", "score"))
    options = case.info["config"]["edge"]
    thresholds = (options["pos_score_threshold"], options["R"])
    links = mining.propose_links(rows, proxies, scores, index, *thresholds, options["topk"])
    assert_equal(links.radius, case.expected["edge.radius"])
    neighbors = NeighborSets(options["n"]).to(DEVICE)
    neighbors.add(index[:, None].expand_as(links.neighbors)[links.kept], links.neighbors[links.kept])
    assert_equal(affinity(neighbors), case.expected["edge.affinity_after"])


# ---- k nearest neighbors ----


def classify(case: Case, bank: Tensor, k: int) -> tuple[Tensor, float, float]:
    """Votes, and how often the true class is the first, or in the first five. Equal votes, also none, rank by number."""
    inputs, config = case.inputs, case.info["config"]
    of_bank = (bank, inputs["knn.train_labels"], config["knn_c"])
    options = {"k": k, "temperature": config["T"]}
    votes = knn_votes(inputs["knn.query"], *of_bank, **options)
    hits = votes.sort(dim=1, descending=True, stable=True).indices == inputs["knn.query_labels"][:, None]
    top1, top5 = (hits[:, :best].any(1).sum().item() / len(hits) for best in (1, 5))
    ours = knn_accuracy(inputs["knn.query"], inputs["knn.query_labels"], *of_bank, **options)
    assert ours["knn_top1"] == pytest.approx(100 * top1)
    assert ours["knn_top5"] <= 100 * top5 + 1e-9  # a class without votes never counts
    return votes, top1, top5


def test_knn(case):
    case.need("knn.k")
    for k in case.info["config"]["knn_k"]:
        votes, top1, top5 = classify(case, case.inputs["knn.bank"], k)
        assert_near(votes, case.expected[f"knn.k{k}.class_scores"], rel=3e-6, name=f"k={k}")
        assert top1 == case.expected[f"knn.k{k}.top1"]
        assert round(100 * top5, 2) == case.expected[f"knn.k{k}.top5_percent"]


def test_knn_of_features_computed_anew(case):
    """Also with the authors' mistake: a chunk's place is its number times its own length, so the last one's is wrong."""
    case.need("knn.recompute_")
    config, features = case.info["config"], case.inputs["knn.recomputed_train_features"]
    memory = case.inputs["knn.bank"].clone()
    for number, chunk in enumerate(features.split(config["recompute_chunk"])):
        memory[number * len(chunk) :][: len(chunk)] = chunk
    assert_equal(memory, case.expected["knn.recompute_official_memory"])
    for bank, name in ((memory, "official"), (features, "fixed")):
        top1 = classify(case, bank, max(config["knn_k"]))[1]
        assert top1 == case.expected[f"knn.recompute_{name}_top1"], name


# ---- ends of stages ----


def test_end_of_generator(case):
    case.need("stop_gan.")
    lengths, all_losses = case.inputs["stop_gan.length"].tolist(), case.inputs["stop_gan.losses"].tolist()
    for is_first, name in ((True, "round0"), (False, "later")):
        ends = [official_gan_stop(row[:n], is_first) for row, n in zip(all_losses, lengths, strict=True)]
        assert ends == case.expected[f"stop_gan.{name}"].tolist(), name


def test_end_of_mining(case):
    case.need("stop_mining")
    case.need("mine.")
    config, links = case.info["config"], case.expected["mine.neighbour_count"].item()
    expected = case.expected["stop_mining"].tolist()
    ends = [
        [has_enough_neighbors(links, config["n_data"], number, aim) for number in range(len(row))]
        for aim, row in zip(config["per_grid"], expected, strict=True)
    ]
    assert ends == expected
