"""Devices: where this process computes, and which other processes it trains with.

One process a device under `torchrun`; on its own a process is a world of one.
"""

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed

from tinyvgg.errors import BackendUnavailable, RankError
from tinyvgg.loading.open import is_distributed


def find_device(name: str) -> torch.device:
    """Return the device that `name` means on this machine.

    Args:
        name: "auto" for an accelerator where there is one, or torch's own name of a device.

    Raises:
        ValueError: torch knows no such device.
        BackendUnavailable: this machine has no such device.
    """
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


@contextmanager
def joined_world(device: torch.device) -> Iterator[int]:
    """Join the processes that torchrun started, if it did; yield this process's rank.

    All ranks leave together, and nothing that holds the group outlives it: gloo's threads abort
    a process that ends while a peer still talks, or that frees the group at interpreter exit.

    Raises:
        RankError: another rank ended before this one, killed or with an error of its own.
    """
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    if "WORLD_SIZE" not in os.environ:
        yield 0
        return
    try:
        if device.type == "cuda":  # said, NCCL need not guess it from the rank
            torch.distributed.init_process_group("nccl", device_id=device)
        else:
            torch.distributed.init_process_group("gloo")
        try:
            yield torch.distributed.get_rank()
            torch.distributed.barrier()
        finally:
            gc.collect()  # a DistributedDataParallel in a reference cycle holds the group
            torch.distributed.destroy_process_group()
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise RankError(
            f"another rank ended ({summarize_reason(error)}); see its own last line, then go on "
            "with --resume"
        ) from error


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error is that of talking to another rank.

    NCCL and the store have a type of their own for it, gloo has only the place in its source.
    """
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def summarize_reason(error: RuntimeError) -> str:
    """Return the first sentence of an error, without the place in torch's source before it."""
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[[^]]*\] *", "", first_line).partition(". ")[0]


def agree_on(choice: str) -> str:
    """Return the first rank's choice, on all ranks."""
    if not is_distributed():
        return choice
    choices = [choice]
    torch.distributed.broadcast_object_list(choices, src=0)
    return choices[0]
