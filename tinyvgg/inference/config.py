"""What `evaluate` can be told. One field, one flag; no torch here."""

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
    TimeoutOption,
)


@dataclass(frozen=True)
class EvaluateConfig:
    """Score a checkpoint on every image of a split, in eval mode."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """RUN/best.pt or RUN/last.pt."""
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
