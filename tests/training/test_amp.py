from typing import Any

import pytest
import torch

from tinyvgg.training import amp
from tinyvgg.training.amp import AMP_DTYPES, amp_of_cpu, amp_of_cuda, choose_amp, time_amp


@pytest.mark.parametrize(
    ("capability", "name"),
    [((9, 0), "bf16"), ((8, 0), "bf16"), ((12, 0), "bf16"), ((7, 5), "fp16"), ((6, 1), "off")],
)
def test_the_compute_capability_decides_on_cuda(capability: tuple[int, int], name: str) -> None:
    found, reason = amp_of_cuda(capability)

    assert found == name
    assert "{}.{}".format(*capability) in reason


@pytest.mark.parametrize(
    ("flags", "name"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True}, "bf16"), ({"avx2": True}, "off")],
)
def test_the_flags_decide_on_an_x86_cpu(flags: dict[str, Any], name: str) -> None:
    said = amp_of_cpu({"architecture": "x86_64", **flags})

    assert said is not None
    assert said[0] == name


def test_the_flags_of_another_cpu_say_nothing() -> None:
    assert amp_of_cpu({"architecture": "arm64", "bf16": True}) is None


@pytest.mark.skipif(
    torch.cpu.get_capabilities().get("architecture") != "x86_64",
    reason="NOT RUN: an x86 CPU's flags decide, another one is timed",
)
def test_a_busy_cpu_gets_the_answer_of_an_idle_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(amp, "_time_convolution", lambda *_: pytest.fail("timed a convolution"))

    assert choose_amp(torch.device("cpu")) == amp_of_cpu(torch.cpu.get_capabilities())


def test_timing_names_a_precision_that_autocast_knows() -> None:
    name, reason = time_amp(torch.device("cpu"))

    assert name in ("off", "bf16")  # fp16 is not asked of a CPU
    assert "convolution" in reason


def test_timing_takes_the_fastest_of_each_type(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {torch.float32: iter([9, 9, 3, 9, 9, 9]), torch.bfloat16: iter([9, 9, 8, 8, 1, 9])}
    monkeypatch.setattr(amp, "_time_convolution", lambda _, dtype: next(seconds[dtype]))

    assert time_amp(torch.device("cpu"))[0] == "bf16"


@pytest.mark.parametrize("name", ["off", "bf16", "fp16"])
def test_every_precision_has_a_floating_type(name: str) -> None:
    assert AMP_DTYPES[name].is_floating_point
