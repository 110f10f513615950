"""Sinks: where a tracker's figures go. Each package is an extra, imported when a run opens it.

From: `tracking`.
To:   RUN/tensorboard; RUN/wandb and, unless WANDB_MODE=offline, the Weights & Biases server; the
      folder of Trackio (TRACKIO_DIR, by default in the cache of huggingface).

A resumed run goes on with the entry it has there. TensorBoard forgets the steps that a killed run
took after its last checkpoint; the other two show them twice.
"""

import contextlib
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

from tinyvgg.durable import replace_file
from tinyvgg.errors import TinyvggError
from tinyvgg.runs.fit import Run


class Sink(Protocol):
    """An open run at a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Take figures by tag, of a step of the whole run."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoardSink:
    """Event files in RUN/tensorboard, for `tensorboard --logdir`."""

    def __init__(self, run: Run, project: str) -> None:
        del project
        from torch.utils.tensorboard import SummaryWriter

        if run.folder is None:
            raise TinyvggError("tensorboard: the run has no folder; pass out")
        first_step = run.trainer.step + 1  # what is there of later ones belongs to no run any more
        self.writer = SummaryWriter(str(run.folder.path / "tensorboard"), purge_step=first_step)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Write scalars."""
        for tag, value in values.items():
            self.writer.add_scalar(tag, value, step)
        self.writer.flush()

    def close(self) -> None:
        """Close the file."""
        self.writer.close()


class WandbSink:
    """A run at Weights & Biases, or in RUN/wandb for `wandb sync`."""

    def __init__(self, run: Run, project: str) -> None:
        import wandb

        path = None if run.folder is None else run.folder.path
        self.run = wandb.init(
            project=project,
            name=None if path is None else path.absolute().name,
            id=find_entry(path),
            resume="allow",
            dir=None if path is None else str(path),
            config=describe_run(run),
            settings=wandb.Settings(console="off"),  # stdout and stderr stay ours
        )
        # steps by their own number: wandb's must rise, and a resumed run's begin before the last
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send figures."""
        self.run.log({**values, "step": step})

    def close(self) -> None:
        """Send what is left."""
        self.run.finish()


class TrackioSink:
    """A run of Trackio, for `trackio show`; what it prints on stdout goes to stderr."""

    def __init__(self, run: Run, project: str) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            import trackio

            path = None if run.folder is None else run.folder.path
            entry = find_entry(path)
            trackio.init(
                project=project,
                name=entry if path is None else f"{path.absolute().name}-{entry}",
                config=describe_run(run),
                resume="allow",
                embed=False,
                auto_log_gpu=False,
                auto_log_cpu=False,
            )
        self.trackio = trackio

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Send figures."""
        with contextlib.redirect_stdout(sys.stderr):
            self.trackio.log(dict(values), step=step)

    def close(self) -> None:
        """Write what is left."""
        with contextlib.redirect_stdout(sys.stderr):
            self.trackio.finish()


SINKS: dict[str, Callable[[Run, str], Sink]] = {
    "tensorboard": TensorBoardSink,
    "wandb": WandbSink,
    "trackio": TrackioSink,
}


def find_entry(folder: Path | None) -> str:
    """Return the name of a run at trackers: drawn once, kept in RUN/tracker.txt."""
    file = None if folder is None else folder / "tracker.txt"
    if file is not None and file.exists():
        return file.read_text("utf-8").strip()
    entry = uuid.uuid4().hex[:8]
    if file is not None:
        replace_file(file, f"{entry}\n".encode())
    return entry


def describe_run(run: Run) -> dict[str, Any]:
    """Return the recipe, resolved, and what it is trained on."""
    trainer = run.trainer
    return {
        **asdict(trainer.recipe),
        "amp": trainer.amp,
        "compiled": trainer.compiled,
        "backend": trainer.loader.backend,
        "device": str(trainer.device),
        "num_classes": len(trainer.dataset.class_names),
        "num_images": trainer.dataset.train.num_images,
        "manifest_sha256": trainer.dataset.manifest_sha256,
    }
