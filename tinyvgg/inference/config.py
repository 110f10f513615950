"""What `evaluate`, `predict` and `export` can be told. One field, one flag; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tinyvgg.options import (
    AmpOption,
    BackendOption,
    DeviceOption,
    JsonOption,
    PackedOption,
    Switch,
    TimeoutOption,
)

EXPORT_SUFFIXES = (".safetensors", ".onnx", ".pt2")
ExportInput = Literal["uint8", "float"]

CheckpointOption = Annotated[
    Path,
    tyro.conf.Positional,
    tyro.conf.arg(
        metavar="CHECKPOINT", help="RUN/best.pt, RUN/last.pt, or a .safetensors that export wrote."
    ),
]


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a checkpoint on every image of a split, in eval mode."""

    checkpoint: CheckpointOption
    packed: PackedOption
    split: Literal["val", "train"] = "val"
    """Split to score."""
    out: Path | None = None
    """Folder for confusion.csv and confusion.png; the checkpoint's own by default."""
    min_top1: float | None = None
    """Exit with status 1 if top-1 (0 to 1) stays under this."""
    batch_size: int = 256
    """Images in a batch of each process; the number of processes changes no bit of the result."""
    backend: BackendOption = "auto"
    amp: AmpOption = "auto"
    device: DeviceOption = "auto"
    dist_timeout: TimeoutOption = 600.0
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse what cannot be scored."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not self.dist_timeout > 0:
            raise ValueError(f"dist_timeout must be over 0, got {self.dist_timeout}")
        if self.min_top1 is not None and not 0 <= self.min_top1 <= 1:
            raise ValueError(f"min_top1 must be 0 to 1, got {self.min_top1}")


@dataclass(frozen=True)
class PredictConfig:
    """Say what images show, seen as the run's evaluation view shows them.

    Any kind and size of image that 'tinyvgg pack' takes. Folders are walked to their depth, sorted;
    what is no image by its name is counted and named. An image that cannot be read
    or decoded, or a folder without images, is named on stderr in one line and the rest goes on;
    the exit status is then 1. Over 200 images
    are printed as a line each instead of a table.
    """

    checkpoint: CheckpointOption
    images: Annotated[
        tuple[str, ...],
        tyro.conf.Positional,
        tyro.conf.arg(
            metavar="IMAGE|FOLDER", help="Files and folders; -: paths from stdin, one a line."
        ),
    ]
    top_k: int = 5
    """Classes to name of each image."""
    batch_size: int | None = None
    """Images that are computed at once; by default 256 on a CPU, 1,024 elsewhere."""
    grid: Path | None = None
    """PNG to draw the first 400 images into, with their answers."""
    csv: Annotated[
        Switch, tyro.conf.arg(help="Print CSV, a line for each guess, and nothing else, to stdout.")
    ] = False
    amp: AmpOption = "auto"
    device: DeviceOption = "auto"
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse what cannot be shown."""
        if not self.images:
            raise ValueError("images must name at least one file or folder, or - for stdin")
        for name in ("top_k", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.csv and self.json:
            raise ValueError("csv and json cannot both be printed; pass one of them")


@dataclass(frozen=True)
class ExportConfig:
    """Write a network into a file that another program reads; read it back, and compare its logits.

    .safetensors: the weights, which evaluate and predict read as well; .onnx (needs the extra
    'onnx') and .pt2: a graph that takes images [B, 3, H, W], normalizes them and gives logits.
    """

    checkpoint: CheckpointOption
    out: Annotated[
        Path,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="OUT", help="File to write: .safetensors, .onnx or .pt2."),
    ]
    input: ExportInput = "uint8"
    """What a graph takes: uint8, 0 to 255, or float, 0 to 1."""
    overwrite: Switch = False
    """Replace OUT, once the new file is whole."""
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        check_export_suffix(self.out)


def check_export_suffix(path: Path) -> None:
    """Refuse a file of another kind.

    Raises:
        ValueError: its suffix is none of `EXPORT_SUFFIXES`.
    """
    if path.suffix not in EXPORT_SUFFIXES:
        known = ", ".join(EXPORT_SUFFIXES)
        raise ValueError(f"out must end with one of {known}, got {str(path)!r}")
