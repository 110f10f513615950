"""CUDA code proved without CUDA: what of it can be (see `gpu_static.py`)."""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.gpu_static import HostSyncSpy, allow_cuda_autocast, known_torch
from tinyvgg.inference.evaluate import evaluate_network
from tinyvgg.loading.batch import Batch, resize_images, resize_matrices
from tinyvgg.model import VGG_Net
from tinyvgg.training.average import AveragedNetwork
from tinyvgg.training.config import Recipe
from tinyvgg.training.step import Meter, TrainStep, build_optimizer

pytestmark = [pytest.mark.gpu_static, known_torch]

CUDA = torch.device("cuda", 0)
# launches of Triton kernels in forward and backward, beside 20 convolutions and 12 matrix products;
# 80 with pooling by selections, 90 with torch's own (torch 2.11 and 2.14, sm_80 and sm_90)
NUM_KERNELS = 76
# kernels and library calls of Muon's update of ten convolutions, compiled; one by one they are 290
MUON_LAUNCHES = 41
# a counter and a fused kernel each for weights and biases that are AdamW's, with Muon or without
ADAMW_CALLS = ["aten._foreach_add_.Scalar", "aten._fused_adamw_.default"] * 2


@pytest.fixture
def cuda_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.cuda.amp import common

    monkeypatch.setattr(common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    allow_cuda_autocast()


def build_on_cuda(model: VGG_Net) -> VGG_Net:
    """Replace the parameters by fake ones on CUDA with the same strides; `.to` cannot."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                shape, strides = parameter.shape, parameter.stride()
                fake = torch.empty_strided(shape, strides, device=CUDA)
                module._parameters[name] = nn.Parameter(fake)
    return model


def fake_batch() -> Batch:
    pixels = torch.empty(8, 64, 64, 3, dtype=torch.float16, device=CUDA)
    labels = torch.empty(8, dtype=torch.int64, device=CUDA)
    return Batch(pixels.permute(0, 3, 1, 2), labels, labels, 8)


class EveryResult(torch.utils._python_dispatch.TorchDispatchMode):
    """Keeps every operation, and every tensor that one gives."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.results: list[tuple[str, Tensor]] = []
        self.calls: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        self.calls.append(str(func))
        for value in torch.utils._pytree.tree_leaves(out):
            if isinstance(value, Tensor):
                self.results.append((str(func), value))
        return out


def test_forward_stays_on_the_device_channels_last_and_never_waits(cuda_autocast: None) -> None:
    model = VGG_Net(100, dropout=0.1)
    with FakeTensorMode():
        build_on_cuda(model)
        config = Recipe(optimizer="adamw")
        step = TrainStep(model, build_optimizer(model, config), config, "fp16", CUDA, False)
        meter, batch = Meter(torch.zeros(2, device=CUDA)), fake_batch()
        with EveryResult() as seen, HostSyncSpy() as spy:
            loss, hits = step.compute(batch.images, batch.labels)
            meter.add(loss, hits, batch.num_valid)

    assert spy.hits == []
    assert len(seen.results) > 40
    assert {value.device for _, value in seen.results} == {CUDA}
    maps = [(name, value) for name, value in seen.results if value.dim() == 4]
    convolutions = [value for name, value in maps if "convolution" in name]
    assert len(convolutions) == 10
    assert {value.dtype for value in convolutions} == {torch.float16}
    for name, value in maps:
        if min(value.shape[1:]) > 1 and not name.startswith("aten.slice"):
            assert value.is_contiguous(memory_format=torch.channels_last), name


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "adam"])
def test_the_optimizer_step_stays_on_the_device_and_never_waits(optimizer: Any) -> None:
    model = VGG_Net(100, dropout=0.1)
    with FakeTensorMode():
        build_on_cuda(model)
        config = Recipe(optimizer=optimizer)
        update = build_optimizer(model, config)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        with EveryResult() as seen, HostSyncSpy() as spy:
            update.step()
            update.zero_grad(set_to_none=True)

    assert spy.hits == []
    assert {value.device for _, value in seen.results} == {CUDA}
    for state in update.state.values():
        assert {tensor.device for tensor in state.values()} == {CUDA}


