"""Recipes: what a training run can be told, in one typed place. No torch here.

`fast` is the default of every field; `RECIPES` says where `seed` differs. The command line takes
the recipe first and lets single flags override it; the result is stored in the run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from tinyvgg.loading.config import Backend

Amp = Literal["auto", "off", "bf16", "fp16"]

# the reference's own pixel statistics, which it applies whatever the images are
REFERENCE_MEAN = (0.4802, 0.4481, 0.3975)
REFERENCE_STD = (0.2302, 0.2265, 0.2262)


@dataclass(frozen=True)
class TrainConfig:
    """Train VGG_Net on a packed data set."""

    packed: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="PACKED")]
    """Folder that 'tinyvgg pack' wrote."""
    out: Path
    """Run folder to create, or to go on with under --resume."""
    recipe: Literal["fast", "seed"] = "fast"
    """Named defaults for all other flags: fast, or seed (the reference loop)."""
    resume: bool = False
    """Go on with the run in OUT; its stored settings hold where no flag says otherwise."""
    epochs: int = 10
    """Passes over the training images."""
    batch_size: int = 64
    """Images in a step, over all devices."""
    optimizer: Literal["adamw", "adam"] = "adamw"
    """adamw decays weights (not biases); adam is the reference's."""
    learning_rate: float = 6e-4
    """At its peak."""
    weight_decay: float = 0.05
    """Of adamw."""
    warmup: float = 0.15
    """Share of all steps over which the learning rate rises linearly."""
    decay: Literal["linear", "none"] = "linear"
    """After the warm-up: down to zero at the last step, or not at all."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down; 0 turns it off."""
    label_smoothing: float = 0.1
    """Probability spread evenly over all classes in the target."""
    dropout: float = 0.1
    """Probability after each group of convolutions."""
    init: Literal["he", "default"] = "he"
    """Initial weights: He's, or PyTorch's default as the reference has it."""
    augment: bool = True
    """Crop up to 4 pixels off, and flip."""
    statistics: Literal["packed", "reference"] = "packed"
    """Mean and std that normalize pixels: those of the packed train split, or the reference's."""
    amp: Amp = "auto"
    """Autocast to bf16 or fp16, or off; auto times both on the device (0.5 s) and keeps it."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the step; auto means on CUDA only."""
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """Of torch.compile; reduce-overhead replays CUDA graphs, max-autotune also tries kernels."""
    backend: Backend = "auto"
    """Loader: auto, dali (NVIDIA DALI), torch (mapped shards) or resident (in device memory)."""
    device: str = "auto"
    """auto takes CUDA or another accelerator where there is one; else cpu, cuda, cuda:1, …"""
    seed: int = 0
    """Seed of weights, order, crops, flips and dropout."""
    limit_steps: int | None = None
    """Stop after this many steps of the whole run; --resume goes on from there."""
    log_every: int = 50
    """Steps between printed lines of loss and accuracy."""
    json: bool = False
    """End stdout with one JSON document."""

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("epochs", "batch_size", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "clip_norm", "learning_rate", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("dropout", "warmup", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and under 1, got {getattr(self, name)}"
                )
        if self.limit_steps is not None and self.limit_steps < 1:
            raise ValueError(f"limit_steps must be at least 1, got {self.limit_steps}")


RECIPES: dict[str, dict[str, Any]] = {
    "fast": {},
    "seed": {  # the reference loop, as facts in its description; only its validation is mended
        "recipe": "seed",
        "epochs": 20,
        "batch_size": 50,
        "optimizer": "adam",
        "learning_rate": 1e-4,
        "weight_decay": 0.0,
        "warmup": 0.0,
        "decay": "none",
        "clip_norm": 0.0,
        "label_smoothing": 0.0,
        "dropout": 0.4,
        "init": "default",
        "augment": False,
        "statistics": "reference",
        "amp": "off",
        "compile": "off",
    },
}
