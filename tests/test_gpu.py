"""The device half on a device: a GPU where there is one, else the CPU, which has most facts too.

Marked `gpu` is what a CPU does not have: streams that the host runs ahead of, CUDA graphs, device
memory, a second device, kernels to count. `make gpu-check` runs all of it and fails without a GPU.
"""

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image
from torch.profiler import ProfilerActivity, profile

from tests.closeness import relative_error
from tests.loading.contract import keep
from tests.loading.test_dali import assert_equal_batches
from tinyvgg.inference.evaluate import evaluate_network
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import resize_images
from tinyvgg.loading.loader import Loader
from tinyvgg.options import Backend
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.fit import open_run, train_run
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import Trainer

HAS_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda", 0) if HAS_GPU else torch.device("cpu")
BACKENDS = [pytest.param("dali", marks=pytest.mark.dali), "torch", "resident"]
DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.float16]
pytestmark = [pytest.mark.gpu] if HAS_GPU else []
every_backend = pytest.mark.parametrize("backend", BACKENDS)
# a CPU trains the network that learns in the fewest operations, on the smallest images
ARCH, PIXELS, BATCH_SIZE = ("vgg_net", 64, 64) if HAS_GPU else ("vgg11_bn", 32, 8)
NUM_LAUNCHES = 200  # of a compiled step with its loader; 108 of forward and backward are counted


@pytest.fixture
def bright(pack_arrays: Callable[..., PackedDataset]) -> PackedDataset:
    """Noise of 4 batches of train and 2 of val images, 2 classes: class 1 is brighter."""

    def draw(num_images: int) -> tuple[np.ndarray, np.ndarray]:
        labels = np.arange(num_images) % 2
        shape = (num_images, PIXELS, PIXELS, 3)
        noise = np.random.default_rng(num_images).integers(0, 128, shape)
        return (noise + 100 * labels[:, None, None, None]).astype(np.uint8), labels

    return pack_arrays("bright", *draw(4 * BATCH_SIZE), *draw(2 * BATCH_SIZE))


def open_on_device(
    dataset: PackedDataset, backend: Any, dtype: torch.dtype, **fields: Any
) -> Loader:
    config = LoaderConfig(**{"backend": backend, "batch_size": 5, "drop_last": False, **fields})
    return open_loader(dataset, "train", config, device=DEVICE, dtype=dtype)


def make_recipe(**fields: Any) -> Recipe:
    """Return a recipe, eager unless it is said otherwise, in bf16 on a GPU."""
    defaults = {
        "arch": ARCH,
        "batch_size": BATCH_SIZE,
        "epochs": 4,
        "warmup": 0.0,
        "compile": "off",
    }
    defaults |= {"amp": "bf16" if HAS_GPU else "off", "sizes": (), "size_shares": ()}
    return Recipe(**{**defaults, **fields})


def start_training(dataset: PackedDataset, **fields: Any) -> Trainer:
    """Return a trainer at its first step."""
    return build_trainer(make_recipe(**fields), dataset, DEVICE)


def run_to_end(trainer: Trainer) -> list[float]:
    """Train without scoring; return the loss of every epoch."""
    losses = []
    while trainer.step < trainer.num_steps:
        for _ in trainer.train_epoch():
            pass
        assert trainer.trained is not None
        losses.append(trainer.trained.train_loss)
        trainer.trained = None
    return losses


@contextmanager
def no_host_wait() -> Iterator[None]:
    """Let torch raise where the host would wait for the device."""
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def keep_busy() -> None:
    """Give the device some milliseconds of work."""
    size = 4096 if HAS_GPU else 256
    matrix = torch.ones(size, size, device=DEVICE)
    for _ in range(4):
        matrix = matrix @ matrix * 1e-4


def encode_smooth(pixels: np.ndarray, number: int) -> bytes:
    """Return a JPEG file of 4:2:0, as cameras write them, of coarse colors scaled up."""
    coarse = np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)
    image = Image.fromarray(coarse).resize(pixels.shape[1::-1], Image.Resampling.BICUBIC)
    data: bytes = simplejpeg.encode_jpeg(np.asarray(image), 90, colorsubsampling="420")
    return data


@pytest.fixture
def photographs(pack_arrays: Callable[..., PackedDataset]) -> PackedDataset:
    """23 train and 5 val JPEG files of 160 x 200 pixels, 2 classes."""
    empty = np.zeros((23, 160, 200, 3), np.uint8)
    labels = np.arange(23) % 2
    return pack_arrays("jpegs", empty, labels, empty[:5], labels[:5], encode=encode_smooth)


