"""Train step: forward, backward and update, beside the reference step and the convolutions alone.

    python -m benchmarks.train_step [--repeats 5]

Images are random and stay in memory: no loader is involved. The reference is an eager float32
step in NCHW with Adam, batch 50, with `loss.item()` and the hits read back every step. The ceiling
is forward and backward of the ten convolutions, whole, in the same dtype, channels-last.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.loading.batch import Batch
from tinyvgg.model.summary import train_flop
from tinyvgg.model.vgg import STAGE_CHANNELS, VGG_Net
from tinyvgg.training.amp import AMP_DTYPES, choose_amp
from tinyvgg.training.build import build_model
from tinyvgg.training.config import CPU_STEPS, Recipe
from tinyvgg.training.process import TRAIN_ENVIRONMENT
from tinyvgg.training.step import Meter, TrainStep, build_optimizer

NUM_CLASSES = 100
BATCH_NORM = "tinyvgg step, recipe fast-bn"
CONVOLUTIONS = "ceiling: ten convolutions alone"
PIXELS = 64
# the reference's, whatever ours leaves out
FLOP_PER_IMAGE = train_flop("vgg_net", NUM_CLASSES, PIXELS, PIXELS)


def random_images(batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images [B, 3, 64, 64], channels-last, and labels [B]."""
    torch.manual_seed(0)
    images = torch.randn(batch_size, 3, PIXELS, PIXELS)
    labels = torch.randint(NUM_CLASSES, (batch_size,))
    return images.contiguous(memory_format=torch.channels_last), labels


def reference_step() -> Callable[[torch.Tensor, torch.Tensor], int]:
    """Return the reference step: eager, float32, NCHW, Adam, read back every step."""
    model = VGG_Net(NUM_CLASSES).to(memory_format=torch.contiguous_format)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)

    def take_step(images: torch.Tensor, labels: torch.Tensor) -> int:
        optimizer.zero_grad()
        logits, _ = model(images)
        loss = nn.functional.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        loss.item()
        (logits.argmax(1) == labels).sum().item()
        return len(images)

    return take_step


def reference(batch_size: int) -> Work:
    """The reference step on random images in NCHW."""
    images, labels = random_images(batch_size)
    images, take_step = images.contiguous(), reference_step()
    return lambda: take_step(images, labels)


def tinyvgg_step(batch_size: int, amp: str, compiled: bool, name: str = "fast") -> Work:
    """The step of a recipe, optimizer and dropout included."""
    device = torch.device("cpu")
    recipe = Recipe.named(name, batch_size=batch_size)
    model = build_model(recipe, NUM_CLASSES).train()
    take_step = TrainStep(model, build_optimizer(model, recipe, amp), recipe, amp, device, compiled)
    images, labels = random_images(batch_size)
    batch = Batch(images.to(AMP_DTYPES[amp]), labels, torch.arange(batch_size), batch_size)
    meter = Meter.on(device)

    def work() -> int:
        meter.add(*take_step(batch, 1e-4), batch_size)
        return batch_size

    return work


def convolutions(batch_size: int, amp: str) -> Work:
    """Ceiling: the ten convolutions of the network alone, forward and backward."""
    torch.manual_seed(0)
    dtype = AMP_DTYPES[amp]
    layers = []
    in_channels, pixels = 3, PIXELS
    for stage in STAGE_CHANNELS:
        for channels in stage:
            layer = nn.Conv2d(in_channels, channels, 3, padding=1)
            layer = layer.to(dtype).to(memory_format=torch.channels_last)
            shapes = (
                (batch_size, in_channels, pixels, pixels),
                (batch_size, channels, pixels, pixels),
            )
            images, gradient = (
                torch.randn(shape).to(dtype=dtype, memory_format=torch.channels_last)
                for shape in shapes
            )
            layers.append((layer, images.requires_grad_(in_channels != 3), gradient))
            in_channels = channels
        pixels //= 2

    def work() -> int:
        for layer, images, gradient in layers:
            layer(images).backward(gradient)
            layer.zero_grad()
            images.grad = None
        return batch_size

    return work


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    amp, _ = choose_amp(torch.device("cpu"))
    steady: dict[str, Any] = {"window_sec": 2.0, "num_windows": 2, "min_warm_windows": 1}
    steady |= {"flop_per_image": FLOP_PER_IMAGE}
    batch_norm_flop = train_flop(Recipe.named("fast-bn").arch, NUM_CLASSES, PIXELS, PIXELS)
    batch_size = CPU_STEPS["fast"].batch_size
    step = {"batch_size": batch_size, "amp": amp, "compiled": False}
    arms = [
        Arm("tinyvgg step, recipe fast", "benchmarks.train_step:tinyvgg_step", step,
            environment=TRAIN_ENVIRONMENT, ceiling=CONVOLUTIONS, **steady),
        Arm(BATCH_NORM, "benchmarks.train_step:tinyvgg_step", {**step, "name": "fast-bn"},
            environment=TRAIN_ENVIRONMENT, **{**steady, "flop_per_image": batch_norm_flop}),
        Arm("reference step, batch 50", "benchmarks.train_step:reference",
            {"batch_size": 50}, ceiling=CONVOLUTIONS, **steady),
        Arm(CONVOLUTIONS, "benchmarks.train_step:convolutions",
            {"batch_size": batch_size, "amp": amp}, environment=TRAIN_ENVIRONMENT, **steady),
    ]  # fmt: skip

    def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
        ours, batch_norm, reference_arm, ceiling = measured.values()
        return [
            make_bar(ours, reference_arm, "step over the reference step", 3.0),
            make_bar(ours, ceiling, "step over its ten convolutions alone", 0.8),
            make_bar(batch_norm, ours, "step of recipe fast-bn over that of fast", 0.8),
        ]

    claim = f"training step on a CPU, 64 x 64, autocast {amp}, {NUM_CLASSES} classes"
    run_benchmark("train_step", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
