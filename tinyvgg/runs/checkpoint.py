"""Checkpoints: everything a run needs to be resumed, in a file that loads with weights_only=True.

From: `fit`, between two steps; or from anybody, so it is checked like a manifest when it is read.
To:   a later `train --resume`, and `networks`, which reads the network alone.

    best.pt, a `Checkpoint`          the network, what its input and output mean, the epochs so far
    last.pt, a `ResumeCheckpoint`    that, and all that changes from step to step

Promises: written beside its name, synced, then renamed: a checkpoint is whole or absent. Only
tensors, numbers, strings, lists and dictionaries; parameter names are those of the plain
network, whether it was compiled or distributed.
"""

import io
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    StrictStr,
    ValidationError,
)
from torch import Tensor

from tinyvgg.durable import replace_file
from tinyvgg.errors import CheckpointError
from tinyvgg.loading.config import CENTER_SHARE
from tinyvgg.options import Amp
from tinyvgg.shards.jpeg import MAX_SIDE
from tinyvgg.training.config import ArchName
from tinyvgg.training.trainer import TrainedEpoch

FORMAT = 1

Kind = TypeVar("Kind", bound="Checkpoint")
Side = Annotated[int, Field(strict=True, ge=1, le=MAX_SIDE)]


@dataclass(frozen=True)
class EpochRecord:
    """A trained and scored epoch, one line of metrics.jsonl; the rest is as in `TrainedEpoch`.

    Attributes:
        val_loss: mean cross-entropy of the val images, without label smoothing.
        val_top1, val_top5: share of them whose label is the best, among the best five; 0 to 1.
        sample_loss, sample_top1: as those, of train images that are the same in every epoch, seen
            and scored as val images are; None in runs before there were any.
        sample_images: how many they are.
    """

    epoch: int
    step: int
    pixels: int
    pflop: float | None
    learning_rate: float
    train_loss: float
    train_top1: float
    val_loss: float
    val_top1: float
    val_top5: float
    images_per_sec: float
    data_wait_share: float
    elapsed_sec: float
    sample_loss: float | None = None
    sample_top1: float | None = None
    sample_images: int | None = None


class Checkpoint(BaseModel):
    """A network, and what its input and output mean.

    Attributes:
        arch: name of the network; None if it is a caller's own, whose weights these are.
        model: its weights by name, with averaged weights where there is an average.
        pixels: shorter side of the images that it was last trained on.
        stored_size: height and width of the data set's images; None if they have several sizes, or
            nobody noted them.
        is_center: whether images are scored by their central square, as those of several sizes are.
        center_share: side of the square that images of several sizes are scored by, as a share of
            their shorter side.
        class_folders: in label order.
        class_words: what they are called, "" where nobody said.
        mean, std: per channel on the 0-to-1 scale, that its input is normalized with.
        manifest_sha256: names the data set.
        amp: the precision it was trained in.
        step: steps taken.
        history: epochs so far.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    what: ClassVar[str] = "network"

    arch: ArchName | None
    model: dict[str, Tensor]
    pixels: Annotated[int, Field(strict=True, ge=1)]
    stored_size: tuple[Side, Side] | None = None
    is_center: bool = False
    center_share: Annotated[float, Field(strict=True, gt=0, le=1)] = CENTER_SHARE
    class_folders: Annotated[list[StrictStr], Field(min_length=1)]
    class_words: list[StrictStr] = []
    mean: Annotated[
        list[Annotated[float, Field(strict=True, ge=0, le=1)]], Field(min_length=3, max_length=3)
    ]
    std: Annotated[
        list[Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]],
        Field(min_length=3, max_length=3),
    ]
    manifest_sha256: str = ""
    amp: Annotated[Amp, Field(pattern="^(off|bf16|fp16)$")]
    step: NonNegativeInt = 0
    history: list[EpochRecord] = []


class ResumeCheckpoint(Checkpoint):
    """A run between two steps. Of its tensors torch finds out whether they fit.

    Attributes:
        best_top1: of all epochs so far; -1 before the first.
        elapsed_sec: that training took so far.
        unscored: the last epoch, where it was trained and the run was stopped before it was scored.
        loader: where the loader stands.
        trained_model, average, optimizer, scaler, meter, rng, cuda_rng: as `Trainer.state_dict`
            gives them.
    """

    what: ClassVar[str] = "run to resume"

    step: NonNegativeInt
    history: list[EpochRecord]
    best_top1: float
    elapsed_sec: NonNegativeFloat
    unscored: TrainedEpoch | None
    loader: dict[str, str | NonNegativeInt]
    trained_model: dict[str, Tensor]
    average: dict[str, Tensor] | None
    optimizer: dict[str, Any]
    scaler: dict[str, Any]
    meter: dict[str, Any]
    rng: Tensor
    cuda_rng: Tensor | None


def write_checkpoint(path: Path, checkpoint: Checkpoint, keep_as: Path | None = None) -> None:
    """Write a checkpoint under its name only when it is whole and on disk.

    Args:
        path: the name.
        checkpoint: what to write.
        keep_as: name for the checkpoint that is there already.
    """
    fields = {name: getattr(checkpoint, name) for name in type(checkpoint).model_fields}
    fields["history"] = [asdict(record) for record in checkpoint.history]
    if isinstance(checkpoint, ResumeCheckpoint) and checkpoint.unscored is not None:
        fields["unscored"] = asdict(checkpoint.unscored)
    whole = io.BytesIO()  # torch.save into a file hides a full disk behind a RuntimeError
    torch.save({"format": FORMAT, **fields}, whole)
    replace_file(path, whole.getbuffer(), keep_as)


def read_checkpoint(path: Path, kind: type[Kind], device: torch.device | str = "cpu") -> Kind:
    """Read a checkpoint.

    Args:
        path: of the file.
        kind: what it must hold: `Checkpoint` or `ResumeCheckpoint`.
        device: where its tensors go.

    Returns:
        The checkpoint, every field checked; its tensors are its own, in memory on `device`.

    Raises:
        CheckpointError: missing, damaged, not one of ours, or a field is not what it must be.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; run 'tinyvgg train' first")
    return parse_checkpoint(path, path, kind, device)


def parse_checkpoint(
    source: Path | IO[bytes], path: Path, kind: type[Kind], device: torch.device | str
) -> Kind:
    """Read a checkpoint from a file, or from the bytes of one; as `read_checkpoint`.

    Args:
        source: the file, or an open one.
        path: what errors name it.
        kind: as in `read_checkpoint`.
        device: likewise.

    Raises:
        CheckpointError: damaged, not one of ours, or a field is not what it must be.
    """
    try:
        with zipfile.ZipFile(source) as archive:  # torch.load does not look at the checksums
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(damaged)
        if not isinstance(source, Path):
            source.seek(0)
        fields = torch.load(source, map_location=device, weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler met
        raise CheckpointError(
            f"{path}: damaged or not a checkpoint ({type(error).__name__}); use another one"
        ) from error
    if not isinstance(fields, dict) or fields.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a tinyvgg checkpoint of format {FORMAT}; train again")
    return check_fields(path, kind, fields)


def check_fields(path: Path, kind: type[Kind], fields: dict[str, Any]) -> Kind:
    """Return a checkpoint of fields that nobody checked.

    Raises:
        CheckpointError: one of them is not what it must be.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"{path}: holds no {kind.what} ({name}: {first['msg']}); use another one"
        ) from error
