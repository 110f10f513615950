"""A run folder: what one training run leaves behind.

    config.json     the resolved recipe, options, what was probed, the data set, versions
    train.log       every line that `train` said, with the time of day
    metrics.jsonl   one JSON object an epoch; metrics.csv the same as a table
    last.pt         resumes the run; previous.pt is the one before it
    best.pt         the weights with the best validation top-1
    scored.json     the last evaluation, with a few images, for report.html

From: `fit`, after each epoch and when it is stopped.
To:   `train --resume`, `evaluate`, and whoever plots.

Every file is replaced by rename. Metrics are written from the history in the checkpoint, so a
resumed run never lists an epoch twice. One process writes a run at a time: it holds run.lock, which
lies inside, so that whatever names the folder has (a link, a mount), they lead to one lock.
"""

import csv
import io
import json
import logging
import platform
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from tinyvgg import __version__
from tinyvgg.durable import replace_file
from tinyvgg.errors import CheckpointError, DatasetError
from tinyvgg.packing.locking import hold_lock
from tinyvgg.runs.checkpoint import (
    Checkpoint,
    EpochRecord,
    ResumeCheckpoint,
    read_checkpoint,
    write_checkpoint,
)
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.settings import KEPT_OPTIONS
from tinyvgg.training.config import Recipe

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class RunFolder:
    """The files of one run."""

    path: Path

    @property
    def last(self) -> Path:
        """The checkpoint that is resumed."""
        return self.path / "last.pt"

    @property
    def log(self) -> Path:
        """What the run said, line by line."""
        return self.path / "train.log"

    @property
    def previous(self) -> Path:
        """The checkpoint before it, for when the last one is damaged."""
        return self.path / "previous.pt"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation top-1."""
        return self.path / "best.pt"

    @property
    def scored(self) -> Path:
        """What the last evaluation said, for the report."""
        return self.path / "scored.json"

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Make the folder and be its only writer, for the length of a `with` block.

        Raises:
            CheckpointError: another process is writing it.
        """
        is_new = not self.path.exists()
        with ExitStack() as stack:
            if is_new:
                stack.callback(_remove_if_empty, self.path)
            try:
                stack.enter_context(hold_lock(self.path / "run", "tinyvgg train"))
            except DatasetError as error:
                raise CheckpointError(
                    f"{self.path}: another 'tinyvgg train' is writing it; wait for it, or pass "
                    "another --out"
                ) from error
            yield

    def check_new(self) -> None:
        """Refuse a folder that holds a run; `write_config` makes it.

        Raises:
            CheckpointError: it holds a run already.
        """
        passing = (".partial", ".lock")  # a killed run leaves them before it has written anything
        if self.path.exists() and any(file.suffix not in passing for file in self.path.iterdir()):
            raise CheckpointError(
                f"{self.path}: exists already; resume it with --resume (from Python with "
                "options=RunOptions(resume=True)), or name another --out"
            )

    def write_config(self, recipe: Recipe, options: RunOptions, resolved: dict[str, Any]) -> None:
        """Make the folder and write config.json, which `settings` reads.

        Args:
            recipe: with what `auto` meant for batch size and learning rate.
            options: of this call.
            resolved: what else `auto` meant, and the data set.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        kept = {name: getattr(options, name) for name in KEPT_OPTIONS}
        versions = {
            "tinyvgg": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        document = {"recipe": asdict(recipe), "options": kept}
        document |= {"resolved": resolved, "versions": versions}
        data = (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()
        replace_file(self.path / "config.json", data)

    def write_metrics(self, history: list[EpochRecord]) -> None:
        """Write metrics.jsonl and metrics.csv from the whole history."""
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in history)
        replace_file(self.path / "metrics.jsonl", lines.encode())
        table = io.StringIO()
        writer = csv.DictWriter(table, list(EpochRecord.__dataclass_fields__))
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)
        replace_file(self.path / "metrics.csv", table.getvalue().encode())

    def write_last(self, checkpoint: ResumeCheckpoint) -> None:
        """Replace last.pt, and keep the one there was as previous.pt."""
        write_checkpoint(self.last, checkpoint, keep_as=self.previous)

    def write_best(self, checkpoint: Checkpoint) -> None:
        """Replace best.pt."""
        write_checkpoint(self.best, checkpoint)

    def read_last(self, device: torch.device) -> tuple[ResumeCheckpoint | None, bool]:
        """Read last.pt, or the one before it if that is missing or damaged, with a warning.

        Returns:
            The checkpoint, None if the run ended before it wrote one, so it starts over; and
            whether it was previous.pt.

        Raises:
            CheckpointError: there are checkpoints, and none can be read.
        """
        if not self.last.exists() and not self.previous.exists():
            logger.warning("%s: no checkpoint yet; the run starts over", self.path)
            return None, False
        try:
            return read_checkpoint(self.last, ResumeCheckpoint, device), False
        except CheckpointError as error:
            if not self.previous.exists():
                raise
            checkpoint = read_checkpoint(self.previous, ResumeCheckpoint, device)
            logger.warning("%s; resuming from previous.pt, step %s", error, checkpoint.step)
            return checkpoint, True


def _remove_if_empty(folder: Path) -> None:
    with suppress(OSError):  # there is something in it: a run
        folder.rmdir()
