"""Fit: the one loop. Train an epoch, score it, record it, save it, stop.

From: `training` (a trainer, which takes the steps), `inference` (which scores), a `RunFolder`.
To:   the run folder; and a callback, for whoever draws, prints or tracks.

Here alone a run is saved: at the end of an epoch, if that is due (`Pace`); within one after
`checkpoint_minutes`, where loss and weights were just found to be finite; and at the end of `fit`,
whatever ended it, if last.pt does not know of everything. No checkpoint holds a run that diverged.
"""

import logging
import os
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from tinyvgg.inference.trained import Preprocessing, note_preprocessing
from tinyvgg.launched import name_job
from tinyvgg.loading.open import open_given
from tinyvgg.options import Amp
from tinyvgg.ranks import joined_world
from tinyvgg.runs.checkpoint import Checkpoint, EpochRecord, ResumeCheckpoint
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.folder import RunFolder
from tinyvgg.runs.resuming import (
    check_same_kind,
    find_stored_recipe,
    read_last,
    take_open_fields,
)
from tinyvgg.runs.scored import describe_scored, write_scored
from tinyvgg.runs.scoring import Scorer
from tinyvgg.runs.signals import StopRequest
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.build import build_trainer, resolve_recipe
from tinyvgg.training.clock import Pace
from tinyvgg.training.config import Recipe, check_unchanged
from tinyvgg.training.devices import find_device
from tinyvgg.training.step import Transform
from tinyvgg.training.trainer import StepReport, Trainer

logger = logging.getLogger("tinyvgg")


class Callback:
    """What `fit` tells of a run, on every rank; does nothing until a method is overridden."""

    def on_start(self, run: "Run") -> None:
        """Hear of the run before its first step of this call."""

    def on_step(self, report: StepReport) -> None:
        """Hear of a step that was taken."""

    def on_scored(self, num_images: int) -> None:
        """Hear of so many more val images that were scored, by this rank."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Hear of an epoch that was scored; its files are written next."""

    def on_end(self) -> None:
        """Hear that this call takes no more steps, whatever ended it: an error, too."""


