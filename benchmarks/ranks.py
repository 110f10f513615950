"""Ranks: two processes of one thread on a core each, beside one process with two threads.

    python -m benchmarks.ranks PACKED [--batch-size 64] [--repeats 5]

A unit is five steps of recipe `fast`, loading included, on images as they are stored. Every arm
trains in processes that it starts and tells to go, so all pay the same for that. The ceiling is two
runs that know nothing of each other, each on one core with half of the batch: what is lost against
it is the exchange of gradients, and waiting for the slower one.
"""

import argparse
import multiprocessing
import os
import socket
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.ranks import joined_world
from tinyvgg.shards import open_dataset
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import Recipe
from tinyvgg.training.process import TRAIN_ENVIRONMENT

CPU = torch.device("cpu")
STEPS = 5
ONE = "one process, two threads"
RANKS = "two ranks, a core each"
APART = "ceiling: two runs at once, a core each, half the batch"


def train_in(
    pipe: Connection, cores: list[int], packed: str, batch_size: int, variables: dict[str, str]
) -> None:
    """Take five steps for every word from a pipe, on some cores, and say when they are done."""
    os.sched_setaffinity(0, cores)
    torch.set_num_threads(len(cores))
    os.environ |= variables
    with joined_world(CPU):
        recipe = Recipe(batch_size=batch_size, epochs=1000, sizes=(), size_shares=(), amp="off")
        trainer = build_trainer(recipe, open_dataset(packed), CPU, log_every=10**9)
        steps = trainer.train_steps(10**9)
        while pipe.recv():
            for _ in range(STEPS):
                next(steps)
            pipe.send(True)


def train_on(packed: str, batch_size: int, places: list[list[int]], is_joined: bool) -> Work:
    """Steps on some processes, one for each list of cores.

    Args:
        packed: the data set.
        batch_size: of all processes together.
        places: cores of each process.
        is_joined: whether they train one network.
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
        given = batch_size if is_joined else batch_size // len(places)
        pipe, end = context.Pipe()
        context.Process(
            target=train_in, args=(end, cores, packed, given, variables), daemon=True
        ).start()
        pipes.append(pipe)

    def work() -> int:
        for pipe in pipes:
            pipe.send(True)
        for pipe in pipes:
            pipe.recv()
        return STEPS * batch_size

    return work


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
            window_sec=3.0,
            environment=TRAIN_ENVIRONMENT,
            ceiling=None if name == APART else APART,
        )

    arms = [
        arm(ONE, [[first, second]], False),
        arm(RANKS, [[first], [second]], True),
        arm(APART, [[first], [second]], False),
    ]
    claim = f"recipe fast in float32, a global batch of {options.batch_size}, on two cores"
    run_benchmark("ranks", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
