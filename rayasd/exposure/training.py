"""Train one machine's extractor by outlier exposure, from where the last checkpoint left off."""

import io
import json
import math
import pickle
import shutil
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from rayasd.config import Config
from rayasd.data.catalog import read_catalog
from rayasd.errors import UserError
from rayasd.exposure.batches import (
    Batch,
    BatchLoader,
    central_starts,
    epoch_batches,
    random_starts,
    steps_per_epoch,
    validation_batches,
)
from rayasd.exposure.clips import MachineClips, load_target_and_others
from rayasd.exposure.device import Compute, choose_compute
from rayasd.exposure.losses import Losses, find_losses, product_members
from rayasd.exposure.mixup import Targets, draw_mix, mixup, mixup_probability
from rayasd.exposure.network import Extractor, kept_path, kept_weights, save_extractor, save_weights
from rayasd.exposure.ranks import Ranks, on_ranks
from rayasd.files import replacing
from rayasd.randomness import generator, torch_seed
from rayasd.unit import Progress, Report, Stopped, UnitSpec, silent

STATE = "state.pt"
History = list[dict[str, Any]]
"""A row an epoch, as in history.jsonl."""


def train(spec: UnitSpec, report: Report = silent) -> None:
    """Train the extractor of ``spec.unit`` and write it to ``spec.output``.

    Writes model.safetensors, config.json, history.jsonl; every ``exposure.keep_every`` epochs, weights to choose from;
    and every ``exposure.checkpoint_every`` epochs, state.pt from which an interrupted training goes on to bit-identical
    weights (same device, number of ranks and thread count).

    ``spec.num_ranks`` processes share each batch. What is learned depends on their number: see docs/method.md.

    Raises:
        UserError: no second machine to learn from, or a loss that is no longer finite.
        Stopped: ``report`` answered True at an epoch's end; state.pt is of this epoch.

    """
    if spec.num_ranks > 1:
        on_ranks(_train, spec, report)
    else:
        _train(Ranks(), spec, report)


