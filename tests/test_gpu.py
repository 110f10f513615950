"""What only a GPU can show. None of it has run where there is none; `make gpu-check` runs it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.loading.contract import keep
from tests.loading.test_dali import assert_equal_batches
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.open import Loader
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import TrainConfig
from tinyvgg.training.loop import train
from tinyvgg.training.state import Training, open_training

pytestmark = pytest.mark.gpu

BACKENDS = [pytest.param("dali", marks=pytest.mark.dali), "torch", "resident"]
DTYPES = [torch.uint8, torch.float32, torch.bfloat16, torch.float16]
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def open_cuda(dataset: PackedDataset, backend: Any, dtype: torch.dtype, **fields: Any) -> Loader:
    config = LoaderConfig(backend=backend, batch_size=5, drop_last=False, **fields)
    return open_loader(dataset, "train", config, device="cuda", dtype=dtype)


@contextmanager
def no_host_wait() -> Iterator[None]:
    """Let torch raise where the host would wait for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@every_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_batches_on_cuda_equal_those_of_the_cpu(
    packed: PackedDataset, backend: str, dtype: torch.dtype
) -> None:
    config = LoaderConfig(backend="torch", batch_size=5, drop_last=False)
    on_cpu = open_loader(packed, "train", config, dtype=dtype)
    on_cuda = open_cuda(packed, backend, dtype)

    for epoch in range(2):
        for batch, expected in zip(on_cuda.epoch(epoch), on_cpu.epoch(epoch), strict=True):
            assert batch.images.device.type == batch.labels.device.type == "cuda"
            moved = keep(batch)
            fields = {"images": moved.images.cpu(), "ids": moved.ids.cpu()}
            fields |= {"labels": moved.labels.cpu()}
            assert_equal_batches([type(moved)(**fields, num_valid=batch.num_valid)], [expected])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_and_resident_are_bit_equal_on_cuda(
    packed: PackedDataset, dtype: torch.dtype
) -> None:
    loaders = [open_cuda(packed, backend, dtype) for backend in ("torch", "resident")]

    for one, other in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@every_backend
def test_reading_never_makes_the_host_wait(packed: PackedDataset, backend: str) -> None:
    loader = open_cuda(packed, backend, torch.bfloat16)
    for batch in loader.epoch(0):  # compiles, allocates
        total = batch.images.float().sum()

    torch.cuda.synchronize()
    with no_host_wait():
        for epoch in range(1, 4):
            for batch in loader.epoch(epoch):
                total += batch.images.float().sum()

    assert torch.isfinite(total)


def start_training(dataset: PackedDataset, out: Path, **fields: Any) -> Training:
    config = TrainConfig(
        dataset.folder, out, batch_size=11, epochs=4, warmup=0.0, **{"amp": "bf16", **fields}
    )
    return open_training(config, dataset, torch.device("cuda", 0), rank=0)


@every_backend
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_step_never_makes_the_host_wait_and_learns(
    packed: PackedDataset, tmp_path: Path, backend: str, mode: str
) -> None:
    training = start_training(
        packed, tmp_path / "run", backend=backend, compile="on", compile_mode=mode
    )
    training.prepare()  # captures before DALI starts
    losses = []
    for batch in training.loader.epoch(0):
        losses.append(training.take_step(batch, 1e-3)[0].clone())

    torch.cuda.synchronize()
    with no_host_wait():
        for epoch in range(1, 4):
            for batch in training.loader.epoch(epoch):
                losses.append(training.take_step(batch, 1e-3)[0].clone())

    assert len(losses) == 12
    assert all(torch.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]


@every_backend
def test_memory_does_not_grow_over_three_epochs(
    packed: PackedDataset, tmp_path: Path, backend: str
) -> None:
    training = start_training(packed, tmp_path / "run", backend=backend)
    allocated, used = [], []

    for metrics in train(training, None, lambda report: None):
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        allocated.append(torch.cuda.memory_allocated())
        used.append(total - free)
        training.history.append(metrics)

    assert len(allocated) == 4
    assert allocated[3] == allocated[1]
    assert used[3] - used[1] <= 64 * 2**20


def test_cuda_graphs_leave_the_run_as_it_is(packed: PackedDataset, tmp_path: Path) -> None:
    runs = []
    for mode in ("default", "reduce-overhead"):
        training = start_training(
            packed, tmp_path / mode, backend="torch", compile="on", compile_mode=mode, dropout=0.0
        )
        for _ in train(training, None, lambda report: None):
            pass
        runs.append(training.model.classifier.weight.detach().cpu())

    assert torch.allclose(*runs, atol=2e-2)


def test_auto_takes_dali_and_says_why(
    packed: PackedDataset, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tinyvgg")

    loader = open_cuda(packed, "auto", torch.float16)

    assert loader.backend == "dali"
    assert "NVIDIA DALI is installed" in caplog.text
