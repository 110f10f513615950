"""The step: one batch in, one optimizer update out, nothing read back from the device.

From: `trainer`, which hands over a batch.
To:   the weights, and a `Meter` on the device that `trainer` reads now and then.

B images, K classes. The learning rate is a function of the step number alone, so a resumed run
needs no scheduler state.
"""

import contextlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from tinyvgg.compiling import compile_apart
from tinyvgg.loading.batch import Batch
from tinyvgg.model.vgg import Network, compute_logits
from tinyvgg.ranks import is_distributed
from tinyvgg.training.amp import AMP_DTYPES
from tinyvgg.training.config import Recipe
from tinyvgg.training.muon import Muon

# images [B, 3, H, W] and labels [B] to the same, or to labels [B, K], probabilities; on the device
Transform = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def learning_rate_at(recipe: Recipe, step: int, num_steps: int) -> float:
    """Return the learning rate of a step.

    Args:
        recipe: peak, warm-up and decay.
        step: from 0.
        num_steps: of the whole run.
    """
    num_warmup = round(recipe.warmup * num_steps)
    if step < num_warmup:
        return recipe.learning_rate * (step + 1) / num_warmup
    if recipe.decay == "none":
        return recipe.learning_rate
    return recipe.learning_rate * (num_steps - step) / max(1, num_steps - num_warmup)


def pixels_at(recipe: Recipe, epoch: int, stored: int) -> int:
    """Return the shorter side of the images of an epoch, in pixels.

    Args:
        recipe: sizes and their shares of all epochs. Unless the shares add up to 1, the last epoch
            is as stored, however few there are: the network ends on the images that loaders give.
        epoch: from 0.
        stored: shorter side of the images as packed; no image is enlarged.
    """
    is_last = epoch == recipe.epochs - 1
    if is_last and sum(recipe.size_shares) < 1:
        return stored
    middle = (epoch + 0.5) / recipe.epochs
    for pixels, end in zip(recipe.sizes, itertools.accumulate(recipe.size_shares), strict=True):
        if middle < end:
            return min(pixels, stored)
    return stored


def build_optimizer(
    model: nn.Module, recipe: Recipe, amp: str = "off", *, compiled: bool = False
) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe, fused; only weights decay, not biases.

    Args:
        model: whose parameters it updates.
        recipe: the recipe.
        amp: resolved. Under fp16 sgd and muon are not fused: the scaler leaves it to a fused
            optimizer to skip a step, and then sgd keeps uninitialized momentum (torch 2.14). Muon
            multiplies in bfloat16 where autocast does: a CPU without such instructions takes 20
            times as long in it as in float32 (benchmarks/LOG.md).
        compiled: whether Muon's update goes through torch.compile.
    """
    if recipe.optimizer == "adam":
        return torch.optim.Adam(model.parameters(), lr=recipe.learning_rate, fused=True)
    weights = [p for p in model.parameters() if p.dim() >= 2]
    biases = [p for p in model.parameters() if p.dim() < 2]
    groups = [
        {"params": weights, "weight_decay": recipe.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    can_fuse = amp != "fp16"
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=recipe.learning_rate, momentum=0.9, nesterov=True, fused=can_fuse
        )
    # beta2 0.99: short runs have too few steps for the default 0.999 to settle
    betas = (0.9, 0.99)
    if recipe.optimizer == "muon":
        return Muon(
            groups,
            dtype=torch.bfloat16 if amp == "bf16" else torch.float32,
            compiled=compiled,
            lr=recipe.learning_rate,
            betas=betas,
            fused=can_fuse,
        )
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=betas, fused=True)


@dataclass
class Meter:
    """Sums of a run of steps, on the device.

    Attributes:
        sums: float64 on a CPU, float32 elsewhere, [2]: loss times images, and hits.
        num_images: that went into them.
    """

    sums: Tensor
    num_images: int = 0

    @classmethod
    def on(cls, device: torch.device) -> "Meter":
        """Return an empty meter."""
        dtype = torch.float64 if device.type == "cpu" else torch.float32
        return cls(torch.zeros(2, dtype=dtype, device=device))

    def add(self, loss: Tensor, hits: Tensor, num_images: int) -> None:
        """Add a step without waiting for it."""
        self.sums += torch.stack([loss.detach() * num_images, hits])
        self.num_images += num_images

    def read(self) -> tuple[float, float]:
        """Return mean loss and top-1 so far; waits for the device."""
        loss, hits = self.sums.tolist()
        count = max(1, self.num_images)
        return loss / count, hits / count


class BatchLoss(nn.Module):
    """A network and what is asked of it: images and labels to loss and hits, as one module.

    One module, so that torch.compile sees network, autocast and loss as one graph, and
    DistributedDataParallel can stand around what is compiled: around it, no graph is whole.

    Args:
        model: gives logits, or a tuple that begins with them.
        amp: "off", "bf16" or "fp16", resolved.
        label_smoothing: probability spread evenly over all classes in the target.
    """

    def __init__(self, model: nn.Module, amp: str, label_smoothing: float) -> None:
        super().__init__()
        self.model = model
        self.amp = amp
        self.label_smoothing = label_smoothing

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean cross-entropy and hits of a batch, float32 scalars on the device.

        Args:
            images: floating [B, 3, H, W], channels-last.
            labels: int64 [B], or floating [B, K], the probability of each class.
        """
        with torch.autocast(images.device.type, AMP_DTYPES[self.amp], enabled=self.amp != "off"):
            logits = compute_logits(self.model, images).float()
        loss = nn.functional.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        best = labels.argmax(1) if labels.dim() == 2 else labels
        return loss, (logits.argmax(1) == best).sum().float()


