"""Ranks for tests: real processes on a CPU, forked from a server that has imported torch."""

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tinyvgg.ranks import joined_world

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tinyvgg.runs.fit", "tinyvgg.ranks", "tinyvgg.runs.signals"])


def find_port() -> int:
    """Return a port that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return int(listener.getsockname()[1])


def run_ranks(
    world_size: int, work: Callable[..., Any], *arguments: Any, out: Path, timeout_sec: float = 300
) -> list[Any]:
    """Return what `work` returns on each of some ranks, through JSON.

    Args:
        world_size: number of processes, each of one thread; one of them alone joins nobody.
        work: called in each as `work(*arguments)`, inside `joined_world`.
        arguments: can be pickled.
        out: folder for what they return.
        timeout_sec: after which they are killed.
    """
    out.mkdir(parents=True, exist_ok=True)
    port = find_port()
    ranks = [
        SERVER.Process(target=_be_rank, args=(rank, world_size, port, work, arguments, out))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout_sec)
        process.kill()
    assert [process.exitcode for process in ranks] == [0] * world_size
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(world_size)]


def _be_rank(
    rank: int,
    world_size: int,
    port: int,
    work: Callable[..., Any],
    arguments: tuple[Any, ...],
    out: Path,
) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {"WORLD_SIZE": str(world_size), "RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    with joined_world(torch.device("cpu"), 120):
        returned = work(*arguments)
    (out / f"{rank}.json").write_text(json.dumps(returned))
