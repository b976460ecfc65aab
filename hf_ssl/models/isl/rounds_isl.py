"""The rounds of ISL: the encoder is trained for some epochs; then, with the encoder at rest, generator and discriminator are
trained; then neighbors are mined, which the next round's training uses.

Trainer owns the epochs of the encoder. [`Rounds`] is called when one is over, and runs the other two stages as loops of its
own. Every number of a run is a function of the seed and of where the run is, so that it can be stopped and resumed after any
batch of any stage.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError
from torch import Tensor
from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from ...callbacks import ImagesPerSecondCallback, MethodCallback
from ...checkpoints import CheckpointError, checkpoint_path, replace_file
from ...evaluation.features import evaluation_mode
from ...evaluation.monitor import evenly_spaced_indices
from ...figures import plot_rounds
from ...stopping import at_epoch_end
from ...views import Draws, full_precision
from .mining import Links, Triplets, draw_triplets, nearest_rows, propose_links
from .progress_isl import Progress, read_state, write_state
from .proxy_training import ProxyTraining
from .stage_ends import GANEpoch, best_epoch, smoothed_quality, why_gan_ends, why_mining_ends


if TYPE_CHECKING:
    from ...trainer import SSLTrainer
    from .modeling_isl import ISLForPreTraining


logger = logging.get_logger(__name__)

ROUNDS_NAME = "rounds.safetensors"  # in a checkpoint: where the rounds were when it was written
STAGE_NAME = "stage.safetensors"  # beside it: where a stage is that follows
NEXT_STAGE_NAME = "next_stage"  # a file of this name in the run's folder ends the stage
# Numbers of epochs that orders and augmentations are drawn with: those of the encoder's training count from 0.
_EPOCHS_OF_A_STAGE = 1_000_000
_PROBE_EPOCH = _EPOCHS_OF_A_STAGE - 1
_STAGE_NUMBERS = {"gan": 1, "mining": 2}
_NEGATIVES_VIEW = 1  # draws of the view itself are those of view 0
_NUM_PROBES, _PROBES_AT_ONCE = 2048, 256
_MIN_WINDOW = 50


@dataclass
class Probe:
    """
    What the generator is judged by.

    Args:
        index (`torch.Tensor` of shape `(num_probes,)`, int64): Some of the training images.
        triplets ([`Triplets`]): A triplet of each.
        threshold (`torch.Tensor` of shape `(num_probes,)`): Similarity to an image of the last row in its window.
    """

    index: Tensor
    triplets: Triplets
    threshold: Tensor


class Rounds(MethodCallback):
    """
    Runs the rounds of a training.

    Args:
        trainer ([`~hf_ssl.trainer.SSLTrainer`]): The trainer, whose model is an [`ISLForPreTraining`].
    """

    def __init__(self, trainer: "SSLTrainer"):
        if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
            raise ValueError(
                "ISL's memory bank and generator are whole in each process: use DDP, not FSDP or DeepSpeed."
            )
        self.trainer = trainer
        self.model: ISLForPreTraining = trainer.model  # type: ignore[assignment]
        self.config = self.model.config
        self.progress = Progress()
        self.best: dict[str, Tensor] = {}

    # ---- what Trainer tells ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.model.bank is not None
        self.images_per_batch = args.train_batch_size * args.world_size
        self.progress, self.best = Progress(images_per_batch=self.images_per_batch), {}
        self.proxies = ProxyTraining(
            *(self.model.generator, self.model.discriminator, self.config.gan_learning_rate),
            betas=(self.config.gan_betas[0], self.config.gan_betas[1]),
            accelerator=self.trainer.accelerator,
        )
        self.num_epochs = math.ceil(state.max_steps / self.trainer.steps_per_epoch)
        if self.num_epochs < self.config.num_backbone_stages:
            raise ValueError(
                f"{self.num_epochs} epochs are too few for {self.config.num_backbone_stages} trainings of the encoder: raise "
                "--num_train_epochs (or --max_steps), or lower --num_rounds."
            )
        if self.trainer.checkpoint is not None:
            self._load(Path(self.trainer.checkpoint))
        else:
            self._forget_request()  # of an earlier run
        state.max_steps -= self.progress.forfeited_steps
        if self.progress.stage == "backbone" and state.global_step >= state.max_steps:
            self._end_training_of_encoder()  # killed between its last step and what follows
        self._name_progress_bar()
        self.after_epoch()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before the epoch's evaluation and checkpoint: if the stage ends, the checkpoint says so."""
        if not at_epoch_end(state) and state.global_step < state.max_steps:
            return
        progress, trainer = self.progress, self.trainer
        is_last = progress.round + 1 >= self.config.num_backbone_stages
        length = self._epoch_of_end(progress.round) - self._epoch_of_end(progress.round - 1)
        epochs_left = progress.first_epoch + length - state.global_step // trainer.steps_per_epoch
        steps_left = state.max_steps - state.global_step
        if not is_last:
            steps_left = min(steps_left, max(0, epochs_left) * trainer.steps_per_epoch)
        is_told = self._is_told_to_move_on()
        if steps_left and is_told:
            progress.forfeited_steps += steps_left
            state.max_steps -= steps_left
            steps_left = 0
            if state.global_step >= state.max_steps:
                control.should_training_stop = True
        if not steps_left:
            self._end_training_of_encoder()
            control.should_save |= args.save_strategy != "no"

    def _epoch_of_end(self, round_number: int) -> int:
        """Epoch after which a round's training of the encoder ends, if none is cut short: rounds are as equal as can be."""
        return -(-(round_number + 1) * self.num_epochs // self.config.num_backbone_stages)

    def _end_training_of_encoder(self) -> None:
        """Neighbors are not looked for after a training that was for those of the last round."""
        self.progress.stage = "gan" if self.progress.round < self.config.num_rounds else "done"

    def after_epoch(self) -> None:
        """Run the stages that follow, if the encoder's training has come to the end of a round."""
        if self.progress.stage == "backbone":
            return
        if not self.progress.gan_epochs and not self.progress.batch:
            self._forget_request()  # to end the encoder's training
        if self.progress.stage not in _STAGE_NUMBERS:
            return
        start = time.monotonic()
        with evaluation_mode(self.model):
            if self.progress.stage == "gan":
                self._train_gan()
            self._mine()
        self.trainer.between_epochs_seconds += time.monotonic() - start
        self._name_progress_bar()

    def results(self) -> dict[str, Any]:
        return {"rounds": self.progress.reports}

    def draw_figures(self, folder: Path) -> dict[str, str]:
        if not self.progress.reports:
            return {}
        plot_rounds(self.trainer.state.log_history, self.progress.reports, folder / "rounds.png")
        return {
            "rounds.png": "Each round's generator after each of its epochs (dot: the one used), and what was mined."
        }

    # ---- generator and discriminator ----

    def _train_gan(self) -> None:
        progress, config = self.progress, self.config
        is_first = self.trainer.is_world_process_zero()
        probe = self._make_probe() if is_first else None
        reason = None
        while reason is None:
            losses = self._gan_epoch()
            # Of several processes the first one measures: they have to come to the same end.
            measured = broadcast_object_list([None if probe is None else self._measure(probe, *losses)])[0]
            progress.gan_epochs.append(measured)
            progress.batch, progress.sums = 0, []
            self._log({f"gan_{name}": value for name, value in asdict(measured).items()})
            if best_epoch(progress.gan_epochs) == len(progress.gan_epochs) - 1:
                self.best = {name: tensor.clone() for name, tensor in self.proxies.tensors().items()}
            reason = why_gan_ends(progress.gan_epochs, progress.round == 0, progress.gan_steps, config)
            reason = "by hand" if self._is_told_to_move_on() else reason
            if reason is None:
                self._save_stage()
        number = len(progress.gan_epochs)
        if config.gan_stop == "quality":
            number = 1 + best_epoch(progress.gan_epochs)
            self.proxies.set_tensors(self.best)
        progress.reports.append(
            {
                "round": progress.round + 1,
                "gan_epochs": len(progress.gan_epochs),
                "gan_end": reason,
                "gan_epoch_used": number,
                **{f"gan_{name}": value for name, value in asdict(progress.gan_epochs[number - 1]).items()},
            }
        )
        progress.stage, progress.gan_epochs, self.best = "mining", [], {}
        self._save_stage()
        self._forget_request()

    def _gan_epoch(self) -> list[float]:
        """A step of both networks for each batch; the mean losses."""
        progress, number = self.progress, len(self.progress.gan_epochs)
        sums = self._own_sums()
        with self.proxies.trainable():
            for anchor, index, draws in self._features("gan", number):
                triplets = self._draw_triplets(anchor, index, draws)
                losses = self.proxies.step(triplets)
                sums += torch.stack([*losses, torch.ones_like(losses[0])]) * len(index)
                progress.gan_steps += 1
                if self.trainer.stop_callback.poll():
                    self._stop(self.trainer.accelerator.gather(sums).tolist())
        sums = self.trainer.accelerator.reduce(sums)
        return (sums[:2] / sums[2]).tolist()

    def _own_sums(self) -> Tensor:
        """This process's losses, and images, of the batches that an unfinished epoch has had."""
        saved, args = torch.tensor(self.progress.sums, dtype=torch.float64).view(-1, 3), self.trainer.args
        if len(saved) == args.world_size:
            own = saved[args.process_index]
        else:  # none, or those of another number of processes
            own = saved.sum(0) * (args.process_index == 0)
        return own.to(self.model.device)

    # ---- is it any good? ----

    @torch.no_grad()
    def _make_probe(self) -> Probe:
        """Some training images, the same for all epochs of a round, with the negatives that they have in all of these."""
        trainer, bank = self.trainer, self.model.bank
        assert bank is not None
        index = evenly_spaced_indices(len(bank), _NUM_PROBES)
        number = self._epoch_number("gan", _PROBE_EPOCH)
        window = min(max(_MIN_WINDOW, math.ceil(self.config.agreement_window * len(bank))), len(bank) - 1)
        triplets, thresholds = [], []
        for rows in index.split(_PROBES_AT_ONCE):
            batch = trainer.train_dataset.__getitems__([(number, i) for i in rows.tolist()])  # type: ignore[union-attr]
            batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
            anchor = self._encode(trainer.views(batch, None))
            draws = self._draws(batch)
            triplets.append(self._draw_triplets(anchor, batch["index"], draws))
            thresholds.append(nearest_rows(anchor, bank.rows, window, own=batch["index"])[0][:, -1])
        joined = Triplets(*(torch.cat(parts) for parts in zip(*triplets, strict=True)))
        return Probe(index.to(self.model.device), joined, torch.cat(thresholds))

    @torch.no_grad()
    def _measure(self, probe: Probe, d_loss: float, g_loss: float) -> GANEpoch:
        """What mining would come to now, without labels."""
        alignment, num_links, num_agreeing = 0.0, 0, 0
        assert self.model.bank is not None
        rows = self.model.bank.rows
        for some in torch.arange(len(probe.index)).split(_PROBES_AT_ONCE):
            part = slice(int(some[0]), int(some[-1]) + 1)
            triplets = Triplets(*(tensor[part] for tensor in probe.triplets))
            proxies, links = self._propose(triplets, probe.index[part])
            similarity = torch.einsum("bd,bkd->bk", triplets.anchor, rows[links.neighbors])
            agrees = links.kept & (similarity >= probe.threshold[part, None])
            alignment += (proxies * triplets.anchor).sum().item()
            num_links, num_agreeing = num_links + int(links.kept.sum()), num_agreeing + int(agrees.sum())
        links_per_image, agreement = num_links / len(probe.index), num_agreeing / num_links if num_links else 0.0
        previous = self.progress.gan_epochs[-1] if self.progress.gan_epochs else None
        quality = smoothed_quality(previous, links_per_image, agreement, self.config.neighbors_per_round)
        return GANEpoch(d_loss, g_loss, alignment / len(probe.index), links_per_image, agreement, quality)

    def _propose(self, triplets: Triplets, index: Tensor) -> tuple[Tensor, Links]:
        """Proxies of a batch, and the links that they stand for."""
        assert self.model.bank is not None
        config = self.config
        with full_precision(index.device):
            proxies = self.model.generator(*triplets)
            scores = self.model.discriminator(triplets.anchor, proxies, triplets.negative)
            links = propose_links(
                *(self.model.bank.rows, proxies, scores, index),
                score_threshold=config.score_threshold,
                similarity_threshold=config.similarity_threshold,
                count=config.links_per_proxy,
            )
        return proxies, links

    # ---- mining ----

    def _mine(self) -> None:
        progress, bank = self.progress, self.model.bank
        assert bank is not None
        reason = None
        while reason is None:
            progress.new_links.append(self._mining_pass())
            progress.batch, progress.sums = 0, []
            self._log(
                {
                    "mining_new_links": progress.new_links[-1],
                    "mining_neighbors_per_image": len(bank.neighbors) / len(bank),
                }
            )
            reason = why_mining_ends(progress.new_links, len(bank.neighbors), len(bank), progress.round, self.config)
            reason = "by hand" if self._is_told_to_move_on() else reason
            if reason is None:
                self._save_stage()
        if reason not in ("enough neighbors", "by hand"):
            logger.warning(
                f"Round {progress.round + 1}: mining ends ({reason}) with {len(bank.neighbors) / len(bank):.3f} neighbors of "
                f"an image in the mean; {(progress.round + 1) * self.config.neighbors_per_round:g} were aimed at."
            )
        self._report(reason)
        has_more = progress.round + 1 < self.config.num_backbone_stages
        epoch = self.trainer.state.global_step // self.trainer.steps_per_epoch
        progress.stage, progress.round = ("backbone" if has_more else "done"), progress.round + 1
        progress.first_epoch, progress.new_links = epoch, []
        self._save_stage()
        self._forget_request()

    def _report(self, reason: str) -> None:
        """What came of the round, added to what is known of its generator."""
        bank, labels = self.model.bank, getattr(self.trainer.train_dataset, "labels", None)
        assert bank is not None
        links, count = bank.neighbors.links.cpu(), len(bank)
        report = self.progress.reports[-1]
        report |= {
            "mining_passes": len(self.progress.new_links),
            "mining_end": reason,
            "neighbors_per_image": len(links) / count,
            "images_with_neighbors": (bank.neighbors.offsets.diff() > 0).double().mean().item(),
        }
        if labels is not None and len(links):
            report["label_agreement"] = (labels[links // count] == labels[links % count]).double().mean().item()
        mined = ("neighbors_per_image", "images_with_neighbors", "label_agreement")
        self._log({name: report[name] for name in mined if name in report})

    @torch.no_grad()
    def _mining_pass(self) -> int:
        """Every image once; the number of links that are new."""
        progress, bank = self.progress, self.model.bank
        assert bank is not None
        new_links = int(sum(progress.sums))
        for anchor, index, draws in self._features("mining", len(progress.new_links)):
            links = self._propose(self._draw_triplets(anchor, index, draws), index)[1]
            pairs = torch.stack([index[:, None].expand_as(links.neighbors), links.neighbors], dim=-1)
            pairs = self.trainer.accelerator.gather(torch.where(links.kept[..., None], pairs, -1).flatten(0, 1))
            pairs = pairs[pairs[:, 0] >= 0]
            new_links += bank.neighbors.add(pairs[:, 0], pairs[:, 1])
            if self.trainer.stop_callback.poll():
                self._stop([float(new_links)])
        return new_links

    # ---- what both stages share ----

    def _features(self, stage: str, number: int) -> Iterator[tuple[Tensor, Tensor, Draws]]:
        """Features of all training images in a batch after the other, with what batches are drawn with."""
        progress, args = self.progress, self.trainer.args
        total, batches = self.trainer.extra_batches(self._epoch_number(stage, number), progress.batch)
        unit = "generator, epoch" if stage == "gan" else "mining, pass"
        with tqdm(
            total=total,
            initial=progress.batch,
            desc=f"round {progress.round + 1}/{self.config.num_backbone_stages}, {unit} {number + 1}",
            postfix=self._shown(),
            disable=args.disable_tqdm or not self.trainer.is_local_process_zero(),
            leave=False,
        ) as bar:
            for batch in batches:
                with torch.no_grad():
                    anchor = self._encode(batch)
                progress.batch += 1
                yield anchor, batch["index"], self._draws(batch)
                bar.update()

    def _shown(self) -> dict[str, str]:
        """The numbers of the epoch or pass before, for the progress bar."""
        progress = self.progress
        if progress.stage == "gan" and progress.gan_epochs:
            last = progress.gan_epochs[-1]
            return {
                "D": f"{last.discriminator_loss:.3f}",
                "G": f"{last.generator_loss:.3f}",
                "links": f"{last.links_per_image:.2f}",
                "agreement": f"{last.agreement:.2f}",
            }
        assert self.model.bank is not None
        return {"neighbors": f"{len(self.model.bank.neighbors) / len(self.model.bank):.2f}"}

    @torch.no_grad()
    def _encode(self, batch: dict[str, Tensor]) -> Tensor:
        with self.trainer.accelerator.autocast():
            return self.model.encode(batch["pixel_values"])

    def _draws(self, batch: dict[str, Tensor]) -> Draws:
        return Draws.for_samples(self.trainer.args.seed, batch["epoch"], batch["index"], view=_NEGATIVES_VIEW)

    def _draw_triplets(self, anchor: Tensor, index: Tensor, draws: Draws) -> Triplets:
        assert self.model.bank is not None
        with full_precision(anchor.device):
            return draw_triplets(
                *(self.model.bank, anchor, index, draws, self.config.num_negatives),
                positive_from_neighbors=self.config.positive_from == "neighbors",
            )

    def _epoch_number(self, stage: str, number: int) -> int:
        return (2 * self.progress.round + _STAGE_NUMBERS[stage]) * _EPOCHS_OF_A_STAGE + number

    def _is_told_to_move_on(self) -> bool:
        """Whether the file is there by which a person ends a stage."""
        return self._ask_first((self.trainer.output_dir / NEXT_STAGE_NAME).is_file())

    def _forget_request(self) -> None:
        """Remove that file, once what it asked for is written down."""
        if self.trainer.is_world_process_zero():
            (self.trainer.output_dir / NEXT_STAGE_NAME).unlink(missing_ok=True)

    @staticmethod
    def _ask_first(answer: bool) -> bool:
        """What the first process sees in the file system, so that all do the same."""
        told: bool = broadcast_object_list([answer])[0]
        return told

    def _stop(self, sums: list[float]) -> None:
        """After a batch: write a checkpoint, with these sums over the batches until now, and end the run."""
        self.progress.sums = sums
        self._save_stage(force=True)
        self.trainer.interrupt()

    def _log(self, values: dict[str, float]) -> None:
        self.trainer.log(values)
        self.progress.logs.append(self.trainer.state.log_history[-1])

    def _name_progress_bar(self) -> None:
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, ImagesPerSecondCallback) and callback.training_bar is not None:
                stages = self.config.num_backbone_stages
                number = min(self.progress.round + 1, stages)
                callback.training_bar.set_description(f"round {number}/{stages}, encoder")

    # ---- state ----

    def _write(self, path: Path) -> None:
        assert self.model.bank is not None
        tensors = {f"now.{name}": tensor for name, tensor in self.proxies.tensors().items()}
        tensors |= {f"best.{name}": tensor for name, tensor in self.best.items()}
        tensors["links"] = self.model.bank.neighbors.links
        write_state(path, self.progress, tensors)

    def save_state(self, folder: Path) -> None:
        self.progress.logs = []  # Trainer's own log is in the checkpoint
        if self.trainer.args.should_save:
            self._write(folder / ROUNDS_NAME)

    def _save_stage(self, force: bool = False) -> None:
        """Write where the stage is beside the checkpoint that it follows; that is far less than a checkpoint."""
        args = self.trainer.args
        folder = checkpoint_path(self.trainer.output_dir, self.trainer.state.global_step)
        if self._ask_first(folder.is_dir()):
            if args.should_save:
                self._write_stage(folder)
        elif force or args.save_strategy != "no":
            self.trainer._save_checkpoint(self.trainer.model, None)
        self.trainer.accelerator.wait_for_everyone()

    def _write_stage(self, folder: Path) -> None:
        try:
            replace_file(folder / STAGE_NAME, self._write)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"The state of the {self.progress.stage} stage could not be written to {folder}: {error}. {folder.name} is "
                "as it was. Make room, or the folder writable, and resume with --resume_from_checkpoint true."
            ) from error

    def _load(self, checkpoint: Path) -> None:
        try:
            self._read(checkpoint / STAGE_NAME)
            self.trainer.state.log_history += self.progress.logs
        except FileNotFoundError:
            self._read(checkpoint / ROUNDS_NAME)
        except (SafetensorError, ValueError, TypeError, KeyError) as error:
            logger.warning(
                f"{checkpoint / STAGE_NAME} is damaged ({error}): the stage begins anew, and comes to the same."
            )
            self._read(checkpoint / ROUNDS_NAME)

    def _read(self, path: Path) -> None:
        assert self.model.bank is not None
        self.progress, tensors = read_state(path)
        if self.progress.images_per_batch != self.images_per_batch:  # its batches are no longer those
            self.progress.batch, self.progress.sums = 0, []
        self.progress.images_per_batch = self.images_per_batch
        self.model.bank.neighbors.set_links(tensors.pop("links"))
        parts: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}}
        for full_name, tensor in tensors.items():
            part, _, name = full_name.partition(".")
            # Adam counts its steps on the CPU.
            parts[part][name] = tensor if name.endswith(".step") else tensor.to(self.model.device)
        self.proxies.set_tensors(parts["now"])
        self.best = parts["best"]


__all__ = ["NEXT_STAGE_NAME", "ROUNDS_NAME", "STAGE_NAME", "Rounds"]
