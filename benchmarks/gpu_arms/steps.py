"""Steps: the training step alone, the loop over it, the update alone, evaluation.

All that these need of the product is opened by `build_training` and `open_batches`.
"""

import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch._inductor import config as inductor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu_arms.plan import NotMeasured, Row, Setting
from benchmarks.gpu_arms.rates import (
    Unit,
    describe_windows,
    finish_start,
    measure_host_ms,
    measure_unit,
    peak_memory_gb,
    repeat,
    share_of_peak,
    synchronize,
)
from tinyvgg.bench.ratios import bootstrap_ratio
from tinyvgg.bench.windows import time_window
from tinyvgg.errors import BackendUnavailable
from tinyvgg.inference.evaluate import evaluate_network
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import Batch
from tinyvgg.loading.loader import Loader
from tinyvgg.model.summary import train_flop
from tinyvgg.model.vgg import compute_logits
from tinyvgg.shards import open_dataset
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import RECIPES, Recipe
from tinyvgg.training.step import build_optimizer
from tinyvgg.training.trainer import Trainer

LEARNING_RATE = 1e-4  # of the step alone, which sees one batch again and again
LEARNING_RATES = {"muon": 0.02, "sgd": 0.05}  # of the loop at its peak, far beyond what is run
TINY_BATCH, TINY_PIXELS = 4, 32
EPOCHS = 10_000  # never reached


def target_device(setting: Setting) -> torch.device:
    """Return the device, with its number."""
    return torch.device("cuda", 0) if setting.device == "cuda" else torch.device("cpu")


def open_batches(
    setting: Setting, split: str, backend: Any, dtype: torch.dtype, batch_size: int
) -> Loader:
    """Open a loader of PACKED.

    Raises:
        NotMeasured: the backend does not run here, or the split is smaller than a batch.
    """
    dataset = open_dataset(setting.packed)
    check_size(dataset.split(split).num_images, batch_size)
    config = LoaderConfig(backend=backend, batch_size=batch_size)
    try:
        return open_loader(dataset, split, config, device=target_device(setting), dtype=dtype)
    except BackendUnavailable as error:
        raise NotMeasured(str(error)) from error


def check_size(num_images: int, batch_size: int) -> None:
    """Refuse a data set that a batch does not fit in."""
    if num_images < batch_size:
        raise NotMeasured(f"PACKED has {num_images:,} images, a batch is {batch_size:,}")


def build_training(
    setting: Setting,
    *,
    batch_size: int,
    mode: Any,
    backend: Any = "resident",
    recipe: str = "fast",
    pixels: int | None = None,
    optimizer: str | None = None,
) -> Trainer:
    """Return a trainer at its first step, in bf16 on CUDA.

    Args:
        setting: data and device; a tiny run has a small network, in float32, and updates with
            sgd, for Muon alone takes 22 GFLOP a step.
        batch_size: images in a step.
        mode: of torch.compile, or "eager".
        backend: of the loader.
        recipe: whose network, averaging and regularization it has.
        pixels: side of the images in the step; None: as stored.
        optimizer: instead of the recipe's.
    """
    dataset = open_dataset(setting.packed)
    check_size(dataset.train.num_images, batch_size)
    fields: dict[str, Any] = {**RECIPES[recipe]}
    if optimizer is not None or setting.is_tiny:
        fields["optimizer"] = optimizer or "sgd"
    if setting.is_tiny:
        pixels = TINY_PIXELS
        fields.setdefault("arch", "vgg11")  # VGG_Net takes 48 pixels and more
    fields["learning_rate"] = LEARNING_RATES.get(fields.get("optimizer", "muon"), 1e-3)
    trained = Recipe.named(
        recipe,
        **{
            **fields,
            "batch_size": batch_size,
            "epochs": EPOCHS,
            "amp": "bf16" if setting.device == "cuda" else "off",
            "compile": "off" if mode == "eager" else "on",
            "compile_mode": "default" if mode == "eager" else mode,
            "sizes": () if pixels is None else (pixels,),
            "size_shares": () if pixels is None else (1.0,),
        },
    )
    try:
        trainer = build_trainer(trained, dataset, target_device(setting), backend=backend)
    except BackendUnavailable as error:
        raise NotMeasured(str(error)) from error
    trainer.prepare()
    trainer.model.train()
    trainer.loader.set_size(trainer.pixels_of(0))
    return trainer


