"""What a loader can be told. No torch here, so that `--help` is instant."""

import math
from dataclasses import dataclass
from typing import Literal

BACKENDS = ("auto", "dali", "torch", "resident")
Backend = Literal["auto", "dali", "torch", "resident"]


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
    mean: tuple[float, float, float] | None = None
    """Mean per channel on the 0-to-1 scale, instead of the train split's."""
    std: tuple[float, float, float] | None = None
    """Standard deviation per channel on the 0-to-1 scale, instead of the train split's."""

    def __post_init__(self) -> None:
        """Refuse what no loader can do."""
        if self.backend not in BACKENDS:
            raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {self.backend!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"seed must be at least 0 and under 2^64, got {self.seed}")
        if self.mean is not None and not (
            len(self.mean) == 3 and all(0 <= value <= 1 for value in self.mean)
        ):
            raise ValueError(f"mean must be 3 values from 0 to 1, got {self.mean}")
        if self.std is not None and not (
            len(self.std) == 3 and all(0 < value < math.inf for value in self.std)
        ):
            raise ValueError(f"std must be 3 values above 0, got {self.std}")
