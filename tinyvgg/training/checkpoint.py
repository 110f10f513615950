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
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from tinyvgg.durable import replace_file
from tinyvgg.errors import CheckpointError
from tinyvgg.training.config import Amp, ArchName

FORMAT = 1

Fields = TypeVar("Fields", bound=BaseModel)


class NetworkFields(BaseModel):
    """What of a checkpoint describes its network: checked like a manifest, as anybody wrote it."""

    model_config = ConfigDict(arbitrary_types_allowed=True, strict=True)

    arch: ArchName
    class_folders: Annotated[list[str], Field(min_length=1)]
    mean: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=3, max_length=3)]
    std: Annotated[
        list[Annotated[float, Field(gt=0, allow_inf_nan=False)]], Field(min_length=3, max_length=3)
    ]
    amp: Annotated[Amp, Field(pattern="^(off|bf16|fp16)$")]
    pixels: Annotated[int, Field(ge=1)]
    model: dict[str, Tensor]


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


def parse_fields(path: Path, checkpoint: dict[str, Any], kind: type[Fields], what: str) -> Fields:
    """Return the checked fields of a checkpoint.

    Args:
        path: of the checkpoint, for the error.
        checkpoint: from `read_checkpoint`.
        kind: says which fields, and of which type and range.
        what: those fields are, for the error.

    Raises:
        CheckpointError: one is missing, or not what it must be.
    """
    try:
        return kind.model_validate(checkpoint)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: holds no {what} ({name}: {first['msg']}); use another one"
        ) from error
