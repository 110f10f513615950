"""Ranks: the processes that train together, one a device; on its own a process is a world of one.

From: `torchrun`, which says in variables who they are.
To:   every room that reads or adds up on all ranks. What talks to them says so: all ranks must call
      it together.
"""

import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed

from tinyvgg.errors import RankError


def is_distributed() -> bool:
    """Return whether this process is one of a group that trains together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def joined_world(device: torch.device) -> Iterator[int]:
    """Join the processes that torchrun started, if it did; yield this process's rank.

    All ranks leave together, and nothing that holds the group outlives it: gloo's threads abort
    a process that ends while a peer still talks, or that frees the group at interpreter exit.

    Returns:
        A context manager that gives the rank of this process, 0 where it is alone.

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
            f"another rank ended ({summarize_reason(error)}); see its own last line, then "
            "continue with --resume"
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


def find_rank() -> tuple[int, int]:
    """Return the rank of this process and the number of all; (0, 1) on its own."""
    if not is_distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def agree_on(choice: str) -> str:
    """Return the first rank's choice, on all ranks."""
    if not is_distributed():
        return choice
    choices = [choice]
    torch.distributed.broadcast_object_list(choices, src=0)
    return choices[0]
