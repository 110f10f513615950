"""Resuming: a run that is there already, on all ranks, from the disk of the first rank's machine.

From: `RunFolder`, which rank 0 alone reads: other machines need not see it.
To:   `fit`, on every rank.

Under torchrun a run is also resumed without --resume where the job that began it was started again:
after a rank was lost (--max-restarts), or on other nodes (--nnodes=MIN:MAX).
"""

import io
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tinyvgg.errors import CheckpointError
from tinyvgg.launched import name_job
from tinyvgg.ranks import ask_first_rank, find_rank
from tinyvgg.regular import read_regular_file
from tinyvgg.runs.checkpoint import ResumeCheckpoint, parse_checkpoint
from tinyvgg.runs.folder import RunFolder
from tinyvgg.runs.settings import MAX_JSON_BYTES, read_settings
from tinyvgg.training.config import Recipe

logger = logging.getLogger("tinyvgg")

OPEN_FIELDS: dict[str, Any] = {  # of a recipe, and what leaves them to the device and the ranks
    "batch_size": 0,
    "learning_rate": 0.0,
    "compile_mode": "auto",
    "amp": "auto",
}


def find_stored_recipe(folder: RunFolder, *, resume: bool) -> Recipe | None:
    """Return the recipe of the run to resume, or None where one begins; all ranks together.

    Args:
        folder: of the run.
        resume: whether that was asked for.

    Raises:
        CheckpointError: there is no run to resume, or one where none was expected.
    """

    def find() -> Recipe | None:
        if resume:
            return read_settings(folder.path)[0]
        if is_of_this_job(folder.path):
            logger.info("%s: this job was started again, so its run is resumed", folder.path)
            return read_settings(folder.path)[0]
        folder.check_new()
        return None

    return ask_first_rank(find)


def is_of_this_job(run: Path) -> bool:
    """Return whether the job that torchrun started this process for has begun a run."""
    job = name_job()
    if job is None:
        return False
    try:
        document = json.loads(read_regular_file(run / "config.json", MAX_JSON_BYTES))
        return bool(document["resolved"]["job"] == job)
    except (OSError, ValueError, KeyError, TypeError):  # no run, or one of before, or damaged
        return False


def take_open_fields(recipe: Recipe, stored: Recipe) -> Recipe:
    """Return a recipe in which what it leaves open is as the run has it, on any number of ranks."""
    taken = {
        name: getattr(stored, name)
        for name, left_open in OPEN_FIELDS.items()
        if getattr(recipe, name) == left_open
    }
    return replace(recipe, **taken)


def read_last(folder: RunFolder, device: torch.device) -> tuple[ResumeCheckpoint | None, bool]:
    """Do what `RunFolder.read_last` does, on all ranks, from the disk of the first one.

    Raises:
        CheckpointError: there are checkpoints, and none can be read.
    """
    rank, world_size = find_rank()
    if world_size == 1:
        return folder.read_last(device)
    first: list[ResumeCheckpoint | None] = []

    def read() -> tuple[bytes | None, bool]:
        checkpoint, was_previous = folder.read_last(device)
        first.append(checkpoint)
        path = folder.previous if was_previous else folder.last
        return None if checkpoint is None else path.read_bytes(), was_previous

    data, was_previous = ask_first_rank(read)
    if rank == 0 or data is None:
        return first[0] if first else None, was_previous
    return parse_checkpoint(io.BytesIO(data), folder.last, ResumeCheckpoint, device), was_previous


def check_same_kind(
    folder: RunFolder, checkpoint: ResumeCheckpoint | None, model: nn.Module | None
) -> None:
    """Refuse to resume a recipe's network as one of the caller's, or the other way round.

    Raises:
        CheckpointError: it would be.
    """
    if checkpoint is None or (checkpoint.arch is None) == (model is not None):
        return
    if model is None:
        raise CheckpointError(
            f"{folder.path}: trains a network of your own; resume it from Python, with "
            "fit(..., model=..., options=RunOptions(resume=True))"
        )
    raise CheckpointError(
        f"{folder.path}: trains {checkpoint.arch} of its recipe; resume it without model"
    )
