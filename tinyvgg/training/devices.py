"""Devices: where this process computes."""

import os

import torch

from tinyvgg.errors import BackendUnavailable
from tinyvgg.launched import adopt_slurm


def find_device(name: str) -> torch.device:
    """Return the device that `name` means on this machine.

    Args:
        name: "auto" for an accelerator where there is one, or torch's own name of a device.

    Raises:
        ValueError: torch knows no such device.
        BackendUnavailable: this machine has no such device.
    """
    adopt_slurm()
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "auto":
        return (
            torch.device("cpu")
            if accelerator is None
            else torch.device(accelerator.type, local_rank)
        )
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type == "cpu":
        return device
    if accelerator is None or accelerator.type != device.type:
        found = "none" if accelerator is None else accelerator.type
        raise BackendUnavailable(
            f"device {name!r}: this machine's accelerator is {found} (torch {torch.__version__}); "
            "use --device cpu, or auto"
        )
    index = local_rank if device.index is None else device.index
    count = torch.accelerator.device_count()
    if index >= count:
        raise BackendUnavailable(
            f"device '{device.type}:{index}': this machine has {count}; use 0 to {count - 1}"
        )
    return torch.device(device.type, index)