def test_evaluation_never_waits_before_its_end(cuda_autocast: None) -> None:
    model = VGG_Net(100).eval()

    class Loader:
        batch_size, dataset = 8, range(1_000)

        def epoch(self, number: int) -> Iterator[Batch]:
            while True:
                batch = fake_batch()
                yield replace(batch, images=resize_images(batch.images, 48))

    class EndOfTestError(Exception):
        pass

    scored = []

    def advance(num_images: int) -> None:
        scored.append(num_images)
        if len(scored) == 3:
            raise EndOfTestError

    with FakeTensorMode():
        build_on_cuda(model)
        resize_images(fake_batch().images, 48)  # its matrices are copied to the device once
        loader: Any = Loader()
        with HostSyncSpy() as spy, pytest.raises(EndOfTestError):
            evaluate_network(model, loader, 100, amp="fp16", device=CUDA, advance=advance)
    resize_matrices.cache_clear()  # fake ones

    assert scored == [8, 8, 8]
    assert spy.hits == []


def test_averaging_weights_asks_nothing_of_the_device_in_one_call() -> None:
    model = VGG_Net(100)
    average = AveragedNetwork(model, 0.9)
    with FakeTensorMode():
        build_on_cuda(model)
        build_on_cuda(cast(VGG_Net, average.module))
        average.update(model)
        with EveryResult() as seen, HostSyncSpy() as spy:
            average.update(model)

    assert spy.hits == []
    launching = [name for name in seen.calls if not name.startswith(("prim.", "aten.detach"))]
    assert launching == ["aten._foreach_lerp_.Scalar"]


def test_what_muon_leaves_to_adamw_is_two_kernels_for_each_of_two_groups() -> None:
    model = VGG_Net(100)
    config = Recipe(optimizer="muon")
    with FakeTensorMode():
        build_on_cuda(model)
        update = build_optimizer(model, config)
        for parameter in model.parameters():
            if parameter.dim() < 4:
                parameter.grad = torch.empty_like(parameter)
        update.step()  # creates its state
        with EveryResult() as seen:
            update.step()

    assert [name for name in seen.calls if name.startswith("aten.")] == ADAMW_CALLS


def test_the_spy_sees_what_would_make_the_host_wait() -> None:
    with FakeTensorMode(), HostSyncSpy() as spy:
        values = torch.empty(4, device=CUDA)
        for wait in (lambda: values.sum().item(), lambda: values[values > 0]):
            with pytest.raises(Exception):  # noqa: B017, PT011 - torch's own, of several kinds
                wait()
        values.cpu()
        torch.empty(4).to(CUDA)
        torch.empty(4).to(CUDA, non_blocking=True)

    assert spy.hits == [
        "aten._local_scalar_dense.default",
        "index by a mask",
        "blocking copy to cpu",
        "blocking copy to cuda",
    ]


@pytest.mark.long
@pytest.mark.parametrize("capability", [80, 90])
def test_the_training_step_compiles_to_cubins(capability: int) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.compile_step", str(capability)],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    step = found["step"]
    assert step["not_on_cuda"] == step["host_syncs"] == []
    assert step["convolutions"].count("convolution") == 10
    assert step["convolutions"].count("convolution_backward") == 10
    assert len(step["calls"]) == 32
    assert step["layout_copies"] == []  # between convolutions, forward and backward
    assert 0 < len(step["kernels"]) <= NUM_KERNELS
    assert step["num_cubins"] >= len(set(step["kernels"]))
    assert len(found["pixel_pass"]["kernels"]) == 1  # one read, one write
    muon = found["muon"]
    assert muon["not_on_cuda"] == muon["host_syncs"] == []
    assert 0 < muon["num_launches"] <= MUON_LAUNCHES
