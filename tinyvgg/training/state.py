"""State: a run between two steps, as objects and as a checkpoint.

From: a recipe, an opened data set and a device.
To:   `loop`, which moves it from step to step; `run`, which keeps its checkpoints.
"""

import logging
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed

from tinyvgg.errors import CheckpointError
from tinyvgg.loading.batch import scaled_size
from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.open import open_loader
from tinyvgg.model.summary import train_flop
from tinyvgg.model.vgg import Network, build_network, check_image_size, initialize_he
from tinyvgg.ranks import agree_on, is_distributed
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.amp import AMP_DTYPES, choose_amp
from tinyvgg.training.average import AveragedNetwork
from tinyvgg.training.clock import Pace
from tinyvgg.training.config import (
    REFERENCE_MEAN,
    REFERENCE_STD,
    TrainConfig,
    resolve_steps,
)
from tinyvgg.training.run import EpochMetrics, RunFolder, read_run_config
from tinyvgg.training.step import Meter, TrainStep, build_optimizer, pixels_at

logger = logging.getLogger("tinyvgg")

# steps, order, weights and optimizer state of a run depend on them from its first step on
FIXED_FIELDS = (
    "arch", "batch_size", "optimizer", "seed", "augment", "crop_pixels", "flip", "statistics",
)  # fmt: skip


