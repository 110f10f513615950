import time

import pytest
import torch

from tinyvgg.training.amp import AMP_DTYPES, probe_amp


def test_probe_names_a_precision_that_autocast_knows_within_five_seconds() -> None:
    started = time.perf_counter()

    name = probe_amp(torch.device("cpu"))

    assert name in ("off", "bf16")  # fp16 is not asked of a CPU
    assert time.perf_counter() - started < 5


@pytest.mark.parametrize("name", ["off", "bf16", "fp16"])
def test_every_precision_has_a_floating_type(name: str) -> None:
    assert AMP_DTYPES[name].is_floating_point
