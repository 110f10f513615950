"""Checkpoints: everything a run needs to go on, in a file that loads with weights_only=True.

From: `loop`, between two steps.
To:   a later `train --resume`, and `evaluate`.

Promises: written beside its name, synced, then renamed: a checkpoint is whole or absent. Only
tensors, numbers, strings, lists and dictionaries; parameter names are those of the plain
network, whether it was compiled or distributed.
"""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from tinyvgg.durable import replace_file
from tinyvgg.errors import CheckpointError

FORMAT = 1


def write_checkpoint(path: Path, checkpoint: dict[str, Any], keep_as: Path | None = None) -> None:
    """Write a checkpoint under its name only when it is whole and on disk.

    Args:
        path: the name.
        checkpoint: tensors, numbers, strings, lists and dictionaries.
        keep_as: name for the checkpoint that is there already.
    """
    whole = io.BytesIO()  # torch.save into a file hides a full disk behind a RuntimeError
    torch.save({"format": FORMAT, **checkpoint}, whole)
    replace_file(path, whole.getbuffer(), keep_as)


def read_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Read a checkpoint.

    Raises:
        CheckpointError: missing, damaged, or not one of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; run 'tinyvgg train' first")
    try:
        with zipfile.ZipFile(path) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__}); use another one"
        ) from error
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a tinyvgg checkpoint of format {FORMAT}; train again")
    return checkpoint