def keep_batch(trainer: Trainer) -> Batch:
    """Return one batch of the loader that stays."""
    batch = next(iter(trainer.loader))
    return replace(batch, images=batch.images.clone(), labels=batch.labels.clone())


def repeat_step(trainer: Trainer, batch: Batch) -> Unit:
    """Return steps on one batch, with all that the loop does on the device."""

    def unit(num_steps: int) -> int:
        for _ in range(num_steps):
            loss, hits = trainer.take_step(batch, LEARNING_RATE)
            trainer.epoch_meter.add(loss, hits, batch.num_valid)
            trainer.update_average()
        return num_steps * batch.num_valid

    return unit


def run_loop(trainer: Trainer, wait_shares: list[float]) -> Unit:
    """Return steps of the loop of `tinyvgg train`; each unit adds its share of data waits."""

    def unit(num_steps: int) -> int:
        share = 0.0
        for report in trainer.train_steps(num_steps):
            share = report.data_wait_share
        wait_shares.append(share)
        return num_steps * trainer.loader.batch_size

    return unit


def flop_rates(setting: Setting, trainer: Trainer, images_per_sec: float) -> Row:
    """Return operations per second and MFU, by the network as written and by what is done."""
    pixels = trainer.pixels_of(0)
    arch, num_classes = trainer.recipe.arch, len(trainer.dataset.class_names)
    written = train_flop(arch, num_classes, pixels, pixels)
    done = count_done_flop(trainer, arch, pixels)
    return {
        "gflop_per_image": written / 1e9,
        "done_gflop_per_image": done / 1e9,
        "mfu": share_of_peak(setting, written * images_per_sec),
        "mfu_done": share_of_peak(setting, done * images_per_sec),
    }


_done_flop: dict[tuple[str, int], float] = {}


def count_done_flop(trainer: Trainer, arch: str, pixels: int) -> float:
    """Return the operations of an image, forward and backward, counted call by call."""
    if (arch, pixels) not in _done_flop:
        model = trainer.model
        images = torch.zeros(2, pixels, pixels, 3, device=trainer.device).permute(0, 3, 1, 2)
        with FlopCounterMode(display=False) as counter:
            loss = compute_logits(model, images).sum()
            torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        _done_flop[arch, pixels] = counter.get_total_flops() / len(images)
    return _done_flop[arch, pixels]


def time_step(
    setting: Setting,
    *,
    batch_size: int,
    cudnn_benchmark: bool | None = None,
    combo_kernels: bool = False,
    **options: Any,
) -> Iterator[Row]:
    """Measure the step on one batch; inductor may join small kernels that are independent."""
    batch_size = setting.scale(batch_size, TINY_BATCH)
    started, before = time.perf_counter(), torch.backends.cudnn.benchmark
    inductor.combo_kernels = combo_kernels
    try:
        trainer = build_training(setting, batch_size=batch_size, **options)
        if cudnn_benchmark is not None:
            torch.backends.cudnn.benchmark = cudnn_benchmark
        unit = repeat_step(trainer, keep_batch(trainer))
        row = measure_unit(setting, unit, batch_size, started)
        yield {"name": "step", **row, **flop_rates(setting, trainer, row["images_per_sec"])}
    finally:
        torch.backends.cudnn.benchmark = before
        inductor.combo_kernels = False


