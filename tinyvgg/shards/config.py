"""What `verify` and `inspect` can be told. One field, one flag; no heavy imports."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro


@dataclass(frozen=True)
class VerifyConfig:
    """Compare every byte of a packed folder with its manifest."""

    packed: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKED")]
    """Folder that 'tinyvgg pack' wrote."""
    json: bool = False
    """Print one JSON document, and nothing else, to stdout."""


@dataclass(frozen=True)
class InspectConfig:
    """Show classes, counts, sizes and statistics of a packed folder."""

    packed: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKED")]
    """Folder that 'tinyvgg pack' wrote."""
    grid: Path | None = None
    """PNG file to draw a contact sheet into: four images of every class, with its words."""
    json: bool = False
    """Print one JSON document, and nothing else, to stdout."""
