"""Trainer: a network, its batches and its optimizer, moved from step to step.

From: a recipe, an opened data set and a device.
To:   `runs.fit`, which scores, saves and stops, or a benchmark or a notebook, which do neither:
      a trainer knows no folder, no signal and no screen.

Loss and hits stay on the device; they are read every `log_every` steps of an epoch and at its end,
where they are added up over all ranks. There loss and weights must be finite.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn

from tinyvgg.errors import CheckpointError, DivergedError
from tinyvgg.loading.loader import Loader
from tinyvgg.model.summary import probe_network, train_flop
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.amp import AMP_DTYPES
from tinyvgg.training.average import AveragedNetwork
from tinyvgg.training.clock import Clock
from tinyvgg.training.config import (
    Recipe,
)
from tinyvgg.training.step import (
    Meter,
    TrainStep,
    Transform,
    build_optimizer,
    learning_rate_at,
    pixels_at,
)

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class StepReport:
    """Where a trainer stands after a step; loss and top-1 only every `log_every` steps.

    Attributes:
        epoch: from 0.
        step: of the epoch, from 1.
        images_per_sec: over all devices, in this epoch and call.
        data_wait_share: of the time, in which the device waited for a batch, 0 to 1.
        loss: mean over the steps since the last reading, or None.
        top1: likewise, 0 to 1.
        learning_rate: of this step.
        run_step: of the whole run, from 1.
    """

    epoch: int
    step: int
    images_per_sec: float
    data_wait_share: float
    loss: float | None = None
    top1: float | None = None
    learning_rate: float = 0.0
    run_step: int = 0


@dataclass(frozen=True)
class TrainedEpoch:
    """What training an epoch came to. Losses are means over images; top-1 and shares are 0 to 1.

    Attributes:
        epoch: from 0.
        step: of the whole run, its last one.
        pixels: the shorter side of the epoch's images.
        pflop: operations of every image seen so far, in 10^15, by `summary.train_flop`; None where
            a network of the caller's cannot be counted.
        learning_rate: of its last step.
        train_loss, train_top1: over its images.
        images_per_sec: over all devices.
        data_wait_share: of the time, in which the device waited for a batch.
        elapsed_sec: that training took so far, in all calls.
    """

    epoch: int
    step: int
    pixels: int
    pflop: float | None
    learning_rate: float
    train_loss: float
    train_top1: float
    images_per_sec: float
    data_wait_share: float
    elapsed_sec: float


@dataclass
class Trainer:
    """A network in training; see `build_trainer`.

    Attributes:
        recipe: with what `auto` meant for batch size and learning rate.
        is_own: whether the network is the caller's, which the recipe's arch says nothing of.
        step: steps taken.
        trained: an epoch whose last step was taken, until whoever scores it sets it to None.
        elapsed_sec: seconds that the steps took so far.
        model: the network; `scored_model` is the one to evaluate.
        amp_reason: why `auto` chose this precision, in a few words; "" where it was asked for.
        log_every: steps between two readings of loss and top-1, which wait for the device; counted
            anew in each epoch.
        window: loss and hits since the last reading, of this rank.
    """

    recipe: Recipe
    dataset: PackedDataset
    loader: Loader
    model: nn.Module
    amp: str
    device: torch.device
    compiled: bool
    is_own: bool = False
    transform: Transform | None = None
    amp_reason: str = ""
    log_every: int = 50
    average: AveragedNetwork | None = None
    step: int = 0
    trained: TrainedEpoch | None = None
    elapsed_sec: float = 0.0
    is_prepared: bool = False
    own_flop: dict[int, int | None] = field(default_factory=dict)  # by pixels, of an own network
    take_step: TrainStep = field(init=False)
    epoch_meter: Meter = field(init=False)
    window: Meter = field(init=False)

    def __post_init__(self) -> None:
        """Build optimizer and step."""
        # on a CPU a launch costs nothing, and foreign kernels would cost bits
        is_launched = self.compiled and self.device.type != "cpu"
        optimizer = build_optimizer(self.model, self.recipe, self.amp, compiled=is_launched)
        self.take_step = TrainStep(
            self.model, optimizer, self.recipe, self.amp, self.device, self.compiled, self.transform
        )
        self.epoch_meter = Meter.on(self.device)
        self.window = Meter.on(self.device)

    @property
    def image_dtype(self) -> torch.dtype:
        """Type of the images the network is fed with."""
        return AMP_DTYPES[self.amp]

    @property
    def scored_model(self) -> nn.Module:
        """The network that is evaluated: with averaged weights if there are any."""
        if self.average is None:
            return self.model
        return self.average.module

    def pixels_of(self, epoch: int) -> int:
        """Return the shorter side of an epoch's images."""
        return pixels_at(self.recipe, epoch, min(self.loader.find_size(self.recipe.size)))

    @property
    def last_pixels(self) -> int:
        """The shorter side of the images of the last step."""
        state = self.loader.state
        return self.pixels_of(state.epoch - (state.images_consumed == 0 and state.epoch > 0))

    def pflop_until(self, epoch: int) -> float | None:
        """Return the operations, in 10^15, of every image seen until the end of an epoch."""
        costs = [self.train_flop(self.pixels_of(number)) for number in range(epoch + 1)]
        flop = sum(cost for cost in costs if cost is not None)
        if None in costs:
            return None
        return flop * len(self.loader) * self.loader.batch_size / 1e15

    def train_flop(self, pixels: int) -> int | None:
        """Return the operations of a training image of a size; None where they are not known."""
        size = self.loader.find_size(pixels)
        if not self.is_own:
            return train_flop(self.recipe.arch, len(self.dataset.class_names), *size)
        if pixels not in self.own_flop:
            probe = probe_network(self.model, *size)
            self.own_flop[pixels] = None if probe is None else probe.train_flop
        return self.own_flop[pixels]

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
        return self.recipe.epochs * len(self.loader)

    def prepare(self) -> None:
        """Compile for every image size before the loader starts; see `TrainStep.capture`."""
        if not self.compiled or self.is_prepared:
            return
        self.is_prepared = True
        num_images = self.loader.batch_size // self.loader.world_size // self.recipe.accumulate
        labels = torch.zeros(num_images, dtype=torch.int64, device=self.device)
        self.model.train()
        for pixels in sorted({self.pixels_of(epoch) for epoch in range(self.recipe.epochs)}):
            shape = (num_images, *self.loader.find_size(pixels), 3)
            images = torch.zeros(shape, dtype=self.image_dtype, device=self.device)
            self.take_step.capture(images.permute(0, 3, 1, 2), labels)

    def train_epoch(
        self, last_step: int | None = None, is_stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[StepReport]:
        """Train what is left of the current epoch, and return an iterator over its steps.

        A step is taken when its report is asked for. After the epoch's last one `trained` is set,
        and not before; a call that ended inside the epoch is followed by one that goes on there.

        Args:
            last_step: of the whole run, after which no more is taken; None: that of the recipe.
            is_stopped: asked after each step, by all ranks together; true ends the iterator.

        Raises:
            DivergedError: the loss or a weight is infinite or NaN; on all ranks alike.
        """
        last_step = self.num_steps if last_step is None else last_step
        self.prepare()
        recipe, loader = self.recipe, self.loader
        self.model.train()
        epoch = loader.state.epoch
        pixels = self.pixels_of(epoch)
        clock = Clock.on(self.device, loader.batch_size)
        window = self.window = Meter.on(self.device)
        learning_rate = 0.0
        loader.set_size(pixels)
        batches = iter(loader)
        while self.step < last_step:
            with clock.waiting():
                batch = next(batches, None)
            if batch is None:
                break
            learning_rate = learning_rate_at(recipe, self.step, self.num_steps)
            self._seed_rank()
            loss, hits = self.take_step(batch, learning_rate)
            self.update_average()
            window.add(loss, hits, batch.num_valid)
            self.step += 1
            clock.count()
            loss_read = top1_read = None
            step_in_epoch = (self.step - 1) % len(loader) + 1
            if step_in_epoch % self.log_every == 0:
                loss_read, top1_read = self._close_window(window)
                self.elapsed_sec += clock.lap_sec()
            yield StepReport(
                epoch,
                step_in_epoch,
                clock.images_per_sec(),
                clock.wait_share(),
                loss_read,
                top1_read,
                learning_rate,
                self.step,
            )
            if is_stopped():
                break
        if window.num_images:
            self._close_window(window)
        self.elapsed_sec += clock.lap_sec()
        if loader.state.epoch == epoch:
            loader.load_state_dict(loader.state_dict())  # another call goes on inside it
            return
        train_loss, train_top1 = self.epoch_meter.read()
        self.epoch_meter = Meter.on(self.device)
        self.trained = TrainedEpoch(
            epoch=epoch,
            step=self.step,
            pixels=pixels,
            pflop=self.pflop_until(epoch),
            learning_rate=learning_rate,
            train_loss=train_loss,
            train_top1=train_top1,
            images_per_sec=clock.images_per_sec(),
            data_wait_share=clock.wait_share(),
            elapsed_sec=self.elapsed_sec,
        )
        self.share_buffers()

    def _seed_rank(self) -> None:
        """Let each rank drop other values: draws follow from seed, step and rank, if there are any.

        So a run that is resumed on as many ranks drops what an uninterrupted one does.
        """
        if self.loader.world_size == 1:
            return
        key = [self.recipe.seed, self.step, self.loader.rank]
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def train_steps(self, num_steps: int) -> Iterator[StepReport]:
        """Train so many steps, epoch after epoch, none of them scored; for benchmarks.

        Returns:
            An iterator over the steps; a step is taken when its report is asked for.
        """
        last_step = self.step + num_steps
        while self.step < last_step:
            yield from self.train_epoch(last_step)
            self.trained = None

    def _close_window(self, window: Meter) -> tuple[float, float]:
        """Add a window up over all ranks, move it into the epoch's meter, return loss and top-1.

        Raises:
            DivergedError: the loss or a weight is infinite or NaN; on all ranks alike.
        """
        if self.loader.world_size > 1:
            torch.distributed.all_reduce(window.sums)
            window.num_images *= self.loader.world_size
        loss, top1 = window.read()
        found = f"loss {loss}" if not math.isfinite(loss) else "a weight that is infinite or NaN"
        if not (math.isfinite(loss) and self.has_finite_weights()):
            raise DivergedError(
                f"step {self.step:,}: {found}, the run has diverged; start over with a lower "
                "--learning-rate (the checkpoint before it is kept)"
            )
        self.epoch_meter.sums += window.sums
        self.epoch_meter.num_images += window.num_images
        window.sums.zero_()
        window.num_images = 0
        return loss, top1

    def network_fields(self) -> dict[str, Any]:
        """Return what describes the network that is scored; tensors are the network's own."""
        normalization = self.loader.normalization
        return {
            "arch": None if self.is_own else self.recipe.arch,
            "model": self.scored_model.state_dict(),
            "pixels": self.last_pixels,
            "stored_size": self.dataset.manifest.image.size,
            "is_center": self.dataset.manifest.image.size is None,
            "center_share": self.recipe.center_share,
            "class_folders": self.dataset.class_names,
            "class_words": self.dataset.class_words,
            "mean": list(normalization.mean),
            "std": list(normalization.std),
            "manifest_sha256": self.dataset.manifest_sha256,
            "amp": self.amp,
            "step": self.step,
        }

    def state_dict(self) -> dict[str, Any]:
        """Return all that changes from step to step; tensors are the trainer's own."""
        is_cuda = self.device.type == "cuda"
        return {
            "trained_model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "unscored": self.trained,
            "optimizer": self.take_step.optimizer.state_dict(),
            "scaler": self.take_step.scaler.state_dict(),
            "loader": self.loader.state_dict(),
            "elapsed_sec": self.elapsed_sec,
            "meter": {"sums": self.epoch_meter.sums, "num_images": self.epoch_meter.num_images},
            "rng": torch.get_rng_state(),
            "cuda_rng": torch.cuda.get_rng_state(self.device) if is_cuda else None,
            "step": self.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

        Raises:
            CheckpointError: it holds no state to resume from.
            ShardError: it was taken on another data set.
        """
        try:
            self.loader.load_state_dict(state["loader"])
            self.model.load_state_dict(state["trained_model"])
            if self.average is not None:
                self.average.load_state_dict(state["average"])
            self.trained = state["unscored"]
            optimizer = self.take_step.optimizer
            optimizer.load_state_dict(state["optimizer"])
            if self.recipe.optimizer != "adam":
                optimizer.param_groups[0]["weight_decay"] = self.recipe.weight_decay
            self.take_step.scaler.load_state_dict(state["scaler"])
            self.step = state["step"]
            self.elapsed_sec = state["elapsed_sec"]
            self.epoch_meter = Meter(**state["meter"])
            torch.set_rng_state(state["rng"].cpu())
            if self.device.type == "cuda" and state["cuda_rng"] is not None:
                torch.cuda.set_rng_state(state["cuda_rng"].cpu(), self.device)
        except (KeyError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"last.pt: of another network or recipe ({reason}); start over"
            ) from error
