"""Ranks: two processes of one thread on a core each, beside one process with two threads.

    python -m benchmarks.ranks PACKED [--batch-size 64] [--repeats 5]

A unit is a step of recipe `fast`, loading included, on images as they are stored. Every arm
trains in processes that it starts and tells to go, so all pay the same for that. The ceiling is two
runs that know nothing of each other, each on one core with half of the batch: what is lost against
it is the exchange of gradients, and waiting for the slower one.
"""

import argparse
import contextlib
import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.ranks import find_rank, joined_world
from tinyvgg.shards import open_dataset
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import Recipe
from tinyvgg.training.process import TRAIN_ENVIRONMENT

CPU = torch.device("cpu")
ONE = "one process, two threads"
RANKS = "two ranks, a core each"
APART = "ceiling: two runs at once, a core each, half the batch"


def train_in(pipe: Connection, packed: str, batch_size: int) -> None:
    """Take a step for every word from a pipe, and say how many images that was."""
    recipe = Recipe(batch_size=batch_size, epochs=1000, sizes=(), size_shares=())
    trainer = build_trainer(recipe, open_dataset(packed), CPU, log_every=10**9)
    steps = trainer.train_steps(10**9)
    _, world_size = find_rank()
    while pipe.recv():
        next(steps)
        pipe.send(batch_size // world_size)


def run_bound(
    target: Callable[..., None],
    pipe: Connection,
    cores: list[int],
    variables: dict[str, str],
    given: tuple[Any, ...],
) -> None:
    """Call a function on some cores, as a rank if there are variables that say so."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    os.environ |= variables
    with joined_world(CPU), contextlib.suppress(EOFError):  # the end: nobody asks any more
        target(pipe, *given)


def run_on(
    target: Callable[..., None], places: list[list[int]], is_joined: bool, *given: Any
) -> Work:
    """Return work of some processes, which do a unit each when a pipe tells them to.

    Args:
        target: module-level function of (pipe, *given); sends the number of images of a unit.
        places: cores of each process.
        is_joined: whether they are ranks of one world.
        given: the rest of the target's arguments.
    """
    context = multiprocessing.get_context("spawn")
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    pipes = []
    for rank, cores in enumerate(places):
        variables: dict[str, str] = {}
        if is_joined:
            variables = {"RANK": str(rank), "WORLD_SIZE": str(len(places))}
            variables |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        pipe, end = context.Pipe()
        words = (target, end, cores, variables, given)
        context.Process(target=run_bound, args=words, daemon=True).start()
        pipes.append(pipe)

    def work() -> int:
        for pipe in pipes:
            pipe.send(True)
        return sum(pipe.recv() for pipe in pipes)

    return work


def train_on(packed: str, batch_size: int, places: list[list[int]], is_joined: bool) -> Work:
    """Steps on some processes, one for each list of cores; `batch_size` is of all together."""
    share = batch_size if is_joined else batch_size // len(places)
    return run_on(train_in, places, is_joined, packed, share)


def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """Return the bars."""
    return [
        make_bar(measured[RANKS], measured[ONE], "ranks against threads", 0.9),
        make_bar(measured[RANKS], measured[APART], "ranks against two runs", 0.95),
    ]


def main() -> None:
    """Measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packed", type=os.path.abspath)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    first, second = sorted(os.sched_getaffinity(0))[:2]

    def arm(name: str, places: list[list[int]], is_joined: bool) -> Arm:
        given = {"packed": options.packed, "batch_size": options.batch_size}
        given |= {"places": places, "is_joined": is_joined}
        return Arm(
            name,
            "benchmarks.ranks:train_on",
            given,
            window_sec=2.0,
            num_windows=3,
            environment=TRAIN_ENVIRONMENT,
            ceiling=None if name == APART else APART,
        )

    arms = [
        arm(ONE, [[first, second]], False),
        arm(RANKS, [[first], [second]], True),
        arm(APART, [[first], [second]], False),
    ]
    claim = f"recipe fast, amp auto, a global batch of {options.batch_size}, on two cores"
    run_benchmark("ranks", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
