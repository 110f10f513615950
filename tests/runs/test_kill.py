"""Real processes, killed for real: `tinyvgg train` at random moments, resumed until it is done."""

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

from tinyvgg.shards.store import PackedDataset

# a server that has imported the command once: a process is there in a tenth of a second
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tinyvgg.cli", "tinyvgg.runs.fit", "tinyvgg.inference.evaluate"])


def type_command(words: Sequence[str], log: Path) -> None:
    """Run `tinyvgg` in this process, its output in a file, and exit with its status."""
    from tinyvgg.cli import main

    with log.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    raise SystemExit(main(words))


def start(words: Sequence[str], log: Path) -> BaseProcess:
    """Start a process that types a command."""
    process = SERVER.Process(target=type_command, args=(words, log))
    process.start()
    return process


def read_run(out: Path) -> tuple[dict[str, torch.Tensor], list[tuple[float, ...]]]:
    """Return the last weights of a run, and losses and accuracies of its epochs."""
    weights = torch.load(out / "last.pt", weights_only=True)["trained_model"]
    fields = ("epoch", "train_loss", "train_top1", "val_loss", "val_top1")
    lines = (out / "metrics.jsonl").read_text().splitlines()
    return weights, [tuple(json.loads(line)[field] for field in fields) for line in lines]


@pytest.mark.long
def test_a_run_stopped_at_random_ends_with_the_weights_of_one_that_was_not(
    color_dataset: PackedDataset, tmp_path: Path
) -> None:
    words = ["train", str(color_dataset.folder), "--device", "cpu", "--amp", "off"]
    words += ["--epochs", "8", "--batch-size", "8", "--log-every", "2"]
    words += ["--optimizer", "sgd", "--learning-rate", "6e-4", "--arch", "vgg11", "--sizes", "32"]
    words += ["--size-shares", "1"]
    words += ["--checkpoint-minutes", "0.005"]
    log = tmp_path / "log.txt"
    started = time.monotonic()
    whole = start([*words, "--out", str(tmp_path / "whole")], log)
    whole.join()
    assert whole.exitcode == 0, log.read_text()
    whole_sec = time.monotonic() - started
    expected, expected_epochs = read_run(tmp_path / "whole")

    for name, num_kills in (("SIGKILL", 20), ("SIGTERM", 3)):
        out = tmp_path / name
        stop_at_random([*words, "--out", str(out)], log, name, num_kills, whole_sec)

        found, found_epochs = read_run(out)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
        assert found_epochs == expected_epochs


def stop_at_random(
    words: list[str], log: Path, name: str, num_kills: int, whole_sec: float
) -> None:
    """Start a run, stop it and resume it so many times, then let it end."""
    generator = random.Random(0)
    out = Path(words[-1])
    num_killed = 0

    while True:
        resume = ["--resume"] if (out / "config.json").exists() else []
        process = start([*words, *resume], log)
        if num_killed < num_kills:  # 60 % of a run's time in all, so that it never ends before
            process.join(0.3 + generator.uniform(0, 1.2) * whole_sec / num_kills)
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, getattr(signal, name))
                num_killed += 1
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode in (-getattr(signal, name), 128 + signal.SIGTERM), log.read_text()

    assert num_killed == num_kills