@dataclass
class Run:
    """A trainer, its epochs so far, and where they are kept; see `open_run`.

    Attributes:
        trainer: takes the steps.
        options: how it is run.
        folder: of the run, on rank 0; None on other ranks, and where nothing is to be kept.
        history: trained and scored epochs.
        best_top1: of the val images, over all epochs; -1 before the first.
    """

    trainer: Trainer
    options: RunOptions = field(default_factory=RunOptions)
    folder: RunFolder | None = None
    history: list[EpochRecord] = field(default_factory=list)
    best_top1: float = -1.0
    unwritten_best: Checkpoint | None = None  # what best.pt is to hold
    is_saved: bool = True  # whether last.pt holds the history so far
    save_pace: Pace = field(default_factory=Pace)

    @property
    def model(self) -> nn.Module:
        """The network that was scored: with averaged weights where the recipe averages them."""
        return self.trainer.scored_model

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the best validation top-1, the first one of several; None before one."""
        return max(self.history, key=lambda record: record.val_top1, default=None)

    def note_preprocessing(self) -> None:
        """Put the network into eval mode, and note on it what its images must be."""
        trainer = self.trainer
        normalization = trainer.loader.normalization
        note_preprocessing(
            self.model.eval(),
            Preprocessing(
                normalization.mean,
                normalization.std,
                trainer.last_pixels,
                cast(Amp, trainer.amp),
                trainer.recipe.center_share,
                trainer.dataset.manifest.image.size,
                is_center=trainer.dataset.manifest.image.size is None,
            ),
        )

    @property
    def last_step(self) -> int:
        """The step, of the whole run, at which this call ends if nothing stops it before."""
        return min(self.trainer.num_steps, self.options.limit_steps or self.trainer.num_steps)

    @property
    def is_target_reached(self) -> bool:
        """Whether there is a target, and an epoch whose validation top-1 reached it."""
        target = self.options.target_top1
        return target is not None and self.best_top1 >= target

    @property
    def is_finished(self) -> bool:
        """Whether every epoch of the recipe is trained and scored."""
        return self.trainer.step >= self.trainer.num_steps and self.trainer.trained is None

    def add(self, record: EpochRecord) -> None:
        """Take an epoch into the history; keep the network if it is the best one so far."""
        self.history.append(record)
        self.is_saved = False
        if record.val_top1 > self.best_top1:
            self.best_top1 = record.val_top1
            if self.folder is not None:
                self.unwritten_best = self.describe_network()

    def describe_network(self) -> Checkpoint:
        """Return the network as it is now, in tensors of its own: a save may come steps later."""
        fields = self.trainer.network_fields()
        model = {name: value.clone() for name, value in fields["model"].items()}
        return Checkpoint(**{**fields, "model": model, "history": list(self.history)})

    def save(self) -> None:
        """Write best.pt, if there is a better one than on disk, then last.pt, which knows of it."""
        if self.folder is None:
            return
        with self.save_pace.spending():
            if self.unwritten_best is not None:
                self.folder.write_best(self.unwritten_best)
                self.unwritten_best = None
            fields = {**self.trainer.network_fields(), **self.trainer.state_dict()}
            fields |= {"history": self.history, "best_top1": self.best_top1}
            self.folder.write_last(ResumeCheckpoint(**fields))
        self.is_saved = True

    def load(self, checkpoint: ResumeCheckpoint) -> None:
        """Go on where a checkpoint was taken.

        Raises:
            CheckpointError: it is of another network or recipe.
            ShardError: it was taken on another data set.
        """
        self.trainer.load_state_dict(
            {name: getattr(checkpoint, name) for name in ResumeCheckpoint.model_fields}
        )
        self.history, self.best_top1 = list(checkpoint.history), checkpoint.best_top1


def open_run(
    recipe: Recipe,
    dataset: PackedDataset,
    device: torch.device,
    out: Path | None,
    options: RunOptions | None = None,
    *,
    is_main: bool = True,
    model: nn.Module | None = None,
    transform: Transform | None = None,
) -> Run:
    """Begin a run, or read the one in `out` under `options.resume`; all ranks together.

    Under torchrun a run that this job has begun is resumed without it; see `runs.resuming`.

    Args:
        recipe: what to train, and how.
        dataset: to train on.
        device: of this process.
        out: the run folder; None: nothing is kept.
        options: how this call runs it.
        is_main: whether this is rank 0, which alone writes the run folder.
        model: as in `fit`.
        transform: as in `fit`.

    Returns:
        The run. On rank 0 its folder has been made, with config.json in it.

    Raises:
        CheckpointError: the run folder is taken, or cannot be resumed.
        ShardError: the run was started on another data set.
        BackendUnavailable, ValueError: as `build_trainer`, or a setting that cannot change.
    """
    options = options or RunOptions()
    folder = None if out is None else RunFolder(out)
    if options.resume and folder is None:
        raise ValueError("resume needs out: the run folder to resume")
    stored = None if folder is None else find_stored_recipe(folder, resume=options.resume)
    recipe = recipe if stored is None else take_open_fields(recipe, stored)
    recipe = resolve_recipe(recipe, dataset, device)
    checkpoint, was_previous = None, False
    if folder is not None and stored is not None:
        check_unchanged(recipe, stored)
        checkpoint, was_previous = read_last(folder, device)
        check_same_kind(folder, checkpoint, model)
    trainer = build_trainer(
        recipe,
        dataset,
        device,
        backend=options.backend,
        log_every=options.log_every,
        network=model,
        transform=transform,
    )
    run = Run(trainer, options, folder if is_main else None)
    if checkpoint is not None:
        run.load(checkpoint)
    if is_main and folder is not None:
        if was_previous:  # rank 0 has read it for all
            folder.previous.replace(folder.last)
        job = name_job()
        folder.write_config(
            trainer.recipe,
            options,
            ({} if job is None else {"job": job})
            | {
                "network": "network of your own" if trainer.is_own else trainer.recipe.arch,
                "amp": trainer.amp,
                "compiled": trainer.compiled,
                "backend": trainer.loader.backend,
                "device": str(device),
                "num_classes": len(dataset.class_names),
                "num_steps": trainer.num_steps,
                "manifest_sha256": dataset.manifest_sha256,
            },
        )
        if run.history:  # it may have been killed between last.pt and metrics.jsonl
            folder.write_metrics(run.history)
    return run


def train_run(run: Run, stop: StopRequest | None = None, callback: Callback | None = None) -> None:
    """Train and score a run to its last epoch, target or limit, or until it is stopped.

    An epoch that was trained and not scored when the run was stopped is scored first.

    Args:
        run: changed in place; saved as it comes to its end.
        stop: asked between two steps, and between two batches that are scored.
        callback: told of steps and epochs.

    Raises:
        DivergedError: the loss is infinite or NaN; the last checkpoint stays as it is.
    """
    stop = stop or StopRequest(run.options.dist_timeout)
    callback = callback or Callback()
    if run.trainer.trained is None and run.is_target_reached:
        run.note_preprocessing()
        return  # reached before it was resumed
    try:
        callback.on_start(run)
        _train_epochs(run, stop, callback)
    finally:
        callback.on_end()
    run.note_preprocessing()


def _train_epochs(run: Run, stop: StopRequest, callback: Callback) -> None:
    """Train and score epoch after epoch, and save."""
    trainer, last_step = run.trainer, run.last_step
    scorer = Scorer(trainer, run.options.backend)
    while trainer.trained is not None or (trainer.step < last_step and not stop.ask()):
        if trainer.trained is None:
            _train_epoch(run, last_step, stop, callback)
        record = scorer.score(stop, callback.on_scored)
        if record is None:
            break
        run.add(record)
        callback.on_epoch(record)
        if run.folder is not None:
            run.folder.write_metrics(run.history)
            if run.save_pace.is_due():
                run.save()
        if run.is_target_reached:
            break
    if not run.is_saved or trainer.epoch_meter.num_images or stop.agreed is not None:
        run.save()
    _keep_scored(run, scorer)


def _keep_scored(run: Run, scorer: Scorer) -> None:
    """Write what the report needs of the last evaluation of this call, if there was one."""
    if run.folder is None or scorer.last is None:
        return
    scored = describe_scored(run.trainer.dataset, run.history[-1].epoch, scorer.last)
    try:
        write_scored(run.folder.scored, scored)
    except OSError as error:
        logger.warning("%s: %s (the run itself is saved)", run.folder.scored, error.strerror)


def _train_epoch(run: Run, last_step: int, stop: StopRequest, callback: Callback) -> None:
    """Train what is left of an epoch, and save the run on the way where that is due."""
    trainer, saved_at = run.trainer, time.monotonic()
    pause_sec = 60 * run.options.checkpoint_minutes
    for report in trainer.train_epoch(last_step, stop.ask):
        callback.on_step(report)
        is_due = time.monotonic() - saved_at >= pause_sec and report.loss is not None
        if is_due and report.step < len(trainer.loader) and stop.noted is None:
            run.save()
            saved_at = time.monotonic()


def fit(
    dataset: PackedDataset | str | os.PathLike[str],
    recipe: Recipe,
    *,
    out: str | os.PathLike[str] | None = None,
    model: nn.Module | None = None,
    transform: Transform | None = None,
    device: str | torch.device = "auto",
    callback: Callback | None = None,
    options: RunOptions | None = None,
) -> Run:
    """Train a network on a data set, and score it after every epoch; under torchrun, on all ranks.

    Args:
        dataset: from `open_dataset`, or the folder that it opens.
        recipe: what to train, and how: `Recipe.named("fast", epochs=3)`.
        out: run folder to create, or to resume under `options.resume`; None writes nothing.
        model: gives logits [B, K], K the classes of the data set, or a tuple that begins with
            them. It is moved to the device and trained in place from the weights it has; `arch`,
            `init` and `dropout` of the recipe say nothing of it. None: the recipe's own network.
        transform: images, floating [B, 3, H, W], and labels, int64 [B], of a training step to
            those that are trained on, on the device; labels may become [B, K], probabilities.
        device: "auto" for an accelerator where there is one; wins over that of `options`.
        callback: told of steps and epochs, on every rank.
        options: how this call runs it.

    Returns:
        The run, with `model`, `history` and `best`.

    Raises:
        CheckpointError: `out` is taken, or cannot be resumed.
        TypeError: `recipe` is no recipe, `dataset` no data set, or `transform` no function.
        DivergedError: the loss became infinite or NaN.
        ShardError: the folder holds no data set, or the run was started on another one.
        BackendUnavailable: a device or a loader backend that was asked for cannot run here.
        ValueError: a setting, or a model, that cannot be trained on this data set.
    """
    options = options or RunOptions()
    if not isinstance(recipe, Recipe):
        raise TypeError(
            "recipe must be a Recipe, Recipe.named('fast') for example, "
            f"got {type(recipe).__name__}"
        )
    dataset = open_given(dataset)
    target = find_device(options.device if device == "auto" else str(device))
    folder = None if out is None else Path(out)
    with joined_world(target, options.dist_timeout) as rank, ExitStack() as stack:
        if folder is not None and rank == 0:
            stack.enter_context(RunFolder(folder).writing())
        run = open_run(
            recipe,
            dataset,
            target,
            folder,
            options,
            is_main=rank == 0,
            model=model,
            transform=transform,
        )
        train_run(run, callback=callback)
        return run