def _train(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Train as one of ``ranks``, all with equal weights; the first one alone validates, writes and is asked to stop."""
    exposure, seed = spec.config.exposure, spec.unit.seed
    target, others = load_target_and_others(read_catalog(spec.run.catalog, spec.data_root), spec, report)
    num_epochs, num_steps = exposure.epochs, steps_per_epoch(target, spec.config)
    training = Training.begin(ranks, spec, target, others, num_epochs * num_steps)
    history = training.resume(spec)
    if ranks.first:
        _write_history(spec, history)  # an earlier training's may be longer
        for epochs, path in kept_weights(spec.output).items():
            if epochs > len(history):
                path.unlink()
    report(Progress(len(history), num_epochs, note=_conditions(training, spec)))

    for epoch in range(len(history), num_epochs):
        training.extractor.train()
        sums = torch.zeros(3, device=training.compute.device)
        for batch in epoch_batches(target, others, spec.config, seed, epoch):
            learning_rate = training.learning_rate
            progress = (epoch * num_steps + batch.step) / (num_epochs * num_steps)
            sums += training.step(batch, (seed, target.name, epoch), progress)
            report(Progress(epoch, num_epochs, batch.num_clips))
        total, of_machine, of_product = (sums / num_steps).tolist()
        if not math.isfinite(total):
            raise UserError(
                f"{spec.unit}: the loss is {total} in epoch {epoch + 1}: lower exposure.learning_rate "
                f"(now {exposure.learning_rate:g})"
            )
        if not ranks.first:
            continue
        row = {
            "epoch": epoch + 1,
            "learning_rate": learning_rate,
            "mixup_probability": mixup_probability(exposure.mixup_schedule, (epoch + 1) / num_epochs),
            "loss": total,
            "machine_loss": of_machine,
            "product_loss": of_product,
            **training.validate(),
        }
        history.append(row)
        _write_history(spec, history)
        stop = report(Progress(epoch + 1, num_epochs, loss=total))
        if epoch + 1 == num_epochs:
            break
        if exposure.keep_every and (epoch + 1) % exposure.keep_every == 0:
            save_weights(kept_path(spec.output, epoch + 1), training.extractor)
        if stop or (epoch + 1) % exposure.checkpoint_every == 0:
            training.save(spec, history)
        if stop:
            raise Stopped(f"stopped after epoch {epoch + 1}")

    if ranks.first:
        save_extractor(spec.output, training.extractor, spec.config, target.sections)
        (spec.output / STATE).unlink(missing_ok=True)


@dataclass(frozen=True)
class Training:
    """An extractor in training, on one rank of those that train it."""

    ranks: Ranks
    config: Config
    compute: Compute
    extractor: Extractor
    model: torch.nn.Module
    """What a step runs: the extractor, data-parallel where there are several ranks."""
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.OneCycleLR
    losses: Losses
    loader: BatchLoader

    @classmethod
    def begin(
        cls, ranks: Ranks, spec: UnitSpec, target: MachineClips, others: Sequence[MachineClips], num_steps: int
    ) -> "Training":
        """Make the extractor with the unit's initial weights, and all that trains it in ``num_steps`` steps.

        Raises:
            UserError: an unknown loss or backbone, or ``exposure.compile`` where nothing can compile.

        """
        config, exposure = spec.config, spec.config.exposure
        compute = choose_compute(spec.device, config.network.precision)
        torch.manual_seed(torch_seed(spec.unit.seed, "weights", target.name))
        extractor = compute.place(Extractor(config, len(target.sections)))
        model = ranks.data_parallel(extractor)
        if exposure.compile:
            if not any(map(shutil.which, ("g++", "clang++"))):
                raise UserError("exposure.compile: there is neither g++ nor clang++ to compile with: install one")
            extractor.backbone.compile()
        optimizer = torch.optim.AdamW(
            extractor.parameters(), lr=exposure.learning_rate, weight_decay=exposure.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=exposure.learning_rate, total_steps=max(1, num_steps)
        )
        loader = BatchLoader(target, others, config, compute.device)
        return cls(ranks, config, compute, extractor, model, optimizer, schedule, find_losses(exposure), loader)

    @property
    def learning_rate(self) -> float:
        """Of the next step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def step(self, batch: Batch, key: tuple[int, str, int], progress: float) -> Tensor:
        """Do one optimiser step.

        Args:
            batch: of all ranks.
            key: seed, machine and epoch, of which the step's random numbers come.
            progress: share of the training that is done, 0 to 1.

        Returns:
            Total, machine and product loss, (3,), on the device.

        """
        ranks, exposure = self.ranks, self.config.exposure
        waveforms, targets, mixed = self._load(batch, progress, generator(*key, batch.step, "step"))
        torch.manual_seed(torch_seed(*key, batch.step, "dropout", *(() if ranks.first else (ranks.rank,))))
        with self.compute.autocast():
            output = self.model(waveforms)
        output = ranks.gather(output, batch.num_clips)
        machine_loss, product_loss = self.losses
        members = product_members(targets, mixed=mixed, rule=exposure.mixup_product_loss)
        of_machine, of_product = machine_loss(output, targets), product_loss(output, targets, members)
        loss = exposure.lambda_machine * of_machine + exposure.lambda_product * of_product
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        if self.schedule.last_epoch + 1 < self.schedule.total_steps:  # the last step has the last rate
            self.schedule.step()
        return torch.stack([loss, of_machine, of_product]).detach()

    def _load(self, batch: Batch, progress: float, rng: np.random.Generator) -> tuple[Tensor, Targets, bool]:
        """Load this rank's waveforms of a step and the whole batch's targets; tells whether they are mixed.

        Every rank draws the same for all clips, but reads its own clips and their partners alone, each once.
        """
        loader, exposure = self.loader, self.config.exposure
        rows, everyone = self.ranks.rows(batch.num_clips), np.arange(batch.num_clips)
        starts, targets = loader.starts(batch, random_starts(rng)), loader.targets(batch)
        if rng.random() >= mixup_probability(exposure.mixup_schedule, progress):
            return loader.waveforms(batch, starts, rows), targets, False
        mix = draw_mix(batch.num_clips, exposure.mixup_alpha, rng)
        needed = np.union1d(rows, mix.partner[rows])
        waveforms = mixup(loader.waveforms(batch, starts, needed), needed, mix, rows)
        return waveforms, Targets(*(mixup(values, everyone, mix, everyone) for values in targets)), True

    @torch.inference_mode()
    def validate(self) -> dict[str, float | None]:
        """Compute losses and hit rates on held-out clips, one central window each; nothing where none are held out."""
        exposure, (target, *others) = self.config.exposure, self.loader.machines
        self.extractor.eval()
        machine_loss, product_loss = self.losses
        machine_logits, machine_targets, sums, hits, count = [], [], [0.0, 0.0], 0, 0
        for batch in validation_batches(target, others, exposure.batch_size):
            waveforms, targets = self.loader.load(batch, central_starts)
            with self.compute.autocast():
                output = self.extractor(waveforms)
            members = product_members(targets, mixed=False, rule=exposure.mixup_product_loss)
            sums[0] += machine_loss(output, targets).item() * batch.num_clips
            sums[1] += product_loss(output, targets, members).item() * int(members.sum())
            guess = output.product_logits[members].argmax(dim=1)
            hits += int((guess == targets.product[members].argmax(dim=1)).sum())
            machine_logits.append(output.machine_logit)
            machine_targets.append(targets.machine)
            count += batch.num_clips
        if not machine_logits:
            return {}
        logits, truth = torch.cat(machine_logits), torch.cat(machine_targets)
        num_target = int(truth.sum())
        of_machine, of_product = sums[0] / count, sums[1] / num_target
        both_classes = 0 < num_target < len(truth)
        return {
            "validation_loss": exposure.lambda_machine * of_machine + exposure.lambda_product * of_product,
            "validation_machine_loss": of_machine,
            "validation_product_loss": of_product,
            "validation_machine_auc": (float(roc_auc_score(truth.cpu(), logits.cpu())) if both_classes else None),
            "validation_product_accuracy": hits / num_target,
        }

    def save(self, spec: UnitSpec, history: History) -> None:
        """Write state.pt, from which ``resume`` goes on."""
        state = {
            "identity": spec.identity,
            "model": self.extractor.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": json.dumps(history),
        }
        buffer = io.BytesIO()  # torch would hide what the system said of a full disk
        torch.save(state, buffer)
        with replacing(spec.output / STATE, parents=False) as path:
            path.write_bytes(buffer.getbuffer())

    def resume(self, spec: UnitSpec) -> History:
        """Load the last checkpoint of this unit's identity, if there is one; returns the history up to it."""
        path = spec.output / STATE
        if not path.exists():
            return []
        try:
            with zipfile.ZipFile(path) as archive:
                if archive.testzip():  # torch writes checksums and does not look at them
                    return []
            state = torch.load(path, map_location=self.compute.device, weights_only=True)
        except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error):
            return []  # damaged: the disk broke a promise, the epochs are lost, the unit is not
        if state["identity"] != spec.identity:  # of a configuration or data that have changed since
            return []
        self.extractor.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        history: History = json.loads(state["history"])
        return history


def _conditions(training: Training, spec: UnitSpec) -> str:
    """Say what a person should know of how the unit is trained."""
    together = f", {training.ranks.size} ranks" if training.ranks.size > 1 else ""
    weights = spec.config.network.pretrained or "random: network.pretrained names no file"
    return f"{training.compute.reason}{together}; backbone weights {weights}"


def _write_history(spec: UnitSpec, history: History) -> None:
    # parents=False, here and for weights: where the run has been unmounted, nothing is made below
    with replacing(spec.run.history(spec.unit), parents=False) as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
