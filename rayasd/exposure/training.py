"""Train one machine's extractor by outlier exposure, from where the last checkpoint left off."""

import io
import json
import math
import pickle
import shutil
import zipfile
import zlib
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from rayasd.config import Config, ExposureConfig
from rayasd.data.catalog import Catalog, check_outlier_exposure, read_catalog
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
from rayasd.exposure.clips import MachineClips, exposed_anomalies, load_machine
from rayasd.exposure.device import Compute, choose_compute
from rayasd.exposure.losses import Losses, find_losses, product_members
from rayasd.exposure.mixup import Targets, draw_mix, mixup, mixup_probability
from rayasd.exposure.network import Extractor, kept_path, kept_weights, save_extractor, save_weights
from rayasd.exposure.ranks import Ranks, on_ranks
from rayasd.files import replacing
from rayasd.randomness import generator, torch_seed
from rayasd.unit import Progress, Report, Stopped, UnitSpec, silent

STATE = "state.pt"


def train(spec: UnitSpec, report: Report = silent) -> None:
    """Train the extractor of ``spec.unit`` and write it to ``spec.output``.

    Writes model.safetensors, config.json, history.jsonl; every ``exposure.keep_every`` epochs, weights to choose from;
    and every ``exposure.checkpoint_every`` epochs, state.pt from which an interrupted training goes on to bit-identical
    weights (same device, number of ranks and thread count).

    ``spec.num_ranks`` processes share each batch; up to rounding, what is learned does not depend on their number.

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
    config, machine, seed = spec.config, spec.unit.machine, spec.unit.seed
    compute = choose_compute(spec.device, config.network.precision)
    catalog = read_catalog(spec.run.catalog, spec.data_root)
    target, others = load_target_and_others(catalog, spec, report)
    total_epochs, num_steps = config.exposure.epochs, steps_per_epoch(target, config)

    torch.manual_seed(torch_seed(seed, "weights", machine))
    extractor = compute.place(Extractor(config, len(target.sections)))
    if config.exposure.compile:
        _compile(extractor)
    optimizer = torch.optim.AdamW(
        extractor.parameters(), lr=config.exposure.learning_rate, weight_decay=config.exposure.weight_decay
    )
    schedule = (
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=config.exposure.learning_rate, total_steps=total_epochs * num_steps
        )
        if total_epochs
        else None
    )
    losses = find_losses(config.exposure)
    loader = BatchLoader(target, others, config, compute.device)
    weights = config.network.pretrained or "random: network.pretrained names no file"
    history = _resume(spec, extractor, optimizer, schedule, compute)
    if ranks.first:
        _write_history(spec, history)  # an earlier training's may be longer
        for epochs, path in kept_weights(spec.output).items():
            if epochs > len(history):
                path.unlink()
    together = f", {ranks.size} ranks" if ranks.size > 1 else ""
    report(Progress(len(history), total_epochs, note=f"{compute.reason}{together}; backbone weights {weights}"))

    for epoch in range(len(history), total_epochs):
        extractor.train()
        sums = torch.zeros(3, device=compute.device)
        for batch in epoch_batches(target, others, config, seed, epoch):
            progress = (epoch * num_steps + batch.step) / (total_epochs * num_steps)
            learning_rate = optimizer.param_groups[0]["lr"]
            sums += _step(
                ranks, extractor, optimizer, loader, batch, config, losses, compute, (seed, machine, epoch), progress
            )  # fmt: skip
            assert schedule is not None
            if schedule.last_epoch + 1 < schedule.total_steps:  # the last step has the last rate
                schedule.step()
            report(Progress(epoch, total_epochs, batch.num_clips))
        total, of_machine, of_product = (sums / num_steps).tolist()
        if not math.isfinite(total):
            raise UserError(
                f"{spec.unit}: the loss is {total} in epoch {epoch + 1}: lower exposure.learning_rate "
                f"(now {config.exposure.learning_rate:g})"
            )
        if not ranks.first:
            continue
        row = {
            "epoch": epoch + 1,
            "learning_rate": learning_rate,
            "mixup_probability": mixup_probability(config.exposure.mixup_schedule, (epoch + 1) / total_epochs),
            "loss": total,
            "machine_loss": of_machine,
            "product_loss": of_product,
            **_validate(extractor, loader, target, others, config, losses, compute),
        }
        history.append(row)
        _write_history(spec, history)
        stop = report(Progress(epoch + 1, total_epochs, loss=total))
        if config.exposure.keep_every and (epoch + 1) % config.exposure.keep_every == 0 and epoch + 1 < total_epochs:
            save_weights(kept_path(spec.output, epoch + 1), extractor)
        if epoch + 1 < total_epochs and (stop or (epoch + 1) % config.exposure.checkpoint_every == 0):
            _checkpoint(spec, extractor, optimizer, schedule, history)
        if epoch + 1 < total_epochs and stop:
            raise Stopped(f"stopped after epoch {epoch + 1}")

    if ranks.first:
        save_extractor(spec.output, extractor, config, target.sections)
        (spec.output / STATE).unlink(missing_ok=True)


def _compile(extractor: Extractor) -> None:
    if not any(map(shutil.which, ("g++", "clang++"))):
        raise UserError("exposure.compile: there is neither g++ nor clang++ to compile with")
    extractor.backbone.compile()


def load_target_and_others(
    catalog: Catalog, spec: UnitSpec, report: Report = silent
) -> tuple[MachineClips, list[MachineClips]]:
    """Load the unit's machine and what its pseudo-anomalous clips come from.

    These are the normal clips of all other machines that are present, and its own exposed anomalies.

    Raises:
        UserError: there is no other machine with training clips.

    """
    check_outlier_exposure(catalog, [spec.unit.machine])
    target = load_machine(catalog, spec.unit.machine, spec, report)
    others = [load_machine(catalog, name, spec, report) for name in sorted(catalog.trained - {target.name})]
    exposed = exposed_anomalies(target, spec.config.exposure.real_anomalies_per_batch)
    return target, [*others, exposed] if len(exposed.training) else others


def _step(
    ranks: Ranks,
    extractor: Extractor,
    optimizer: torch.optim.Optimizer,
    loader: BatchLoader,
    batch: Batch,
    config: Config,
    losses: Losses,
    compute: Compute,
    key: tuple[int, str, int],
    progress: float,
) -> Tensor:
    """Do one optimiser step; returns total, machine and product loss, (3,), on the device."""
    exposure = config.exposure
    rng = generator(*key, batch.step, "step")
    waveforms, targets, mixed = _load(ranks, loader, batch, exposure, progress, rng)
    torch.manual_seed(torch_seed(*key, batch.step, "dropout"))
    with ranks.whole_batch(batch.num_clips), compute.autocast():
        output = extractor(waveforms)
    output = ranks.gather(output, batch.num_clips)
    machine_loss, product_loss = losses
    members = product_members(targets, mixed=mixed, rule=exposure.mixup_product_loss)
    of_machine, of_product = machine_loss(output, targets), product_loss(output, targets, members)
    loss = exposure.lambda_machine * of_machine + exposure.lambda_product * of_product
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    ranks.sum_gradients(extractor.parameters())
    optimizer.step()
    return torch.stack([loss, of_machine, of_product]).detach()


def _load(
    ranks: Ranks,
    loader: BatchLoader,
    batch: Batch,
    exposure: ExposureConfig,
    progress: float,
    rng: np.random.Generator,
) -> tuple[Tensor, Targets, bool]:
    """Load this rank's waveforms of a step and the whole batch's targets; tells whether they are mixed.

    Every rank draws the same for all clips, but reads its own clips and their partners alone, each once.
    """
    rows, everyone = ranks.rows(batch.num_clips), np.arange(batch.num_clips)
    starts, targets = loader.starts(batch, random_starts(rng)), loader.targets(batch)
    if rng.random() >= mixup_probability(exposure.mixup_schedule, progress):
        return loader.waveforms(batch, starts, rows), targets, False
    mix = draw_mix(batch.num_clips, exposure.mixup_alpha, rng)
    needed = np.union1d(rows, mix.partner[rows])
    waveforms = mixup(loader.waveforms(batch, starts, needed), needed, mix, rows)
    return waveforms, Targets(*(mixup(values, everyone, mix, everyone) for values in targets)), True


@torch.inference_mode()
def _validate(
    extractor: Extractor,
    loader: BatchLoader,
    target: MachineClips,
    others: list[MachineClips],
    config: Config,
    losses: Losses,
    compute: Compute,
) -> dict[str, float | None]:
    """Losses and hit rates on held-out clips, one central window each; nothing where none are held out."""
    extractor.eval()
    machine_loss, product_loss = losses
    machine_logits, machine_targets, sums, hits, count = [], [], [0.0, 0.0], 0, 0
    for batch in validation_batches(target, others, config.exposure.batch_size):
        waveforms, targets = loader.load(batch, central_starts)
        with compute.autocast():
            output = extractor(waveforms)
        members = product_members(targets, mixed=False, rule=config.exposure.mixup_product_loss)
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
    exposure = config.exposure
    both_classes = 0 < num_target < len(truth)
    return {
        "validation_loss": exposure.lambda_machine * of_machine + exposure.lambda_product * of_product,
        "validation_machine_loss": of_machine,
        "validation_product_loss": of_product,
        "validation_machine_auc": (float(roc_auc_score(truth.cpu(), logits.cpu())) if both_classes else None),
        "validation_product_accuracy": hits / num_target,
    }


def _checkpoint(spec: UnitSpec, extractor: Any, optimizer: Any, schedule: Any, history: list[Any]) -> None:
    state = {
        "identity": spec.identity,
        "model": extractor.state_dict(),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "history": json.dumps(history),
    }
    buffer = io.BytesIO()  # torch would hide what the system said of a full disk
    torch.save(state, buffer)
    with replacing(spec.output / STATE, parents=False) as path:
        path.write_bytes(buffer.getbuffer())


def _resume(spec: UnitSpec, extractor: Any, optimizer: Any, schedule: Any, compute: Compute) -> list[dict[str, Any]]:
    """Load the last checkpoint of this unit's identity, if there is one; returns the history up to it."""
    path = spec.output / STATE
    if not path.exists() or schedule is None:
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip():  # torch writes checksums and does not look at them
                return []
        state = torch.load(path, map_location=compute.device, weights_only=True)
    except (RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error):
        return []  # damaged: the disk broke a promise, the epochs are lost, the unit is not
    if state["identity"] != spec.identity:  # of a configuration or data that have changed since
        return []
    extractor.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    history: list[dict[str, Any]] = json.loads(state["history"])
    return history


def _write_history(spec: UnitSpec, history: list[dict[str, Any]]) -> None:
    # parents=False, here and for weights: where the run has been unmounted, nothing is made below
    with replacing(spec.run.history(spec.unit), parents=False) as path:
        path.write_text("".join(json.dumps(row) + "\n" for row in history), encoding="utf-8")