@pytest.mark.parametrize("view", [{}, {"view": "resized-crop", "size": 96}], ids=str)
@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_jpeg_files_give_the_cpus_pixels_nearly_and_its_ids_exactly(
    photographs: PackedDataset, backend: Any, view: dict[str, Any]
) -> None:
    found = open_on_device(photographs, backend, torch.uint8, seed=3, **view)
    config = LoaderConfig(backend="torch", batch_size=5, drop_last=False, seed=3, **view)
    expected = open_loader(photographs, "train", config, dtype=torch.uint8)

    # nvJPEG rounds otherwise, and where `torch` calls it repeats the nearest chroma; first
    # tolerances, tried on no GPU yet
    mean, most = (1.5, 96) if backend == "torch" else (0.5, 16)
    if not HAS_GPU and backend == "torch":  # the host decodes
        mean, most = 0.0, 0
    for batch, other in zip(found.epoch(1), expected.epoch(1), strict=True):
        difference = (batch.images.cpu().int() - other.images.int()).abs()
        assert difference.float().mean() <= mean
        assert difference.max() <= most
        assert batch.ids.tolist() == other.ids.tolist()
        assert batch.labels.tolist() == other.labels.tolist()


@pytest.mark.dali
def test_no_pixel_depends_on_the_place_of_its_image_in_the_batch(
    photographs: PackedDataset,
) -> None:
    by_id: dict[int, torch.Tensor] = {}
    for batch_size in (23, 5, 1):
        loader = open_on_device(
            photographs, "dali", torch.uint8, batch_size=batch_size, augment=False
        )
        for batch in loader.epoch(batch_size):
            for id_, image in zip(batch.ids.tolist(), batch.images.cpu(), strict=True):
                assert id_ < 0 or torch.equal(by_id.setdefault(id_, image.clone()), image)


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batches_on_the_device_equal_those_of_the_cpu(
    packed: PackedDataset, backend: Backend, dtype: torch.dtype
) -> None:
    config = LoaderConfig(backend="torch", batch_size=5, drop_last=False)
    on_cpu = open_loader(packed, "train", config, dtype=dtype)
    on_device = open_on_device(packed, backend, dtype)

    for epoch in range(2):
        for batch, expected in zip(on_device.epoch(epoch), on_cpu.epoch(epoch), strict=True):
            assert batch.images.device.type == batch.labels.device.type == DEVICE.type
            moved = keep(batch)
            fields = {"images": moved.images.cpu(), "ids": moved.ids.cpu()}
            fields |= {"labels": moved.labels.cpu()}
            assert_equal_batches([type(moved)(**fields, num_valid=batch.num_valid)], [expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_and_resident_are_bit_equal_on_one_device(
    packed: PackedDataset, dtype: torch.dtype
) -> None:
    loaders = [open_on_device(packed, backend, dtype) for backend in ("torch", "resident")]

    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@every_backend
def test_no_slot_is_written_while_a_busy_device_still_reads_it(
    pack_arrays: Callable[..., PackedDataset], backend: Backend
) -> None:
    numbers = np.arange(4096 if HAS_GPU else 256)
    values = (numbers % 251).astype(np.uint8)[:, None, None, None]
    images = np.ascontiguousarray(np.broadcast_to(values, (len(numbers), 8, 8, 3)))
    dataset = pack_arrays("numbered", images, numbers % 2, images[:2], numbers[:2])
    batch_size = len(numbers) // 8
    loader = open_on_device(dataset, backend, torch.uint8, batch_size=batch_size, augment=False)
    wrong = torch.zeros((), dtype=torch.int64, device=DEVICE)

    for epoch in range(3):
        for batch in loader.epoch(epoch):
            keep_busy()  # the host is far ahead when the pixels are read
            wrong += (batch.images != (batch.ids % 251)[:, None, None, None]).sum()

    assert wrong.item() == 0


@every_backend
def test_a_loader_that_is_left_early_or_jumps_gives_the_right_batches(
    packed: PackedDataset, backend: Backend
) -> None:
    loader = open_on_device(packed, backend, torch.uint8)
    reference = open_loader(packed, "train", LoaderConfig("torch", batch_size=5, drop_last=False))

    def ids_of(batches: Iterator[Any], count: int) -> list[list[int]]:
        return [batch.ids.tolist() for batch, _ in zip(batches, range(count), strict=False)]

    for epoch, count in ((0, 2), (5, 3), (0, 7), (2, 1)):
        assert ids_of(loader.epoch(epoch), count) == ids_of(reference.epoch(epoch), count)
    ids_of(loader.epoch(1), 3)
    resumed = open_on_device(packed, backend, torch.uint8)
    resumed.load_state_dict(loader.state_dict())
    state = resumed.state
    assert (state.epoch, state.images_consumed) in ((1, 15), (1, 20))  # zip asks for one more
    consumed = state.images_consumed // 5
    assert ids_of(iter(resumed), 7) == ids_of(reference.epoch(1), 7)[consumed:]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_images_are_resized_on_the_device_as_on_the_cpu(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64).to(dtype).contiguous(memory_format=torch.channels_last)
    units = 2 * torch.finfo(dtype).eps if dtype.itemsize < 4 else 1e-5

    found = resize_images(images.to(DEVICE), 48).cpu().float()

    expected = resize_images(images, 48).float()
    assert ((found - expected).abs() <= units * expected.abs().clamp(min=1)).all()


def test_a_run_learns_what_tells_the_classes_apart(bright: PackedDataset) -> None:
    training = start_training(bright, epochs=6 if HAS_GPU else 3)

    losses = run_to_end(training)

    # log 2 is 0.693, and label smoothing keeps it over 0.198
    assert min(losses) < 0.45


def test_a_batch_in_parts_has_the_update_of_a_whole_one(bright: PackedDataset) -> None:
    updates = []
    arch = ARCH.removesuffix("_bn")  # whose statistics are those of a part
    for parts in (1, 2):
        training = start_training(bright, arch=arch, accumulate=parts, amp="off", epochs=1)
        before = [weight.detach().clone() for weight in training.model.parameters()]
        batch = next(training.loader.epoch(0))
        training.model.train()
        training.take_step(batch, 1e-3)
        after = training.model.parameters()
        moved = [(new - old).flatten() for new, old in zip(after, before, strict=True)]
        updates.append(torch.cat(moved))

    assert updates[0].norm() > 0
    assert relative_error(updates[1], updates[0]) < 1e-2


@(pytest.mark.gpu if HAS_GPU else pytest.mark.long)  # tests/runs/test_fit.py does it on a CPU
def test_a_run_that_was_stopped_and_resumed_ends_with_the_losses_of_one_that_was_not(
    bright: PackedDataset, tmp_path: Path
) -> None:
    whole = run_to_end(start_training(bright, epochs=2))
    recipe, out = make_recipe(epochs=2), tmp_path / "run"
    stopped = open_run(recipe, bright, DEVICE, out, RunOptions(limit_steps=6))
    train_run(stopped)

    resumed = open_run(recipe, bright, DEVICE, out, RunOptions(resume=True))
    train_run(resumed)

    assert stopped.trainer.step == 6
    losses = [record.train_loss for record in resumed.history]
    assert losses == pytest.approx(whole, rel=0.0 if not HAS_GPU else 1e-2)


# what only a GPU has


@pytest.mark.gpu
@every_backend
def test_reading_never_makes_the_host_wait(packed: PackedDataset, backend: Backend) -> None:
    loader = open_on_device(packed, backend, torch.bfloat16)
    for batch in loader.epoch(0):  # compiles, allocates
        total = batch.images.float().sum()

    with no_host_wait():
        for epoch in range(1, 4):
            for batch in loader.epoch(epoch):
                total += batch.images.float().sum()

    assert torch.isfinite(total)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "fields",
    [
        {"backend": "torch", "compile": "on"},
        {"backend": "resident", "compile": "on"},
        pytest.param({"backend": "dali", "compile": "on"}, marks=pytest.mark.dali),
        {"backend": "resident", "compile": "on", "compile_mode": "reduce-overhead"},
        {"backend": "resident", "compile": "on", "ema_decay": 0.9, "accumulate": 2},
        {"backend": "resident", "optimizer": "sgd", "learning_rate": 0.01, "clip_norm": 1.0},
    ],
    ids=str,
)
def test_a_step_never_makes_the_host_wait(bright: PackedDataset, fields: dict[str, Any]) -> None:
    training = start_training(bright, **fields)
    training.prepare()  # captures before DALI starts
    training.model.train()
    training.loader.set_size(48)
    losses = []

    def epoch(number: int) -> None:
        for batch in training.loader.epoch(number):
            losses.append(training.take_step(batch, 1e-3)[0].detach().clone())
            training.update_average()

    epoch(0)  # compiles what `prepare` did not, fills the caches
    with no_host_wait():
        for number in range(1, 4):
            epoch(number)

    assert torch.stack(losses).isfinite().all()


@pytest.mark.gpu
def test_fp16_is_scaled_and_moves_the_weights(bright: PackedDataset) -> None:
    training = start_training(bright, amp="fp16", compile="on", epochs=6)
    scale = training.take_step.scaler.get_scale()

    losses = run_to_end(training)

    assert 1 < training.take_step.scaler.get_scale() <= scale
    assert min(losses) < 0.45


@pytest.mark.gpu
def test_scoring_never_makes_the_host_wait_before_its_end(bright: PackedDataset) -> None:
    training = start_training(bright)
    config = LoaderConfig("resident", batch_size=BATCH_SIZE)
    loader = open_loader(bright, "val", config, device=DEVICE, dtype=torch.bfloat16)
    network, amp = training.model, training.amp
    expected = evaluate_network(network, loader, 2, amp=amp, device=DEVICE)
    scored: list[int] = []

    class EndOfTestError(Exception):
        pass

    def advance(num_images: int) -> None:
        scored.append(num_images)
        if len(scored) == len(loader):
            raise EndOfTestError

    with no_host_wait(), pytest.raises(EndOfTestError):
        evaluate_network(network, loader, 2, amp=amp, device=DEVICE, advance=advance)

    assert sum(scored) == expected.confusion.sum()


@pytest.mark.gpu
@every_backend
def test_memory_does_not_grow_over_three_epochs(bright: PackedDataset, backend: Backend) -> None:
    training = start_training(bright, backend=backend)
    allocated, used = [], []

    while training.step < training.num_steps:
        for _ in training.train_epoch():
            pass
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        allocated.append(torch.cuda.memory_allocated())
        used.append(total - free)

    assert len(allocated) == 4
    assert allocated[3] == allocated[1]
    assert used[3] - used[1] <= 64 * 2**20


@pytest.mark.gpu
def test_cuda_graphs_of_two_sizes_leave_the_run_as_it_is(bright: PackedDataset) -> None:
    updates, losses = [], []
    for mode in ("default", "reduce-overhead"):
        training = start_training(
            bright, backend="torch", compile="on", compile_mode=mode,
            sizes=(48,), size_shares=(0.5,), learning_rate=1e-3,
        )  # fmt: skip
        before = torch.cat([weight.detach().flatten() for weight in training.model.parameters()])
        losses.append(run_to_end(training))
        after = torch.cat([weight.detach().flatten() for weight in training.model.parameters()])
        updates.append(after - before)

    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert relative_error(updates[1], updates[0]) < 0.3  # bf16, and sums in another order


@pytest.mark.gpu
@pytest.mark.dali
def test_graphs_are_captured_while_dali_runs(bright: PackedDataset) -> None:
    other = open_on_device(bright, "dali", torch.float16, batch_size=BATCH_SIZE)
    batches = iter(other)
    next(batches)

    training = start_training(bright, backend="dali", compile="on", compile_mode="reduce-overhead")
    losses = run_to_end(training)

    assert len(losses) == 4
    assert sum(len(batch.ids) for batch in batches) == 3 * BATCH_SIZE


@pytest.mark.gpu
@pytest.mark.dali
def test_auto_takes_dali_and_says_why(
    packed: PackedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tinyvgg")

    loader = open_on_device(packed, "auto", torch.float16)

    assert loader.backend == "dali"
    assert "NVIDIA DALI is installed" in caplog.text


@pytest.mark.gpu
def test_a_step_copies_no_layout_and_nothing_but_its_batch(bright: PackedDataset) -> None:
    training = start_training(bright, backend="resident", compile="on")
    training.prepare()
    training.model.train()
    num_steps = 20

    def take(count: int) -> None:
        batches = (batch for epoch in range(99) for batch in training.loader.epoch(epoch))
        for _, batch in zip(range(count), batches, strict=False):
            training.take_step(batch, 1e-3)
        torch.cuda.synchronize()

    take(5)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        take(num_steps)

    on_device = [
        event
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    ]
    names = [event.name for event in on_device]
    copies = [name for name in names if "Memcpy" in name and "DtoD" not in name]
    layouts = [name for name in names if "nchwToNhwc" in name or "nhwcToNchw" in name]
    assert layouts == []
    assert len(copies) <= 6 * (num_steps // len(training.loader) + 1)  # an epoch's plan
    assert len(names) <= NUM_LAUNCHES * num_steps


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT RUN: one device, needs two")
@every_backend
def test_batches_of_the_second_device_equal_those_of_the_first(
    packed: PackedDataset, backend: Any
) -> None:
    config = LoaderConfig(backend=backend, batch_size=5)
    loaders = [
        open_loader(packed, "train", config, device=f"cuda:{index}", dtype=torch.float32)
        for index in range(2)
    ]

    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert other.images.device.index == 1
        assert torch.equal(one.images.cpu(), other.images.cpu())


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="NOT RUN: one device, needs two")
def test_two_devices_train_compiled(bright: PackedDataset, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["train", str(bright.folder), "--out", str(tmp_path / "run"), "--epochs", "2"]
    words += ["--batch-size", str(BATCH_SIZE), "--compile", "on"]
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "tinyvgg.cli", *words],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TORCH_LOGS": "graph_breaks"},
    )

    assert done.returncode == 0, done.stderr
    assert "Graph break" not in done.stderr
    assert (tmp_path / "run" / "best.pt").exists()
