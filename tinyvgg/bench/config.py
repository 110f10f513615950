"""What `bench` can be told. One field, one flag; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class BenchConfig:
    """Measure images/sec of every stage on this machine: pack, load, step, train."""

    packed: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKED")]
    """Folder that 'tinyvgg pack' wrote."""
    window_sec: float = 2.0
    """Seconds in each of three windows a stage."""
    device: str = "auto"
    """auto takes CUDA or another accelerator where there is one; else cpu, cuda, cuda:1, …"""
    out: Path | None = None
    """File to write the result into, as JSON."""
    json: bool = False
    """Print one JSON document, and nothing else, to stdout."""

    def __post_init__(self) -> None:
        """Refuse windows without length."""
        if not self.window_sec > 0:
            raise ValueError(f"window_sec must be above 0 seconds, got {self.window_sec}")
