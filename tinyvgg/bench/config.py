"""What `bench` can be told. One field, one flag; no torch here."""

from dataclasses import dataclass
from pathlib import Path

from tinyvgg.options import DeviceOption, JsonOption, PackedOption


@dataclass(frozen=True)
class BenchConfig:
    """Measure images/sec of every stage on this machine: pack, load, step, train."""

    packed: PackedOption
    window_sec: float = 2.0
    """Seconds in each of three windows a stage."""
    device: DeviceOption = "auto"
    out: Path | None = None
    """File to write the result into, as JSON."""
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse windows without length."""
        if not self.window_sec > 0:
            raise ValueError(f"window_sec must be above 0 seconds, got {self.window_sec}")