def _apply(transform: Transform, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a transform makes of a step's images and labels.

    Raises:
        TypeError: it returns anything but a pair of tensors.
        ValueError: it returns another number of images than of labels.
    """
    returned: Any = transform(images, labels)
    match returned:
        case (Tensor() as images, Tensor() as labels):
            pass
        case _:
            raise TypeError(
                f"transform must return (images, labels), two tensors, got {_name(returned)}"
            )
    if len(images) != len(labels):
        raise ValueError(
            f"transform must return as many images as labels, got {len(images)} and {len(labels)}"
        )
    return images, labels


def _name(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"{len(value)} values ({', '.join(type(part).__name__ for part in value)})"
    return type(value).__name__


@dataclass
class TrainStep:
    """Forward, backward and update of one batch, on all ranks together.

    Args:
        model: the network; its parameters are what `optimizer` updates.
        optimizer: of its parameters.
        recipe: the recipe.
        amp: "off", "bf16" or "fp16", resolved.
        device: of the batches.
        compiled: whether forward and loss go through torch.compile.
        transform: images and labels to those that are trained on, or None.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: Recipe
    amp: str
    device: torch.device
    compiled: bool
    transform: Transform | None = None
    scaler: torch.amp.GradScaler = field(init=False)
    compute: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        """Prepare the scaler (used by fp16 only), compile, and join the other ranks."""
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        self.compute = BatchLoss(self.model, self.amp, self.recipe.label_smoothing)
        if self.compiled:
            # another one's graph may have to break, and so may one that asks other ranks
            is_ours = isinstance(self.model, Network) and not self.recipe.sync_batch_norm
            self.compute.forward = compile_apart(  # type: ignore[method-assign]
                self.compute.forward, fullgraph=is_ours, mode=self.compile_mode
            )
        if is_distributed() and torch.distributed.get_world_size() > 1:
            # it would cut the graph at every 25 MiB of gradients, of which there are 37, and takes
            # no autograd.Function (torch 2.11 to 2.14)
            torch._dynamo.config.optimize_ddp = False
            self.compute = nn.parallel.DistributedDataParallel(
                self.compute, gradient_as_bucket_view=True
            )

    @property
    def compile_mode(self) -> str:
        """Mode of torch.compile; a recipe that was not resolved for a device has the default."""
        return "default" if self.recipe.compile_mode == "auto" else self.recipe.compile_mode

    @property
    def has_graphs(self) -> bool:
        """Whether forward and backward are replayed as CUDA graphs."""
        return self.compiled and self.compile_mode != "default" and self.device.type == "cuda"

    def capture(self, images: Tensor, labels: Tensor) -> None:
        """Compile, and capture CUDA graphs if there are any, without changing the run.

        To be called before a loader starts: a thread of DALI's that frees memory while a stream
        captures would end the capture. Weights, optimizer and generators stay as they are. Later
        batches may lie anywhere: a replay begins with a copy into the graph's own static inputs.

        Args:
            images: of the shape, strides and type of every later batch.
            labels: int64 [B].
        """
        devices = [self.device] if self.device.type == "cuda" else []
        buffers = list(self.model.buffers())  # BatchNorm's running statistics
        kept = [buffer.clone() for buffer in buffers]
        with torch.random.fork_rng(devices=devices):
            for _ in range(3):  # warm up, record, replay
                loss, _ = self._compute(images, labels)
                torch.autograd.backward(loss)
                self.optimizer.zero_grad(set_to_none=True)
        for buffer, value in zip(buffers, kept, strict=True):
            buffer.copy_(value)

    def _compute(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        if self.has_graphs:  # the last step's outputs may be overwritten from here on
            torch.compiler.cudagraph_mark_step_begin()
        loss, hits = self.compute(images, labels)
        return loss, hits

    def __call__(self, batch: Batch, learning_rate: float) -> tuple[Tensor, Tensor]:
        """Update the weights with one batch.

        Args:
            batch: a full one.
            learning_rate: of this step.

        Returns:
            Mean loss and number of hits, float32 scalars on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        images, labels = batch
        if self.transform is not None:
            images, labels = _apply(self.transform, images, labels)
        loss, hits = self._accumulate(images, labels)
        if self.recipe.clip_norm:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, hits

    def _accumulate(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Add up the gradients of all parts of a batch; ranks exchange them with the last one."""
        num_parts = self.recipe.accumulate
        if num_parts == 1:
            loss, hits = self._compute(images, labels)
            torch.autograd.backward(self.scaler.scale(loss))
            return loss, hits
        sums = torch.zeros(2, device=self.device)
        parts = zip(images.chunk(num_parts), labels.chunk(num_parts), strict=True)
        for number, (part_images, part_labels) in enumerate(parts, 1):
            with self._without_exchange() if number < num_parts else contextlib.nullcontext():
                loss, hits = self._compute(part_images, part_labels)
                torch.autograd.backward(self.scaler.scale(loss / num_parts))
            sums += torch.stack([loss.detach() / num_parts, hits])
        return sums[0], sums[1]

    def _without_exchange(self) -> contextlib.AbstractContextManager[None]:
        """Keep gradients on this rank for the length of a `with` block."""
        if isinstance(self.compute, nn.parallel.DistributedDataParallel):
            return self.compute.no_sync()
        return contextlib.nullcontext()
