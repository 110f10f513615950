"""What `report` can be told. One field, one flag; no torch here."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Optional

import tyro


@dataclass(frozen=True)
class ReportConfig:
    """Write one self-contained HTML page of a run, or of several beside each other."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Run folders that 'tinyvgg train' wrote."""
    out: Optional[Path] = None  # noqa: UP045 - `Path | None` makes tyro load typeguard: 0.06 s
    """File to write; RUN/report.html by default, where there is one run."""

    def __post_init__(self) -> None:
        """Refuse what no page can be of."""
        if not self.runs:
            raise ValueError("runs must be at least one run folder, got none")
        if len(self.runs) > 1 and self.out is None:
            raise ValueError(f"out must be given for {len(self.runs)} runs: --out FILE.html")
