"""Recipes: what a training run can be told, in one typed place. No torch here.

`fast` is the default of every field; `RECIPES` says where the others differ, and why. The command
line takes the recipe first and lets single flags override it; the result is stored in the run.
"""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

import tyro

from tinyvgg.loading.config import CENTER_SHARE, CROP_PIXELS, LoaderConfig, ViewName
from tinyvgg.options import AmpOption, Switch

ArchName = Literal[
    "vgg_net", "vgg_net_bn", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn",
    "vgg16", "vgg16_bn", "vgg19", "vgg19_bn",
]  # fmt: skip
RecipeName = Literal["fast", "fast-bn", "seed", "strong"]

# the reference's own pixel statistics, which it applies whatever the images are
REFERENCE_MEAN = (0.4802, 0.4481, 0.3975)
REFERENCE_STD = (0.2302, 0.2265, 0.2262)


# steps, order, weights and optimizer state of a run depend on them from its first step on
FIXED_FIELDS = (
    "arch", "batch_size", "optimizer", "seed", "augment", "crop_pixels", "flip", "statistics",
    "size", "view", "crop_area", "crop_aspect", "center_share",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class DataRecipe:
    """What the network is shown."""

    batch_size: int = 0
    """Images in a step, over all devices. 0: the recipe's, by device; fewer for a small set."""
    augment: bool = True
    """Crop and flip images, as --crop-pixels and --flip say."""
    crop_pixels: int = CROP_PIXELS
    """Shift crops by up to this many pixels in each direction, 0 to 8; 0: no crops."""
    flip: bool = True
    """Flip half of the images left to right."""
    size: int | None = None
    """Pixels a side that images are scaled to: by default as stored; several sizes need it."""
    view: ViewName | None = None
    """Part of a training image: crop (--crop-pixels), resized-crop (a drawn box) or center. By
    default crop for images of one size, else resized-crop, and center when they are scored."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """Least and most of a resized-crop's area, as a share of the image's."""
    crop_aspect: tuple[float, float] = (3 / 4, 4 / 3)
    """Least and most of a resized-crop's width by its height."""
    center_share: float = CENTER_SHARE
    """Side of the center square, as a share of the shorter side of an image."""
    statistics: Literal["packed", "reference"] = "packed"
    """Mean and std that normalize pixels: those of the packed train split, or the reference's."""
    seed: int = 0
    """Random seed of weights, order, crops, flips and dropout."""


@dataclass(frozen=True, kw_only=True)
class NetworkRecipe:
    """What is trained."""

    arch: ArchName = "vgg_net"
    """vgg_net (the reference), vgg_net_bn, or vgg11, 13, 16, 19 (A, B, D, E), also with _bn."""
    init: Literal["he", "default"] = "he"
    """Initial weights: He's, or PyTorch's default as the reference has it."""
    dropout: float = 0.0
    """After each group of convolutions in vgg_net, before the classifier in other networks."""
    ema_decay: float = 0.0
    """EMA decay per step, 0.999 for example; the averaged weights are scored. 0: no EMA."""
    sync_batch_norm: Switch = False
    """BatchNorm over the images of all processes in a step, not over each one's own."""


@dataclass(frozen=True, kw_only=True)
class ScheduleRecipe:
    """How long, on images of what size, and how the learning rate moves."""

    epochs: int = 10
    """Passes over the training images."""
    sizes: tuple[int, ...] = (48,)
    """Pixels a side of the first epochs' images, at most as stored; the rest are as stored."""
    size_shares: tuple[float, ...] = (0.65,)
    """Share of all epochs at each of --sizes; under 1 in all, the last epoch is as stored."""
    warmup: float = 0.15
    """Share of all steps over which the learning rate rises linearly."""
    decay: Literal["linear", "none"] = "linear"
    """After the warm-up: down to zero at the last step, or not at all."""


@dataclass(frozen=True, kw_only=True)
class OptimizerRecipe:
    """What a step does to the weights."""

    optimizer: Literal["muon", "adamw", "adam", "sgd"] = "muon"
    """muon (adamw for what is no convolution), adamw, sgd (Nesterov, momentum 0.9), or adam."""
    learning_rate: Annotated[float, tyro.conf.arg(aliases=("--lr",))] = 0.0
    """Peak learning rate. Muon and SGD need about 30 times AdamW's. 0: the recipe's, by device."""
    weight_decay: float = 0.0
    """Weight decay of weights, not of biases; of muon, adamw and sgd."""
    clip_norm: float = 0.0
    """Global gradient norm above which gradients are scaled down; 0 turns it off."""
    label_smoothing: float = 0.1
    """Label smoothing: probability spread evenly over all classes."""


@dataclass(frozen=True, kw_only=True)
class SpeedRecipe:
    """How fast, and in how much memory."""

    amp: AmpOption = "auto"
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile the step; auto means on CUDA only."""
    compile_mode: Literal["auto", "default", "reduce-overhead", "max-autotune"] = "auto"
    """Of torch.compile: reduce-overhead replays CUDA graphs, max-autotune also tries kernels."""
    accumulate: int = 1
    """Micro-batches a step is split into, whose gradients add up; saves memory."""


@dataclass(frozen=True, kw_only=True)
class Recipe(DataRecipe, NetworkRecipe, ScheduleRecipe, OptimizerRecipe, SpeedRecipe):
    """What a run is, wherever it runs; stored in config.json.

    Its fields are those of its parts, each explained there and in `tinyvgg train --help`:
    `DataRecipe` (batch_size, augment, …), `NetworkRecipe` (arch, dropout, …), `ScheduleRecipe`
    (epochs, sizes, …), `OptimizerRecipe` (optimizer, learning_rate, …), `SpeedRecipe` (amp, …).

    Raises:
        ValueError: it cannot be trained.
    """

    name: RecipeName = "fast"
    """Whose batch size, learning rate and compile mode are taken where they are left open."""

    @classmethod
    def named(cls, name: str, **changes: Any) -> "Recipe":
        """Return a recipe of `RECIPES` with some fields changed.

        Raises:
            TypeError: a recipe has no field of that name.
            ValueError: there is none of that name, or what it becomes cannot be trained.
        """
        if name not in RECIPES:
            raise ValueError(f"recipe must be one of {', '.join(RECIPES)}, got {name!r}")
        known = [field.name for field in fields(cls) if field.name != "name"]
        if unknown := [change for change in changes if change not in known]:
            names = ", ".join(sorted(known))
            raise TypeError(f"a recipe has no field {unknown[0]!r}; its fields are {names}")
        return cls(**{"name": name, **RECIPES[name], **changes})

    def __post_init__(self) -> None:
        """Refuse what cannot be trained."""
        for name in ("epochs", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("batch_size", "learning_rate", "weight_decay", "clip_norm", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        for name in ("dropout", "warmup", "label_smoothing", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 0 and under 1, got {getattr(self, name)}"
                )
        batches = self.describe_batches(batch_size=1)  # refuses what no loader can do
        for name in ("size", "crop_area", "crop_aspect"):  # as a resumed run's will be compared
            object.__setattr__(self, name, getattr(batches, name))
        self._check_together()

    def describe_batches(self, **fields: Any) -> LoaderConfig:
        """Return what its loader must do; fields of `LoaderConfig` override it."""
        is_reference = self.statistics == "reference"
        described = {
            "batch_size": self.batch_size,
            "seed": self.seed,
            "augment": self.augment,
            "crop_pixels": self.crop_pixels,
            "flip": self.flip,
            "mean": REFERENCE_MEAN if is_reference else None,
            "std": REFERENCE_STD if is_reference else None,
            "size": self.size,
            "view": self.view,
            "crop_area": self.crop_area,
            "crop_aspect": self.crop_aspect,
            "center_share": self.center_share,
        }
        return LoaderConfig(**{**described, **fields})

    def _check_together(self) -> None:
        """Refuse fields that do not go with each other."""
        if len(self.sizes) != len(self.size_shares):
            raise ValueError(
                f"sizes and size_shares must be as many, got {len(self.sizes)} and "
                f"{len(self.size_shares)}; pass both"
            )
        if sum(self.size_shares) > 1 or min(self.size_shares, default=0) < 0:
            raise ValueError(f"size_shares must add up to 0 to 1, got {self.size_shares}")
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"batch_size must be divisible by accumulate {self.accumulate}, "
                f"got {self.batch_size}"
            )
        if self.accumulate > 1 and self.compile_mode not in ("auto", "default"):
            raise ValueError(  # pytorch#169545: CUDA graphs overwrite what is being added up
                f"compile_mode must be default with accumulate {self.accumulate}, "
                f"got {self.compile_mode!r}"
            )


RECIPES: dict[str, dict[str, Any]] = {
    "fast": {},  # the base network; the reasons stand in the comments of `seed`
    "fast-bn": {
        # BatchNorm bears ten times the learning rate; at half the operations of vgg_net_bn vgg11_bn
        # gets further with the same: 53.2 against 49.1 % (benchmarks/LOG.md)
        "arch": "vgg11_bn",
        "epochs": 15,
        "sizes": (32, 48),  # an image of 32 pixels costs a quarter of one of 64
        "size_shares": (0.46, 0.27),  # 7 epochs of 32, 4 of 48, 4 of 64
        "optimizer": "sgd",  # with BatchNorm as good as Adam, for less memory and time
        "weight_decay": 5e-4,  # ffcv's and airbench's, for SGD
    },
    "seed": {  # the reference loop, as facts in its description; only its validation is mended
        "epochs": 20,
        "sizes": (),  # fast: 48 pixels cost 56 %, and sharpen the eye for what 64 adds
        "size_shares": (),
        # fast: muon, 60 % after 3 epochs where adamw has 25.7 (benchmarks/LOG.md)
        "optimizer": "adam",
        "warmup": 0.0,  # fast: the first steps of a high rate would throw He's weights away
        "decay": "none",  # fast: down to zero, so that the last epochs settle
        "label_smoothing": 0.0,
        "dropout": 0.4,  # fast: none, ten epochs fit too little, not too much
        "init": "default",  # fast: He's; the default shrinks the signal 0.4 times a layer
        "augment": False,
        "statistics": "reference",
        "amp": "off",
        "compile": "off",
    },
    "strong": {  # accuracy first, for a GPU; not measured yet
        "arch": "vgg16_bn",  # the deepest that pays at 64 pixels
        "epochs": 60,  # six times `fast`: what a GPU does in minutes
        "sizes": (48,),  # the first half at 56 % of the cost
        "size_shares": (0.5,),
        "optimizer": "sgd",
        "weight_decay": 5e-4,
        "warmup": 0.05,  # three epochs
        "dropout": 0.2,  # long runs do overfit
        "ema_decay": 0.998,  # half-life 350 steps, two epochs of 100,000 images
    },
}


@dataclass(frozen=True)
class StepSize:
    """What of a recipe depends on the device.

    Attributes:
        batch_size: images in a step, over all devices.
        learning_rate: at its peak.
        compile_mode: of torch.compile, where the step is compiled.
    """

    batch_size: int
    learning_rate: float
    compile_mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"


# On a CPU, as measured (benchmarks/LOG.md). Of muon 0.02 is the spectral norm of a step, where
# weights have about 2; a batch of 128 gives 6 % more images/sec than one of 64.
CPU_STEPS = {
    "fast": StepSize(64, 0.02),
    "fast-bn": StepSize(128, 0.05),  # 0.02 at 32
    "seed": StepSize(50, 1e-4),  # the reference's, on any device
    "strong": StepSize(512, 0.2),  # that of fast-bn, in proportion to the batch size
}
# On CUDA, not measured yet. Estimated: an H100 takes 1 ms for 64 images and the host 2 ms to launch
# them, so 256 keep the device busy; more would leave too few steps. The rate grows with the root of
# the batch for muon, as for adamw, and in proportion to it for sgd (Goyal et al., 2017).
CUDA_STEPS = {
    **CPU_STEPS,
    "fast": StepSize(256, 0.04),
    "fast-bn": StepSize(512, 0.2),
}
STEPS_PER_EPOCH = 10  # under this a smaller batch of the recipe is taken, if it has one


def resolve_steps(recipe: Recipe, device_type: str, num_images: int, num_parts: int = 1) -> Recipe:
    """Return a recipe with batch size, learning rate and compile mode for a device and a set.

    What is set stays. What is not is the recipe's for the device, or for a CPU where that leaves a
    small set too few steps; a set of fewer images than that gets a batch that it fills.

    Args:
        recipe: as it was asked for.
        device_type: "cuda", "cpu" or another.
        num_images: in the train split.
        num_parts: ranks times accumulate, by which a batch must be divisible.
    """
    sizes = [CPU_STEPS[recipe.name]]
    if device_type == "cuda":
        sizes.insert(0, CUDA_STEPS[recipe.name])
    fitting = [size for size in sizes if size.batch_size * STEPS_PER_EPOCH <= num_images]
    chosen = (fitting or sizes[-1:])[0]
    batch_size = chosen.batch_size
    while batch_size > max(num_images, 1):
        batch_size //= 2
    batch_size = max(1, batch_size // num_parts) * num_parts
    return replace(
        recipe,
        batch_size=recipe.batch_size or batch_size,
        learning_rate=recipe.learning_rate or chosen.learning_rate,
        compile_mode=chosen.compile_mode if recipe.compile_mode == "auto" else recipe.compile_mode,
    )


def check_unchanged(recipe: Recipe, stored: Recipe) -> None:
    """Refuse to resume a run under settings that it cannot change.

    Raises:
        ValueError: one of `FIXED_FIELDS` is another than the run was started with.
    """
    for name in FIXED_FIELDS:
        found, needed = getattr(recipe, name), getattr(stored, name)
        if found != needed:
            raise ValueError(
                f"{name} must stay {needed!r} within a run, got {found!r}; leave it out, or start "
                "over with another --out"
            )
