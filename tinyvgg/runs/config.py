"""What `train` can be told beyond the recipe. One field, one flag; no torch here.

A `Recipe` is what a run is; `RunOptions` are how one call runs it, and `Output` what the command
shows of it. The help lists them in boxes, one for each part.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from tinyvgg.options import (
    BackendOption,
    DeviceOption,
    JsonOption,
    PackedOption,
    Switch,
    TimeoutOption,
)
from tinyvgg.training.config import (
    DataRecipe,
    NetworkRecipe,
    OptimizerRecipe,
    Recipe,
    RecipeName,
    ScheduleRecipe,
    SpeedRecipe,
)

RECIPE_PARTS = {  # of the recipe, as fields of `TrainFlags`
    "data": DataRecipe,
    "network": NetworkRecipe,
    "schedule": ScheduleRecipe,
    "optimizer": OptimizerRecipe,
    "speed": SpeedRecipe,
}


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """Settings of this call only; --resume keeps backend, device and log-every of the run."""

    resume: Switch = False
    """Resume the run in OUT; its stored settings hold where no flag says otherwise."""
    backend: BackendOption = "auto"
    device: DeviceOption = "auto"
    limit_steps: int | None = None
    """Stop after this many steps of the whole run; --resume continues from there."""
    target_top1: float | None = None
    """Stop after the epoch whose validation top-1 (0 to 1) reaches this."""
    checkpoint_minutes: float = 10.0
    """Minutes after which last.pt is written within an epoch, too."""
    log_every: int = 50
    """Steps between two printed lines of loss and accuracy."""
    dist_timeout: TimeoutOption = 600.0

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        for name in ("limit_steps", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.target_top1 is not None and not 0 <= self.target_top1 <= 1:
            raise ValueError(f"target_top1 must be 0 to 1, got {self.target_top1}")
        if not self.dist_timeout > 0:
            raise ValueError(f"dist_timeout must be over 0, got {self.dist_timeout}")
        if not self.checkpoint_minutes >= 0:
            raise ValueError(
                f"checkpoint_minutes must be at least 0, got {self.checkpoint_minutes}"
            )


@dataclass(frozen=True, kw_only=True)
class Output:
    """What the command shows of the run."""

    summary: Switch = False
    """Print layers, parameters and operations, and train nothing."""
    profile: int | None = None
    """Trace this many steps into RUN/trace.json and print the top operations."""
    tensorboard: Switch = False
    """Write event files into RUN/tensorboard, too; needs the extra 'tensorboard'."""
    wandb: Switch = False
    """Send the figures to Weights & Biases, too (WANDB_MODE=offline: keep them in RUN/wandb); needs
    the extra 'wandb'."""
    trackio: Switch = False
    """Write the figures for 'trackio show', too; needs the extra 'trackio'."""
    project: str = "tinyvgg"
    """Name that wandb and trackio list the run under."""
    json: JsonOption = False

    def __post_init__(self) -> None:
        """Refuse an empty trace."""
        if self.profile is not None and self.profile < 1:
            raise ValueError(f"profile must be at least 1, got {self.profile}")


@dataclass(frozen=True)
class TrainFlags:
    """Train a VGG network on a packed data set."""

    packed: PackedOption
    out: Path
    """Run folder to create, or to resume under --resume."""
    recipe: Annotated[str, tyro.conf.arg(metavar="{fast,fast-bn,seed,strong,FILE.json}")] = "fast"
    """Preset that sets the flags below: fast, fast-bn (BatchNorm), seed (the reference), strong,
    or a stored one: a JSON file of such fields, or the config.json of a run."""
    name: Annotated[RecipeName, tyro.conf.Fixed, tyro.conf.Suppress] = "fast"
    data: DataRecipe = field(default_factory=DataRecipe)
    network: NetworkRecipe = field(default_factory=NetworkRecipe)
    schedule: ScheduleRecipe = field(default_factory=ScheduleRecipe)
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    speed: SpeedRecipe = field(default_factory=SpeedRecipe)
    run: RunOptions = field(default_factory=RunOptions)
    output: Output = field(default_factory=Output)

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        self.build_recipe()

    def build_recipe(self) -> Recipe:
        """Return the recipe that the flags come to."""
        parts = [getattr(self, name) for name in RECIPE_PARTS]
        return Recipe(name=self.name, **{k: v for part in parts for k, v in vars(part).items()})
