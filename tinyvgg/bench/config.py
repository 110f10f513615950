"""What `bench` can be told. One field, one flag; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tinyvgg.options import DeviceOption, JsonOption


@dataclass(frozen=True)
class BenchConfig:
    """Measure images/sec on this machine: of every stage (pack, load, step, train); or of loading,
    beside ImageFolder and torch's DataLoader (--against). Or compare two results (--compare).
    """

    packed: Annotated[
        Path | None,
        tyro.conf.Positional,
        tyro.conf.arg(metavar="PACKED", help="Folder that 'tinyvgg pack' wrote."),
    ] = None
    against: Path | None = None
    """Folder that PACKED was packed from, with train/CLASS/IMAGE or CLASS/IMAGE: measure loading,
    by ImageFolder and DataLoader and by every backend that can run here."""
    workers: tuple[int, ...] = ()
    """DataLoader's worker counts to try; by default 0, a quarter of the cores, half, all, and on 8
    or fewer twice as many; up to 32."""
    batch_size: int = 256
    """Images of a batch that is loaded; where there are fewer images, as many as there are."""
    compare: tuple[Path, Path] | None = None
    """Two files that --out wrote, before and after: ratios; status 1 if anything is slower."""
    repeats: int = 5
    """Windows of each stage, or of each way of loading."""
    window_sec: float = 2.0
    """Seconds in each window."""
    device: DeviceOption = "auto"
    out: Path | None = None
    """File to write the result into, as JSON."""
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse what cannot be measured."""
        if not self.window_sec > 0:
            raise ValueError(f"window_sec must be above 0 seconds, got {self.window_sec}")
        for name in ("batch_size", "repeats"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if any(count < 0 for count in self.workers):
            raise ValueError(f"workers must be 0 or more, got {min(self.workers)}")
        if self.compare is not None and (self.packed or self.against):
            raise ValueError("compare reads two files, and measures nothing: leave PACKED out")
        if self.compare is None and self.packed is None:
            raise ValueError("PACKED is needed, a folder that 'tinyvgg pack' wrote, or --compare")