@dataclass
class Training:
    """Everything of a run that changes from step to step, and goes into a checkpoint."""

    config: TrainConfig
    dataset: PackedDataset
    loader: Loader
    model: Network
    amp: str
    device: torch.device
    compiled: bool
    average: AveragedNetwork | None = None
    step: int = 0
    unscored: EpochMetrics | None = None
    best_top1: float = -1.0
    best: dict[str, Any] | None = None  # what best.pt is to hold, until it is written
    is_saved: bool = True  # whether last.pt holds the history so far
    save_pace: Pace = field(default_factory=Pace)
    history: list[EpochMetrics] = field(default_factory=list)
    elapsed_sec: float = 0.0
    is_prepared: bool = False
    take_step: TrainStep = field(init=False)
    epoch_meter: Meter = field(init=False)

    def __post_init__(self) -> None:
        """Build optimizer and step."""
        # on a CPU a launch costs nothing, and foreign kernels would cost bits
        is_launched = self.compiled and self.device.type != "cpu"
        optimizer = build_optimizer(self.model, self.config, self.amp, compiled=is_launched)
        self.take_step = TrainStep(
            self.model, optimizer, self.config, self.amp, self.device, self.compiled
        )
        self.epoch_meter = Meter.on(self.device)

    @property
    def image_dtype(self) -> torch.dtype:
        """Type of the images the network is fed with."""
        return AMP_DTYPES[self.amp]

    @property
    def scored_model(self) -> Network:
        """The network that is evaluated: with averaged weights if there are any."""
        if self.average is None:
            return self.model
        return self.average.module

    def pixels_of(self, epoch: int) -> int:
        """Return the shorter side of an epoch's images."""
        image = self.dataset.manifest.image
        return pixels_at(self.config, epoch, min(image.height, image.width))

    @property
    def last_pixels(self) -> int:
        """The shorter side of the images of the last step."""
        state = self.loader.state
        return self.pixels_of(state.epoch - (state.images_consumed == 0 and state.epoch > 0))

    def pflop_until(self, epoch: int) -> float:
        """Return the operations, in 10^15, of every image seen until the end of an epoch."""
        image = self.dataset.manifest.image
        num_classes = len(self.dataset.class_names)
        flop = 0
        for number in range(epoch + 1):
            size = scaled_size(image.height, image.width, self.pixels_of(number))
            flop += train_flop(self.config.arch, num_classes, *size)
        return flop * len(self.loader) * self.loader.batch_size / 1e15

    def has_finite_weights(self) -> bool:
        """Return whether no weight is infinite or NaN; waits for the device."""
        norms = torch._foreach_norm(list(self.model.parameters()))
        return bool(torch.stack(norms).isfinite().all())

    def share_buffers(self) -> None:
        """Give all ranks the first one's running statistics, so that all score one network."""
        if self.loader.world_size == 1:
            return
        models = {self.model, self.scored_model}
        for buffer in (buffer for model in models for buffer in model.buffers()):
            torch.distributed.broadcast(buffer, 0)

    def update_average(self) -> None:
        """Move the averaged weights a little towards the present ones, if there is an average."""
        if self.average is not None:
            self.average.update(self.model)

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.epochs * len(self.loader)

    def prepare(self) -> None:
        """Compile for every image size before the loader starts; see `TrainStep.capture`."""
        if not self.compiled or self.is_prepared:
            return
        self.is_prepared = True
        image = self.dataset.manifest.image
        num_images = self.loader.batch_size // self.loader.world_size // self.config.accumulate
        labels = torch.zeros(num_images, dtype=torch.int64, device=self.device)
        self.model.train()
        for pixels in sorted({self.pixels_of(epoch) for epoch in range(self.config.epochs)}):
            size = scaled_size(image.height, image.width, pixels)
            shape = (num_images, *size, image.channels)
            images = torch.zeros(shape, dtype=self.image_dtype, device=self.device)
            self.take_step.capture(images.permute(0, 3, 1, 2), labels)

    def copy_best(self) -> dict[str, Any]:
        """Return what `evaluate` needs, in tensors of its own: a save may come steps later."""
        checkpoint = self.checkpoint(weights_only=True)
        model = {name: value.clone() for name, value in checkpoint["model"].items()}
        return {**checkpoint, "model": model}

    def checkpoint(self, *, weights_only: bool = False) -> dict[str, Any]:
        """Return what `evaluate` needs, and what `--resume` needs unless `weights_only`."""
        normalization = self.loader.normalization
        state: dict[str, Any] = {
            "arch": self.config.arch,
            "model": self.scored_model.state_dict(),
            "pixels": self.last_pixels,
            "class_folders": self.dataset.class_names,
            "class_words": [record.words for record in self.dataset.manifest.classes],
            "mean": list(normalization.mean),
            "std": list(normalization.std),
            "manifest_sha256": self.dataset.manifest_sha256,
            "amp": self.amp,
            "step": self.step,
            "history": [asdict(metrics) for metrics in self.history],
        }
        if weights_only:
            return state
        is_cuda = self.device.type == "cuda"
        return {
            **state,
            "trained_model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "unscored": None if self.unscored is None else asdict(self.unscored),
            "optimizer": self.take_step.optimizer.state_dict(),
            "scaler": self.take_step.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "best_top1": self.best_top1,
            "elapsed_sec": self.elapsed_sec,
            "meter": {"sums": self.epoch_meter.sums, "num_images": self.epoch_meter.num_images},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if is_cuda else None,
        }

    def load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on where `checkpoint` was taken.

        Raises:
            CheckpointError: it holds no state to go on with.
            ShardError: it was taken on another data set.
        """
        try:
            self.loader.load_state_dict(checkpoint["loader"])
            self.model.load_state_dict(checkpoint["trained_model"])
            if self.average is not None:
                self.average.load_state_dict(checkpoint["average"])
            unscored = checkpoint["unscored"]
            self.unscored = None if unscored is None else EpochMetrics(**unscored)
            optimizer = self.take_step.optimizer
            optimizer.load_state_dict(checkpoint["optimizer"])
            if self.config.optimizer != "adam":
                optimizer.param_groups[0]["weight_decay"] = self.config.weight_decay
            self.take_step.scaler.load_state_dict(checkpoint["scaler"])
            self.step = checkpoint["step"]
            self.best_top1 = checkpoint["best_top1"]
            self.elapsed_sec = checkpoint["elapsed_sec"]
            self.history = [EpochMetrics(**fields) for fields in checkpoint["history"]]
            self.epoch_meter = Meter(**checkpoint["meter"])
            torch.set_rng_state(checkpoint["rng"].cpu())
            if self.device.type == "cuda" and checkpoint["cuda_rng"] is not None:
                torch.cuda.set_rng_state(checkpoint["cuda_rng"].cpu(), self.device)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise CheckpointError(
                f"last.pt: of another network or recipe ({error}); start anew"
            ) from error


def build_model(config: TrainConfig, num_classes: int) -> Network:
    """Return the network of a recipe, seeded."""
    torch.manual_seed(config.seed)
    model = build_network(config.arch, num_classes, config.dropout)
    if config.init == "he":
        initialize_he(model)
    return model


def check_unchanged(config: TrainConfig, stored: TrainConfig) -> None:
    """Refuse to go on with a run under settings that it cannot change.

    Raises:
        ValueError: one of `FIXED_FIELDS` is another than the run was started with.
    """
    for name in FIXED_FIELDS:
        found, needed = getattr(config, name), getattr(stored, name)
        if found != needed:
            raise ValueError(
                f"{name} must stay {needed!r} within a run, got {found!r}; leave it out, or start "
                "anew with another --out"
            )


def check_sizes(config: TrainConfig, dataset: PackedDataset) -> None:
    """Refuse images that the network cannot take, as packed or reduced to `config.sizes`.

    Raises:
        ValueError: they are not of a size that it takes.
    """
    image = dataset.manifest.image
    stored = min(image.height, image.width)
    for pixels in {stored, *(min(pixels, stored) for pixels in config.sizes)}:
        check_image_size(config.arch, *scaled_size(image.height, image.width, pixels))


def open_training(
    config: TrainConfig, dataset: PackedDataset, device: torch.device, rank: int
) -> Training:
    """Build a run, or read the one in `config.out` under `config.resume`.

    Every rank builds the same weights from the seed; rank 0 alone writes the run folder.

    Args:
        config: the recipe.
        dataset: to train on.
        device: of this process.
        rank: of this process.

    Raises:
        CheckpointError: the run folder is taken, or cannot be gone on with.
        ShardError: the run was started on another data set.
        ValueError: the images are not of a size that the network takes.
    """
    check_sizes(config, dataset)
    world_size = torch.distributed.get_world_size() if is_distributed() else 1
    config = resolve_steps(
        config, device.type, dataset.train.num_images, world_size * config.accumulate
    )
    run = RunFolder(config.out)
    checkpoint, was_previous = None, False
    if config.resume:
        check_unchanged(config, read_run_config(config.out))
        checkpoint, was_previous = run.read_last(device)
    else:
        run.check_new()
    if device.type == "cuda":  # a run has a few shapes, each for thousands of steps
        torch.backends.cudnn.benchmark = True
    amp, amp_reason = choose_amp(device) if config.amp == "auto" else (config.amp, "")
    amp = agree_on(amp)
    compiled = config.compile == "on" or (config.compile == "auto" and device.type == "cuda")
    is_reference = config.statistics == "reference"
    loader_config = LoaderConfig(
        backend=config.backend,
        batch_size=config.batch_size,
        seed=config.seed,
        augment=config.augment,
        crop_pixels=config.crop_pixels,
        flip=config.flip,
        mean=REFERENCE_MEAN if is_reference else None,
        std=REFERENCE_STD if is_reference else None,
    )
    dtype = AMP_DTYPES[amp]
    loader = open_loader(dataset, "train", loader_config, device=device, dtype=dtype)
    if config.batch_size % (loader.world_size * config.accumulate):
        raise ValueError(
            f"batch_size must be divisible by {loader.world_size} ranks times accumulate "
            f"{config.accumulate}, got {config.batch_size}"
        )
    if amp_reason:  # said once nothing can be refused any more: an error is one line
        logger.info("amp %s: %s", amp, amp_reason)
    model = build_model(config, len(dataset.class_names)).to(device)
    average = AveragedNetwork(model, config.ema_decay) if config.ema_decay else None
    training = Training(config, dataset, loader, model, amp, device, compiled, average)
    if checkpoint is not None:
        training.load_checkpoint(checkpoint)
    if rank == 0:
        if was_previous:  # all ranks have read it: they met in DistributedDataParallel
            run.previous.replace(run.last)
        run.write_config(
            config,
            {
                "amp": amp,
                "compiled": compiled,
                "backend": loader.backend,
                "device": str(device),
                "num_classes": len(dataset.class_names),
                "num_steps": training.num_steps,
                "manifest_sha256": dataset.manifest_sha256,
            },
        )
        if training.history:  # it may have been killed between last.pt and metrics.jsonl
            run.write_metrics(training.history)
    return training
