"""Tracking: the figures of a run, sent to an experiment tracker while it trains.

From: `runs.fit`, through a callback: every reading of the loss, every epoch.
To:   TensorBoard, Weights & Biases or Trackio, whose packages are extras; see `sinks`.

    train/…   of the steps since the last reading: loss, top1, learning_rate
    speed/…   images_per_sec, data_wait_share
    val/…     of an epoch: loss, top1, top5
    epoch/…   the rest of what metrics.jsonl says of it

Only rank 0 sends. What a tracker cannot take while the run goes on is said once; the run goes on.
"""

import importlib.util
import logging
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from tinyvgg.errors import TinyvggError
from tinyvgg.reporting.sinks import SINKS, Sink
from tinyvgg.runs.checkpoint import EpochRecord
from tinyvgg.runs.config import Output
from tinyvgg.runs.fit import Callback, Run
from tinyvgg.training.trainer import StepReport

NOT_DRAWN = ("epoch", "step")

logger = logging.getLogger("tinyvgg")


class Tracker(Callback):
    """Sends a run's figures to one tracker: `fit(…, callback=Tracker("wandb"))`.

    Args:
        name: "tensorboard", "wandb" or "trackio".
        project: that the run is listed under; TensorBoard has none.

    Raises:
        ValueError: there is no such tracker, or its package is not installed.
    """

    def __init__(self, name: str, project: str = "tinyvgg") -> None:
        check_installed(name)
        self.name = name
        self.project = project
        self.sink: Sink | None = None

    def on_start(self, run: Run) -> None:
        """Open the run at the tracker, or go on with it.

        Raises:
            TinyvggError: it cannot be opened.
        """
        if run.trainer.loader.rank != 0:
            return
        try:
            self.sink = SINKS[self.name](run, self.project)
        except TinyvggError:
            raise
        except Exception as error:  # of any kind: their code
            raise TinyvggError(
                f"{self.name}: cannot follow the run ({_first_line(error)}); leave out "
                f"--{self.name}, or set it up, and start again with --resume"
            ) from error

    def on_step(self, report: StepReport) -> None:
        """Send what was read, if loss and top-1 were."""
        if report.loss is None or report.top1 is None:
            return
        values = {
            "train/loss": report.loss,
            "train/top1": report.top1,
            "train/learning_rate": report.learning_rate,
            "speed/images_per_sec": report.images_per_sec,
            "speed/data_wait_share": report.data_wait_share,
        }
        self._send(values, report.run_step)

    def on_epoch(self, record: EpochRecord) -> None:
        """Send the figures of an epoch."""
        self._send(group_metrics(asdict(record)), record.step)

    def on_end(self) -> None:
        """Let the tracker write what it still holds."""
        sink, self.sink = self.sink, None
        if sink is not None:
            try:
                sink.close()
            except Exception as error:  # their code; the run itself is saved
                logger.warning("%s: not closed (%s)", self.name, _first_line(error))

    def _send(self, values: Mapping[str, float], step: int) -> None:
        if self.sink is None:
            return
        try:
            self.sink.log(values, step)
        except Exception as error:  # their code must not end a run of hours
            self.sink = None
            reason = _first_line(error)
            logger.warning("%s: %s; the run continues without it", self.name, reason)


class Callbacks(Callback):
    """Tells several callbacks, in order."""

    def __init__(self, *callbacks: Callback) -> None:
        self.callbacks = callbacks

    def on_start(self, run: Run) -> None:
        """Tell all of the run."""
        for callback in self.callbacks:
            callback.on_start(run)

    def on_step(self, report: StepReport) -> None:
        """Tell all of a step."""
        for callback in self.callbacks:
            callback.on_step(report)

    def on_scored(self, num_images: int) -> None:
        """Tell all of scored images."""
        for callback in self.callbacks:
            callback.on_scored(num_images)

    def on_epoch(self, record: EpochRecord) -> None:
        """Tell all of an epoch."""
        for callback in self.callbacks:
            callback.on_epoch(record)

    def on_end(self) -> None:
        """Tell all that this is the end."""
        for callback in self.callbacks:
            callback.on_end()


def open_trackers(output: Output) -> list[Callback]:
    """Return a tracker for each that was asked for, before any work.

    Raises:
        ValueError: a package is not installed.
    """
    return [Tracker(name, output.project) for name in SINKS if getattr(output, name)]


def check_installed(name: str) -> None:
    """Refuse a tracker that is not there.

    Raises:
        ValueError: there is no such tracker, or its package is not installed.
    """
    if name not in SINKS:
        raise ValueError(f"tracker must be one of {', '.join(SINKS)}, got {name!r}")
    spec = importlib.util.find_spec(name)
    # a folder of that name in the current one, as wandb makes it, is a module without a file
    if spec is None or spec.origin is None:
        raise ValueError(
            f"{name} is not installed, and --{name} needs it; run pip install 'tinyvgg[{name}]', "
            f"or pip install {name}"
        )


def group_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an epoch by tag: val_loss as val/loss, the rest as epoch/…."""
    return {
        name.replace("_", "/", 1) if name.startswith("val_") else f"epoch/{name}": float(value)
        for name, value in metrics.items()
        if name not in NOT_DRAWN and isinstance(value, int | float)
    }


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
