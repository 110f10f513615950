"""Fit: the one loop. Train an epoch, score it, record it, save it, stop.

From: `training` (a trainer, which takes the steps), `inference` (which scores), a `RunFolder`.
To:   the run folder; and a callback, for whoever draws, prints or tracks.

Here alone a run is saved: at the end of an epoch, if that is due (`Pace`); within one after
`checkpoint_minutes`, where loss and weights were just found to be finite; and at the end of `fit`,
whatever ended it, if last.pt does not know of everything. No checkpoint holds a run that diverged.
"""

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Protocol

import torch

from tinyvgg.inference.evaluate import evaluate_network
from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.open import open_loader
from tinyvgg.runs.checkpoint import Checkpoint, EpochRecord, ResumeCheckpoint
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.folder import RunFolder
from tinyvgg.runs.settings import read_settings
from tinyvgg.runs.signals import StopRequest, StopRequested
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.clock import Pace
from tinyvgg.training.config import Recipe, check_unchanged
from tinyvgg.training.trainer import StepReport, Trainer, build_trainer, resolve_recipe


class Callback(Protocol):
    """What `fit` tells of a run, on every rank."""

    def on_step(self, report: StepReport) -> None:
        """Hear of a step that was taken."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Hear of an epoch that was scored; its files are written next."""


class Silence:
    """A callback that does nothing."""

    def on_step(self, report: StepReport) -> None:
        """Do nothing."""

    def on_epoch(self, record: EpochRecord) -> None:
        """Do nothing."""


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
    out: Path,
    options: RunOptions | None = None,
    *,
    is_main: bool = True,
) -> Run:
    """Begin a run, or read the one in `out` under `options.resume`; all ranks together.

    Args:
        recipe: what to train, and how.
        dataset: to train on.
        device: of this process.
        out: the run folder.
        options: how this call runs it.
        is_main: whether this is rank 0, which alone writes the run folder.

    Returns:
        The run. On rank 0 its folder has been made, with config.json in it.

    Raises:
        CheckpointError: the run folder is taken, or cannot be gone on with.
        ShardError: the run was started on another data set.
        BackendUnavailable, ValueError: as `build_trainer`, or a setting that cannot change.
    """
    options = options or RunOptions()
    recipe = resolve_recipe(recipe, dataset, device)
    folder = RunFolder(out)
    checkpoint, was_previous = None, False
    if options.resume:
        check_unchanged(recipe, read_settings(out)[0])
        checkpoint, was_previous = folder.read_last(device)
    else:
        folder.check_new()
    trainer = build_trainer(
        recipe, dataset, device, backend=options.backend, log_every=options.log_every
    )
    run = Run(trainer, options, folder if is_main else None)
    if checkpoint is not None:
        run.load(checkpoint)
    if is_main:
        if was_previous:  # all ranks have read it: they met in DistributedDataParallel
            folder.previous.replace(folder.last)
        folder.write_config(
            trainer.recipe,
            options,
            {
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


def fit(run: Run, stop: StopRequest | None = None, callback: Callback | None = None) -> None:
    """Train and score a run to its last epoch, target or limit, or until it is stopped.

    An epoch that was trained and not scored when the run was stopped is scored first.

    Args:
        run: changed in place; saved as it comes to its end.
        stop: asked between two steps, and between two batches that are scored.
        callback: told of steps and epochs.

    Raises:
        DivergedError: the loss is infinite or NaN; the last checkpoint stays as it is.
    """
    trainer, options = run.trainer, run.options
    stop = stop or StopRequest()
    callback = callback or Silence()
    target = math.inf if options.target_top1 is None else options.target_top1
    if trainer.trained is None and run.best_top1 >= target:
        return  # reached before it was resumed
    last_step = min(trainer.num_steps, options.limit_steps or trainer.num_steps)
    val_loader = open_val_loader(trainer)
    while trainer.trained is not None or (trainer.step < last_step and not stop.ask()):
        if trainer.trained is None:
            _train_epoch(run, last_step, stop, callback)
        record = _score_epoch(trainer, val_loader, stop)
        if record is None:
            break
        run.add(record)
        callback.on_epoch(record)
        if run.folder is not None:
            run.folder.write_metrics(run.history)
            if run.save_pace.is_due():
                run.save()
        if record.val_top1 >= target:
            break
    if not run.is_saved or trainer.epoch_meter.num_images or stop.agreed is not None:
        run.save()


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


def _score_epoch(trainer: Trainer, val_loader: Loader, stop: StopRequest) -> EpochRecord | None:
    """Return the record of the trained epoch; None if there is none, or scoring was stopped."""
    trained = trainer.trained
    if trained is None:
        return None
    try:
        evaluation = evaluate_network(
            trainer.scored_model,
            val_loader,
            len(trainer.dataset.class_names),
            amp=trainer.amp,
            device=trainer.device,
            pixels=trained.pixels,
            advance=lambda num_images: stop.check(),
        )
    except StopRequested:  # the epoch is scored by the run that goes on
        return None
    trainer.trained = None
    return EpochRecord(
        **asdict(trained),
        val_loss=evaluation.loss,
        val_top1=evaluation.top1,
        val_top5=evaluation.top5,
    )


def open_val_loader(trainer: Trainer) -> Loader:
    """Return a loader of the val split whose images are normalized as those of the trainer."""
    world_size = trainer.loader.world_size
    # 1,024 fill a GPU, 256 a CPU's cache; divided among the ranks
    batch_size = 256 if trainer.device.type == "cpu" else 1024
    config = LoaderConfig(
        backend=trainer.backend,
        batch_size=max(1, batch_size // world_size) * world_size,
        mean=trainer.loader.normalization.mean,
        std=trainer.loader.normalization.std,
        reuse_buffers=True,
    )
    return open_loader(
        trainer.dataset, "val", config, device=trainer.device, dtype=trainer.image_dtype
    )
