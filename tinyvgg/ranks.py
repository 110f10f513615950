"""Ranks: the processes that train together, one a device; on its own a process is a world of one.

From: `launched`: torchrun or SLURM, which say in variables who they are.
To:   every room that reads or adds up on all ranks. What talks to them says so: all ranks must call
      it together.

A rank that is killed closes its connections, which the others see at once. One that says nothing (a
stopped process, a cable pulled) is waited for as long as `joined_world` was told. Either way every
other rank ends with one `RankError`.
"""

import gc
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from typing import TypeVar, cast

import torch
import torch.distributed

from tinyvgg.errors import RankError
from tinyvgg.launched import adopt_slurm, count_restarts, keeps_old_addresses

# NCCL's own watchdog ends a process without a word, so gloo, which all ask after each step, is
# to notice first
NCCL_MARGIN_SEC = 60.0
logger = logging.getLogger("tinyvgg")

JOIN_SEC = 300.0  # for all to start: one may be long in importing torch from a slow disk
SILENCE = re.compile(r"timed? ?out", re.IGNORECASE)

Value = TypeVar("Value")


def is_distributed() -> bool:
    """Return whether this process is one of a group that trains together."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def joined_world(device: torch.device, timeout_sec: float = 600.0) -> Iterator[int]:
    """Join the processes that torchrun or SLURM started, if one did; yield this process's rank.

    All ranks leave together, and nothing that holds the group outlives it: gloo's threads abort
    a process that ends while a peer still talks, or that frees the group at interpreter exit.

    Args:
        device: of this process.
        timeout_sec: after which a rank that says nothing is taken for lost.

    Returns:
        A context manager that gives the rank of this process, 0 where it is alone.

    Raises:
        RankError: another rank ended before this one, killed or with an error of its own, or was
            silent for too long.
    """
    if device.type != "cpu":
        torch.accelerator.set_device_index(device.index)
    adopt_slurm()
    if "WORLD_SIZE" not in os.environ:
        yield 0
        return
    if keeps_old_addresses():
        logger.warning(
            "torchrun keeps what ended processes said: that it may start them again on several "
            "nodes, start it with TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1"
        )
    try:
        _join(device, timeout_sec)
        try:
            yield torch.distributed.get_rank()
            torch.distributed.barrier()
        finally:
            is_lost = isinstance(sys.exc_info()[1], RuntimeError)
            with _deaf() if is_lost else nullcontext():
                gc.collect()  # a DistributedDataParallel in a reference cycle holds the group
                torch.distributed.destroy_process_group()
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise RankError(explain_loss(error, timeout_sec)) from error


def _join(device: torch.device, timeout_sec: float) -> None:
    """Join the group of all ranks.

    Raises:
        RankError: some did not come.
    """
    # here: a torch without torch.distributed has neither
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    is_cuda = device.type == "cuda"
    timeout = timedelta(seconds=timeout_sec + (NCCL_MARGIN_SEC if is_cuda else 0))
    join_sec = max(timeout_sec, JOIN_SEC)
    try:
        joined = rendezvous("env://", timeout=timedelta(seconds=join_sec))
        store, rank, world_size = next(joined)
        # one store outlives the processes that torchrun starts again, and with it their addresses
        store = PrefixStore(f"attempt_{count_restarts()}", store)
        store.set(f"rank_{rank}", "here")
        store.wait([f"rank_{other}" for other in range(world_size)], timedelta(seconds=join_sec))
    except torch.distributed.DistError as error:
        place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        raise RankError(
            f"rank {os.environ.get('RANK')}: not all {os.environ['WORLD_SIZE']} ranks met at "
            f"{place} within {join_sec:g} s ({summarize_reason(error)}); see whether each was "
            "started, and reaches that address"
        ) from error
    torch.distributed.init_process_group(
        "nccl" if is_cuda else "gloo",
        store=store,
        rank=rank,
        world_size=world_size,
        timeout=timeout,
        device_id=device if is_cuda else None,  # said, NCCL need not guess it from the rank
    )


@contextmanager
def _deaf() -> Iterator[None]:
    """Ignore SIGTERM while a rank ends because it lost another one: torchrun sends it then."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error is that of talking to another rank.

    NCCL and the store have a type of their own for it, gloo has only the place in its source.
    """
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def explain_loss(error: RuntimeError, timeout_sec: float) -> str:
    """Return the one line that this rank says of another one that was lost."""
    me = f"rank {os.environ.get('RANK', '0')}"
    reason = summarize_reason(error)
    if SILENCE.search(reason):
        return (
            f"{me}: another rank said nothing for {timeout_sec:g} s, --dist-timeout ({reason}); "
            "see whether it or the network hangs, then continue with --resume"
        )
    return (
        f"{me}: another rank ended ({reason}); see its own last line, then continue with --resume"
    )


def summarize_reason(error: RuntimeError) -> str:
    """Return the first sentence of an error, without the place in torch's source before it."""
    first_line = str(error).strip().partition("\n")[0]
    return re.sub(r"^\[[^]]*\] *", "", first_line).partition(". ")[0]


def find_rank() -> tuple[int, int]:
    """Return the rank of this process and the number of all; (0, 1) on its own."""
    if not is_distributed():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def agree_on(choice: Value) -> Value:
    """Return the first rank's choice, on all ranks; of any type that can be pickled."""
    if not is_distributed():
        return choice
    choices = [choice]
    torch.distributed.broadcast_object_list(choices, src=0)
    return choices[0]


def ask_first_rank(answer: Callable[[], Value]) -> Value:
    """Return what a function returns on the first rank, where alone it is called; on all ranks.

    For what lies on the disk of the first rank's machine, and maybe nowhere else.

    Raises:
        Exception: what it raised there, on all ranks.
    """
    if not is_distributed():
        return answer()
    rank, _ = find_rank()
    outcome: tuple[bool, Value | Exception | None] = (True, None)
    if rank == 0:
        try:
            outcome = (True, answer())
        except Exception as error:  # goes on to all of them
            outcome = (False, error)
    is_answer, value = agree_on(outcome)
    if isinstance(value, Exception) and not is_answer:
        raise value
    return cast(Value, value)
