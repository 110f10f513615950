"""What `verify` and `inspect` can be told. One field, one flag; no heavy imports."""

from dataclasses import dataclass
from pathlib import Path

from tinyvgg.options import JsonOption, PackedOption


@dataclass(frozen=True)
class VerifyConfig:
    """Compare every byte of a packed folder with its manifest."""

    packed: PackedOption
    json: JsonOption = False


@dataclass(frozen=True)
class InspectConfig:
    """Show classes, counts, sizes and statistics of a packed folder."""

    packed: PackedOption
    grid: Path | None = None
    """PNG file to draw a contact sheet into: four images a class, labeled with its words."""
    json: JsonOption = False
