"""What a loader can be told. No torch here, so that `--help` is instant."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

BACKENDS = ("auto", "dali", "torch", "resident")
Backend = Literal["auto", "dali", "torch", "resident"]
BOUNDS = {"mean": "3 values from 0 to 1", "std": "3 values above 0"}


@dataclass(frozen=True)
class LoaderConfig:
    """How shards become batches; the same for every backend."""

    backend: Backend = "auto"
    """auto, dali (NVIDIA DALI), torch (mapped shards) or resident (the split in device memory)."""
    batch_size: int = 128
    """Images in a global batch; divisible by the world size."""
    seed: int = 0
    """With the epoch number, the only source of order, crops and flips."""
    shuffle: bool | None = None
    """Whether to shuffle; by default train is shuffled and val is not."""
    augment: bool | None = None
    """Whether to crop (up to 4 pixels off) and flip; by default train is and val is not."""
    drop_last: bool | None = None
    """Whether images beyond the last full batch sit out; by default so in train only."""
    mean: Iterable[float] | None = None
    """Mean per channel on the 0-to-1 scale, instead of the train split's; becomes a tuple."""
    std: Iterable[float] | None = None
    """Standard deviation per channel on that scale, instead of the train split's; a tuple, too."""

    def __post_init__(self) -> None:
        """Refuse what no loader can do."""
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be at least 0 and under 2^64, got {self.seed}")
        mean, std = (_read_triple(name, getattr(self, name)) for name in ("mean", "std"))
        if mean is not None and not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean must be {BOUNDS['mean']}, got {mean}")
        if std is not None and not all(0 < value < math.inf for value in std):
            raise ValueError(f"std must be {BOUNDS['std']}, got {std}")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)


def _read_triple(name: str, values: Any) -> tuple[float, float, float] | None:
    """Return an array, a list, a tensor or any other three numbers as a tuple of floats."""
    if values is None:
        return None
    try:
        if getattr(values, "ndim", 1) != 1:  # numpy would take [[1.0]] for a number
            raise TypeError(f"{name} has {values.ndim} dimensions")
        red, green, blue = map(float, values)
    except (TypeError, ValueError) as error:
        found = " ".join(str(values).split())
        raise ValueError(f"{name} must be {BOUNDS[name]}, got {found}") from error
    return red, green, blue
