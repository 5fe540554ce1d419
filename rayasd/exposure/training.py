"""Train a network, from where the last checkpoint left off."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ConstantLR, LRScheduler, OneCycleLR

from rayasd.arrays import Indices
from rayasd.data.catalog import read_catalog
from rayasd.errors import UserError
from rayasd.exposure.batches import Batch, BatchLoader, steps_per_epoch, validation_batches
from rayasd.exposure.clips import MachineClips, load_training_machines
from rayasd.exposure.device import choose_compute
from rayasd.exposure.encoders.weights import TROUBLES, read_torch
from rayasd.exposure.mixing import Noise, draw_mix, mixup, mixup_probability
from rayasd.exposure.network import Network, kept_path, kept_weights, save_network, save_weights
from rayasd.exposure.objectives import Evaluated, find_classes, find_objective
from rayasd.exposure.pseudo_attributes import with_pseudo_attributes, write_clusters
from rayasd.exposure.ranks import Ranks, on_ranks
from rayasd.files import digest, replacing
from rayasd.randomness import generator, torch_seed
from rayasd.stages import NumClips
from rayasd.unit import STATE, Progress, Report, Stopped, UnitSpec, silent

_MOST_EPOCHS = 32767  # what the column of checkpoints holds
History = list[dict[str, Any]]  # a row per epoch, as in history.jsonl


def train(spec: UnitSpec, report: Report = silent) -> None:
    """Train the network of ``spec.unit`` and write it to ``spec.output``.

    Writes model.safetensors, config.json, history.jsonl; every ``exposure.keep_every`` epochs, weights to choose from;
    and every ``exposure.checkpoint_every`` epochs, state.pt from which an interrupted training goes on to bit-identical
    weights (same device, number of ranks and thread count).

    ``spec.num_ranks`` processes share each batch. What is learned depends on their number: see docs/method.md.

    Raises UserError: no second machine to learn from, too few classes, or a loss that is no longer finite; Stopped:
    ``report`` answered True at an epoch's end; state.pt is of this epoch.
    """
    if spec.num_ranks > 1:
        on_ranks(_train, spec, report)
    else:
        _train(Ranks(), spec, report)


def _train(ranks: Ranks, spec: UnitSpec, report: Report) -> None:
    """Train as one of ``ranks``, all with equal weights; the first one alone validates, writes and is asked to stop."""
    config, seed, machine = spec.config, spec.unit.seed, spec.unit.machine
    exposure = config.exposure
    catalog = read_catalog(spec.run.catalog, spec.data_root)
    machines = load_training_machines(catalog, spec, report)
    num_steps, num_epochs = steps_per_epoch(machines, config), NumClips.of(catalog.table).epochs(config)
    if num_epochs > _MOST_EPOCHS:
        raise UserError(f"{spec.unit}: {num_epochs} epochs of {num_steps} steps, at most {_MOST_EPOCHS} are possible: "
                        "lower exposure.epochs or exposure.min_steps")  # fmt: skip
    training = Training(ranks, spec, machines, num_epochs * num_steps, report)
    history = training.resume()
    if ranks.first:
        write_clusters(spec.output, training.loader.machines)
        _write_history(spec, history)  # an earlier training's may be longer
        for epochs, path in kept_weights(spec.output).items():
            if epochs > len(history):
                path.unlink()
    report(Progress(len(history), num_epochs, note=training.conditions))

    for epoch in range(len(history), num_epochs):
        training.network.train()
        parts = ("loss", *training.network.objective.parts)
        sums = torch.zeros(len(parts), device=training.compute.device)
        for batch in training.network.objective.batches(training.loader.machines, config, seed, epoch):
            learning_rate = float(training.optimizer.param_groups[0]["lr"])
            progress = (epoch * num_steps + batch.step) / (num_epochs * num_steps)
            losses = training.step(batch, (seed, machine, epoch), progress)
            sums += torch.stack([losses[part] for part in parts])
            report(Progress(epoch, num_epochs, batch.num_clips))
        means = dict(zip(parts, (sums / num_steps).tolist(), strict=True))
        if not math.isfinite(means["loss"]):
            raise UserError(
                f"{spec.unit}: the loss is {means['loss']} in epoch {epoch + 1}: lower exposure.learning_rate "
                f"(now {exposure.learning_rate:g})"
            )
        if not ranks.first:
            continue
        row = {
            "epoch": epoch + 1,
            "learning_rate": learning_rate,
            "mixup_probability": mixup_probability(exposure.mixup_schedule, (epoch + 1) / num_epochs),
            **means,
            **training.validate(),
        }
        history.append(row)
        _write_history(spec, history)
        stop = report(Progress(epoch + 1, num_epochs, loss=means["loss"]))
        if epoch + 1 == num_epochs:
            break
        if exposure.keep_every and (epoch + 1) % exposure.keep_every == 0:
            save_weights(kept_path(spec.output, epoch + 1), training.network)
        if stop or (epoch + 1) % exposure.checkpoint_every == 0:
            training.save(history)
        if stop:
            raise Stopped(f"stopped after epoch {epoch + 1}")

    if ranks.first:
        save_network(spec.output, training.network, config, num_epochs)
        (spec.output / STATE).unlink(missing_ok=True)


class Training:
    """A network in training, on one rank of those that train it."""

    def __init__(
        self, ranks: Ranks, spec: UnitSpec, machines: Sequence[MachineClips], num_steps: int, report: Report = silent
    ) -> None:
        """Make the network with the unit's initial weights, and all that trains it in ``num_steps`` steps.

        Raises UserError: an unknown objective, encoder or backbone, or too few classes.
        """
        self.ranks, self.spec, self.num_steps = ranks, spec, max(1, num_steps)
        config, exposure = spec.config, spec.config.exposure
        self.compute = choose_compute(spec.device, config.network.arithmetic)
        objective, _ = find_objective(config)
        machines = [
            with_pseudo_attributes(clips, config, self.compute, spec.cache, report)
            if clips.name == spec.unit.machine or not objective.of_target_alone
            else clips
            for clips in machines
        ]
        names, classes = find_classes(objective, config, machines, spec.unit.machine)
        torch.manual_seed(torch_seed(spec.unit.seed, "weights", spec.unit.machine))
        self.network = self.compute.place(Network(config, names))
        self.extractor = ranks.data_parallel(self.network.extractor)  # makes a step's embeddings, on all ranks
        learned = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        if not learned:
            raise UserError("neither encoder nor neck nor objective has parameters: set network.train = frozen")
        rate = exposure.learning_rate
        self.optimizer = torch.optim.AdamW(learned, lr=rate, weight_decay=exposure.weight_decay)
        self.schedule: LRScheduler = (
            OneCycleLR(self.optimizer, max_lr=rate, total_steps=self.num_steps)
            if exposure.schedule == "one-cycle"
            else ConstantLR(self.optimizer, factor=1.0)
        )
        self.loader = BatchLoader(machines, classes, config, self.compute.device, self.network.extractor.scaling)
        self.noise = Noise(machines, exposure.supplemental_noise)

    def step(self, batch: Batch, key: tuple[int, str, int], progress: float) -> dict[str, Tensor]:
        """Do one optimiser step.

        ``batch``: of all ranks; ``key``: seed, machine and epoch, of which the step's random numbers come;
        ``progress``: share of the training that is done, 0 to 1.

        Returns the loss and its parts by name, on the device.
        """
        ranks, objective = self.ranks, self.network.objective
        waveforms, targets, mixed = self._load(batch, progress, key)
        torch.manual_seed(torch_seed(*key, batch.step, "dropout", *(() if ranks.first else (ranks.rank,))))
        with self.compute.autocast():
            embedding = self.extractor(waveforms)
        embedding = ranks.gather(embedding, batch.num_clips)
        torch.manual_seed(torch_seed(*key, batch.step, "objective"))  # every rank computes the whole batch's loss
        losses = objective.losses(embedding, targets, mixed=mixed)
        self.optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        ranks.average_gradients(objective)
        self.optimizer.step()
        if self.schedule.last_epoch + 1 < self.num_steps:  # the last step has the last rate
            self.schedule.step()
        return {name: value.detach() for name, value in losses.items()}

    def _load(self, batch: Batch, progress: float, key: tuple[int, str, int]) -> tuple[Tensor, Tensor, bool]:
        """Load this rank's waveforms of a step and the whole batch's targets; tells whether they are mixed.

        Every rank draws the same for all clips, but reads its own clips and their partners alone, each once.
        """
        loader, exposure = self.loader, self.spec.config.exposure
        rng = generator(*key, batch.step, "step")
        rows, everyone = self.ranks.rows(batch.num_clips), np.arange(batch.num_clips)
        starts = rng.integers(0, loader.slack(batch) + 1)

        def noisy(rows: Indices) -> Tensor:
            return self.noise.mixed(loader.waveforms(batch, starts, rows), batch.num_clips, rows, (*key, batch.step))

        targets = self.network.objective.targets(*loader.classes_of(batch))
        if rng.random() >= mixup_probability(exposure.mixup_schedule, progress):
            return noisy(rows), targets, False
        share = 0.5 if exposure.mixup_schedule == "half" else 1.0
        mix = draw_mix(batch.num_clips, exposure.mixup_alpha, rng, share=share)
        needed = np.union1d(rows, mix.partner[rows])
        waveforms = mixup(noisy(needed), needed, mix, rows)
        return waveforms, mixup(targets, everyone, mix, everyone), True

    @torch.inference_mode()
    def validate(self) -> dict[str, float | None]:
        """Evaluate the objective on held-out clips, one central window each; nothing where none are held out."""
        self.network.eval()
        return self.network.objective.evaluate(self._validation())

    def _validation(self) -> Evaluated:
        for batch in validation_batches(self.loader.machines, self.spec.config):
            starts = self.loader.slack(batch) // 2  # in the middle of each clip
            waveforms = self.loader.waveforms(batch, starts, np.arange(batch.num_clips))
            with self.compute.autocast():
                embedding = self.network.extractor(waveforms)
            yield embedding, self.network.objective.targets(*self.loader.classes_of(batch))

    @property
    def _classes(self) -> str:
        """Digest of the classes and of each clip's."""
        return digest([self.network.objective.classes, [of_clips.tolist() for of_clips in self.loader.classes]])

    @property
    def conditions(self) -> str:
        """Notes about how the unit is trained."""
        network, size = self.spec.config.network, self.ranks.size
        how = "" if network.train == "full" else f", train {network.train}"
        device = self.compute.reason + (f", {size} ranks" if size > 1 else "")
        if network.encoder.partition("(")[0] != "mel-timm":
            return f"{device}; encoder {network.encoder}{how}"
        return f"{device}; backbone weights {network.pretrained or 'random: network.pretrained names no file'}{how}"

    def save(self, history: History) -> None:
        """Write state.pt, from which ``resume`` goes on."""
        state = {
            "identity": self.spec.identity,
            "classes": self._classes,
            "model": self.network.saved_state(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "history": json.dumps(history),
        }
        buffer = io.BytesIO()  # torch would hide what the system said of a full disk
        torch.save(state, buffer)
        with replacing(self.spec.output / STATE, parents=False) as path:
            path.write_bytes(buffer.getbuffer())

    def resume(self) -> History:
        """Load the last checkpoint of this unit's identity, if there is one; returns the history up to it."""
        path = self.spec.output / STATE
        if not path.exists():
            return []
        try:
            state = read_torch(path, self.compute.device)
        except OSError:
            raise  # the file system's error says what is wrong
        except TROUBLES:
            return []  # damaged: the epochs are lost, and the unit begins again
        if state["identity"] != self.spec.identity or state.get("classes") != self._classes:
            return []  # configuration or data have changed since, or another host has clustered the clips otherwise
        self.network.load_saved_state(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        history: History = json.loads(state["history"])
        return history


def _write_history(spec: UnitSpec, history: History) -> None:
    # parents=False, here and for weights: where the run has been unmounted, nothing is made below
    with replacing(spec.run.history(spec.unit), parents=False) as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