def time_loop(setting: Setting, *, backend: str, mode: str, batch_size: int) -> Iterator[Row]:
    """Measure the loop, a window of it and a window of its step in turn."""
    batch_size = setting.scale(batch_size, TINY_BATCH)
    started = time.perf_counter()
    trainer = build_training(setting, batch_size=batch_size, mode=mode, backend=backend)
    step = repeat_step(trainer, keep_batch(trainer))
    wait_shares: list[float] = []
    loop = run_loop(trainer, wait_shares)
    finish_start(setting, step, started)
    ready = finish_start(setting, loop, started)
    if not setting.is_tiny:
        time_window(repeat(setting, loop), setting.window_sec)
    wait_shares.clear()
    step_windows, windows = [], []
    for _ in range(setting.num_windows):
        step_windows.append(time_window(repeat(setting, step), setting.window_sec))
        windows.append(time_window(repeat(setting, loop), setting.window_sec))
    memory = peak_memory_gb(setting)
    ratio = bootstrap_ratio([a / b for a, b in zip(windows, step_windows, strict=True)])
    row = describe_windows(windows, batch_size)
    yield {
        "name": "train",
        **row,
        "step_windows": step_windows,
        "share_of_step": [ratio.median, ratio.low, ratio.high],
        "data_wait_share": statistics.median(wait_shares),
        "peak_memory_gb": memory,
        **ready,
        **flop_rates(setting, trainer, row["images_per_sec"]),
    }


def time_optimizer(setting: Setting, *, optimizer: str) -> Iterator[Row]:
    """Measure the update alone, on gradients that stay as they are."""
    batch_size = setting.scale(64, TINY_BATCH)
    trainer = build_training(setting, batch_size=batch_size, mode="eager", optimizer=optimizer)
    is_compiled = setting.device == "cuda"
    update = build_optimizer(trainer.model, trainer.recipe, trainer.amp, compiled=is_compiled)
    gradients = {
        parameter: torch.randn_like(parameter)
        for parameter in trainer.model.parameters()
        if parameter.numel() <= setting.scale(2**31, 2**18)  # one without a gradient is left out
    }

    def unit(num_steps: int) -> int:
        for _ in range(num_steps):
            for parameter, gradient in gradients.items():  # Muon takes it away
                parameter.grad = gradient
            update.step()
        return num_steps

    finish_start(setting, unit, time.perf_counter())
    host_ms = measure_host_ms(setting, unit)
    windows = [time_window(repeat(setting, unit), setting.window_sec)
               for _ in range(setting.num_windows)]  # fmt: skip
    yield {
        "name": f"update, {optimizer}",
        "whole_ms": 1e3 / statistics.median(windows),
        "host_ms": host_ms,
    }


def time_evaluation(setting: Setting, *, backend: str) -> Iterator[Row]:
    """Measure whole passes over the val split, the result read back after each."""
    trainer = build_training(setting, batch_size=TINY_BATCH, mode="eager", optimizer="sgd")
    num_classes = len(trainer.dataset.class_names)
    for batch_size in (256, 1024) if not setting.is_tiny else (TINY_BATCH,):
        loader = open_batches(setting, "val", backend, trainer.image_dtype, batch_size)
        started = time.perf_counter()

        def unit(num_passes: int, loader: Loader = loader) -> int:
            num_images = 0
            for _ in range(num_passes):
                result = evaluate_network(
                    trainer.scored_model, loader, num_classes,
                    amp=trainer.amp, device=trainer.device,
                )  # fmt: skip
                num_images += int(result.confusion.sum())
            return num_images

        unit(1)
        synchronize(setting)
        first_sec = time.perf_counter() - started
        windows = [time_window(lambda unit=unit: unit(1), setting.window_sec)  # type: ignore[misc]
                   for _ in range(setting.num_windows)]  # fmt: skip
        rate = statistics.median(windows)
        yield {
            "name": f"evaluate, batch {batch_size}",
            "images_per_sec": rate,
            "windows": windows,
            "pass_ms": 1e3 * trainer.dataset.val.num_images / rate,
            "first_pass_sec": first_sec,
        }
