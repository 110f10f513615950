"""The loop: epochs of steps, checkpoints, and the numbers that say where the time goes.

From: `loading` (batches), `model`, a recipe.
To:   the wiring, which evaluates after each epoch and hands the figures back; a `RunFolder`.

The loop does not know how to evaluate: `train` yields after each epoch, so the whole product
stays one visible loop in `cli.py`. Loss and hits stay on the device; they are read every
`log_every` steps and at the end of an epoch, where they are added up over all ranks. There loss and
weights must be finite, and only there is a checkpoint written: none holds a run that has diverged.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch.distributed

from tinyvgg.errors import DivergedError
from tinyvgg.training.clock import Clock
from tinyvgg.training.run import EpochMetrics, RunFolder
from tinyvgg.training.signals import StopRequest
from tinyvgg.training.state import Training
from tinyvgg.training.step import Meter, learning_rate_at


@dataclass(frozen=True)
class StepReport:
    """Where the loop stands after a step; loss and top-1 only every `log_every` steps.

    Attributes:
        epoch: from 0.
        step: of the epoch, from 1.
        steps_per_epoch: of a full epoch.
        images_per_sec: over all devices, in this epoch and call.
        data_wait_share: of the time, in which the device waited for a batch, 0 to 1.
        loss: mean over the steps since the last reading, or None.
        top1: likewise, 0 to 1.
    """

    epoch: int
    step: int
    steps_per_epoch: int
    images_per_sec: float
    data_wait_share: float
    loss: float | None = None
    top1: float | None = None


def train(
    training: Training,
    run: RunFolder | None,
    observe: Callable[[StepReport], None],
    stop: StopRequest | None = None,
) -> Iterator[EpochMetrics]:
    """Train until the recipe's last epoch; yield after each one.

    The caller evaluates and passes the result to `finish_epoch`. Stopped between two steps, by a
    signal or by `limit_steps`, the run is saved first. An epoch that was trained and not
    scored when the run was stopped is yielded first.

    Args:
        training: the run; changed in place.
        run: where to save it when it is stopped; None on ranks other than 0.
        observe: called after each step.
        stop: asked after each step.

    Raises:
        DivergedError: the loss is infinite or NaN; the last checkpoint stays as it is.
    """
    config = training.config
    stop = stop or StopRequest()
    limit = min(training.num_steps, config.limit_steps or training.num_steps)
    if training.unscored is not None:
        yield training.unscored
    if training.step < limit:
        training.prepare()
    while training.step < limit and not stop.is_made():
        metrics = _train_epoch(training, limit, run, observe, stop)
        if metrics is None:
            break
        training.unscored = metrics
        training.share_buffers()
        yield metrics
    is_behind = not training.is_saved or training.epoch_meter.num_images or stop.agreed is not None
    if run is not None and is_behind:
        save_run(training, run)


def finish_epoch(training: Training, run: RunFolder, metrics: EpochMetrics) -> None:
    """Record an evaluated epoch in the history, and save the run if that is due.

    Saving takes a twentieth of the time at most: a GPU's epoch may be shorter than a checkpoint
    takes. What is not saved now is when it is due again, or when `train` comes to its end.
    """
    training.unscored = None
    training.history.append(metrics)
    if metrics.val_top1 > training.best_top1:
        training.best_top1 = metrics.val_top1
        training.best = training.copy_best()
    training.is_saved = False
    run.write_metrics(training.history)
    if training.save_pace.is_due():
        save_run(training, run)


def save_run(training: Training, run: RunFolder) -> None:
    """Write best.pt, if there is a better one than on disk, then last.pt, which knows of it."""
    with training.save_pace.spending():
        if training.best is not None:
            run.write_best(training.best)
            training.best = None
        run.write_last(training.checkpoint())
    training.is_saved = True


def _train_epoch(
    training: Training,
    limit: int,
    run: RunFolder | None,
    observe: Callable[[StepReport], None],
    stop: StopRequest,
) -> EpochMetrics | None:
    """Train what is left of the current epoch; None if `limit` or a signal came first."""
    config, loader = training.config, training.loader
    training.model.train()
    epoch = loader.state.epoch
    pixels = training.pixels_of(epoch)
    clock = Clock.on(training.device, loader.batch_size)
    window = Meter.on(training.device)
    learning_rate = 0.0
    saved_at = time.monotonic()
    batches = iter(loader)
    while training.step < limit:
        with clock.waiting():
            batch = next(batches, None)
        if batch is None:
            break
        learning_rate = learning_rate_at(config, training.step, training.num_steps)
        loss, hits = training.take_step(batch, learning_rate, pixels)
        training.update_average()
        window.add(loss, hits, batch.num_valid)
        training.step += 1
        clock.count()
        loss_read = top1_read = None
        if training.step % config.log_every == 0:
            loss_read, top1_read = _close_window(window, training)
        step_in_epoch = (training.step - 1) % len(loader) + 1
        observe(
            StepReport(
                epoch,
                step_in_epoch,
                len(loader),
                clock.images_per_sec(),
                clock.wait_share(),
                loss_read,
                top1_read,
            )
        )
        if stop.is_made():
            break
        is_due = time.monotonic() - saved_at >= 60 * config.checkpoint_minutes
        # where the window was closed on all ranks; the end of an epoch is `finish_epoch`'s
        if run is not None and is_due and loss_read is not None and loader.state.epoch == epoch:
            training.elapsed_sec += clock.lap_sec()
            save_run(training, run)
            saved_at = time.monotonic()
    if window.num_images:
        _close_window(window, training)
    training.elapsed_sec += clock.lap_sec()
    if loader.state.epoch == epoch:
        loader.load_state_dict(loader.state_dict())  # another call of `train` goes on inside it
        return None
    train_loss, train_top1 = training.epoch_meter.read()
    training.epoch_meter = Meter.on(training.device)
    return EpochMetrics(
        epoch=epoch,
        step=training.step,
        pixels=pixels,
        pflop=training.pflop_until(epoch),
        learning_rate=learning_rate,
        train_loss=train_loss,
        train_top1=train_top1,
        val_loss=float("nan"),
        val_top1=float("nan"),
        val_top5=float("nan"),
        images_per_sec=clock.images_per_sec(),
        data_wait_share=clock.wait_share(),
        elapsed_sec=training.elapsed_sec,
    )


def _close_window(window: Meter, training: Training) -> tuple[float, float]:
    """Add a window up over all ranks, move it into the epoch's meter, return loss and top-1.

    Raises:
        DivergedError: the loss or a weight is infinite or NaN; on all ranks alike.
    """
    if training.loader.world_size > 1:
        torch.distributed.all_reduce(window.sums)
        window.num_images *= training.loader.world_size
    loss, top1 = window.read()
    found = f"loss {loss}" if not math.isfinite(loss) else "a weight that is infinite or NaN"
    if not (math.isfinite(loss) and training.has_finite_weights()):
        raise DivergedError(
            f"step {training.step:,}: {found}, the run has diverged; start anew with a lower "
            "--learning-rate (the checkpoint before it is kept)"
        )
    training.epoch_meter.sums += window.sums
    training.epoch_meter.num_images += window.num_images
    window.sums.zero_()
    window.num_images = 0
    return loss, top1
