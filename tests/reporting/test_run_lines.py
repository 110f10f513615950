import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.runs.tiny_network import Tiny
from tinyvgg.reporting.run_lines import (
    RunLines,
    estimate_sec,
    render_duration,
    render_ending,
    render_opening,
)
from tinyvgg.reporting.run_log import RunLog
from tinyvgg.runs.config import Output, RunOptions
from tinyvgg.runs.fit import Callback, Run, open_run, train_run
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import StepReport

CPU = torch.device("cpu")
SMALL = {"arch": "vgg11", "optimizer": "sgd", "learning_rate": 0.01, "dropout": 0.0}
SMALL |= {"sizes": (32,), "size_shares": (1.0,)}


@pytest.fixture
def open_small(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> Callable[..., Run]:
    """Open a run of 5 steps an epoch, whose steps take a tenth of a second longer if `is_slow`."""

    def open_it(
        *, is_slow: bool = False, epochs: int = 2, is_tiny: bool = True, **options: object
    ) -> Run:
        def wait(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
            time.sleep(0.1 * is_slow)
            return images, labels

        torch.manual_seed(0)
        return open_run(
            make_recipe(**SMALL, epochs=epochs),
            color_dataset,
            CPU,
            tmp_path / "run",
            RunOptions(**options),  # type: ignore[arg-type]
            model=Tiny() if is_tiny else None,
            transform=wait,
        )

    return open_it


def follow(run: Run, first_sec: float, quiet_sec: float) -> list[str]:
    """Train a run to its end and return its log, without the times."""
    assert run.folder is not None
    with RunLog(run.folder.log) as log:
        lines = RunLines(
            run,
            Output(),
            lambda num_images: None,
            lambda: None,
            log,
            first_sec=first_sec,
            quiet_sec=quiet_sec,
        )
        train_run(run, callback=lines)
    return [line[21:] for line in run.folder.log.read_text().splitlines()]


def test_a_slow_run_says_figures_by_time_long_before_log_every(
    open_small: Callable[..., Run], capsys: pytest.CaptureFixture[str]
) -> None:
    lines = follow(open_small(is_slow=True, epochs=1), first_sec=0.15, quiet_sec=0.25)

    first = next(line for line in lines if line.startswith("[1, "))
    assert " so far, " in first
    assert int(first[4:].split("]")[0]) <= 3  # of the 50 steps of log_every, and of 5 an epoch
    out, err = capsys.readouterr()
    assert first in err.splitlines()
    assert first not in out.splitlines()  # stdout is the same, however fast the machine is


def test_a_fast_run_says_no_figures_by_time(open_small: Callable[..., Run]) -> None:
    lines = follow(open_small(log_every=5, is_tiny=False), first_sec=600, quiet_sec=600)

    assert [line.split(" loss")[0] for line in lines] == [
        "[1,     5]",
        "epoch 1/2, 32 px, 3.65e-05 PFLOP: train",
        "[2,     5]",
        "epoch 2/2, 32 px, 7.3e-05 PFLOP: train",
    ]


def test_what_is_said_by_time_changes_no_bit_of_the_run(
    open_small: Callable[..., Run], tmp_path: Path
) -> None:
    often = open_small(log_every=5)
    follow(often, first_sec=0, quiet_sec=0)
    (tmp_path / "run").rename(tmp_path / "often")
    never = open_small(log_every=5)
    follow(never, first_sec=600, quiet_sec=600)

    assert [record.train_loss for record in often.history] == [
        record.train_loss for record in never.history
    ]


def test_the_opening_names_network_images_device_and_steps(open_small: Callable[..., Run]) -> None:
    lines = list(render_opening(open_small(limit_steps=7, is_tiny=False)))

    num_threads = torch.get_num_threads()
    threads = "1 thread" if num_threads == 1 else f"{num_threads} threads"
    assert lines[0] == "network: vgg11, 9,221,506 parameters, 0.913 GFLOP to train on an image"
    assert lines[1:] == [
        "images: 40 train and 10 val of 2 classes, 48x48, seen at 32 px, backend torch",
        f"device: cpu, {threads}, amp off (as asked for), not compiled",
        "steps: 2 epochs of 5 steps of 8 images, 10 in all, at most 7 (--limit-steps)",
    ]


def test_the_ending_says_best_place_and_next_command(
    open_small: Callable[..., Run], color_dataset: PackedDataset
) -> None:
    run = open_small(epochs=1)
    train_run(run)
    assert run.folder is not None
    out = run.folder.path

    found = list(render_ending(run))

    assert found == [
        f"best: val top-1 {100 * run.best_top1:.2f} %, epoch 1 of 1, in {out}/best.pt",
        f"next: tinyvgg evaluate {out}/best.pt {color_dataset.folder}",
    ]


def test_a_target_that_is_reached_and_a_run_that_is_stopped_have_words_of_their_own(
    open_small: Callable[..., Run], tmp_path: Path
) -> None:
    reached = open_small(target_top1=0.0)
    train_run(reached)
    (tmp_path / "run").rename(tmp_path / "reached")
    stopped = open_small(limit_steps=3)
    train_run(stopped)

    first, *_, last = render_ending(reached)
    assert first.startswith("target reached: val top-1 ")
    assert first.endswith(" % in epoch 1 of 2, 0.00 % asked for")
    assert last.startswith("next: tinyvgg evaluate ")
    assert list(render_ending(stopped)) == [
        f"{tmp_path / 'run'}: stopped at step 3; --resume continues it"
    ]


def test_the_expected_time_is_by_operations_and_honors_the_limit(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    fields = {**SMALL, "sizes": (32,), "size_shares": (0.5,)}
    run = open_run(make_recipe(**fields), color_dataset, CPU, None)
    trainer = run.trainer
    trainer.step = 2
    small, large = (float(trainer.train_flop(pixels) or 0) for pixels in (32, 48))

    sec = estimate_sec(run, StepReport(0, 2, images_per_sec=8.0, data_wait_share=0.0))
    run.options = replace(run.options, limit_steps=4)
    limited = estimate_sec(run, StepReport(0, 2, images_per_sec=8.0, data_wait_share=0.0))

    # 3 steps of 8 images and 10 scored ones at 32 pixels, then 5 steps and 10 images at 48
    assert sec == pytest.approx((24 + 10 / 3) / 8 + (40 + 10 / 3) / 8 * large / small)
    assert limited == 2


@pytest.mark.parametrize(
    ("sec", "text"), [(12.3, "12 s"), (90, "2 min"), (6060, "1 h 41 min"), (7199, "2 h 00 min")]
)
def test_a_duration_is_said_in_two_units_at_most(sec: float, text: str) -> None:
    assert render_duration(sec) == text


def test_a_callback_hears_of_start_scoring_and_end(open_small: Callable[..., Run]) -> None:
    heard: list[object] = []

    class Told(Callback):
        def on_start(self, run: Run) -> None:
            heard.append(run.trainer.step)

        def on_scored(self, num_images: int) -> None:
            heard.append(num_images)

        def on_end(self) -> None:
            heard.append("end")

    train_run(open_small(epochs=1), callback=Told())

    assert (heard[0], heard[-1], sum(heard[1:-1])) == (0, "end", 10)  # type: ignore[arg-type]


@pytest.mark.long
def test_a_machine_of_few_images_a_second_has_figures_in_its_log_within_a_minute(
    color_dataset: PackedDataset, tmp_path: Path
) -> None:
    words = ["--arch", "vgg16_bn", "--amp", "off", "--batch-size", "40", "--epochs", "500"]
    words += ["--device", "cpu", "--json"]
    command = [sys.executable, "-m", "tinyvgg.cli", "train", str(color_dataset.folder)]
    started = datetime.now()
    with subprocess.Popen([*command, "--out", str(tmp_path / "run"), *words]) as process:
        time.sleep(60)
        lines = (tmp_path / "run" / "train.log").read_text().splitlines()
        process.terminate()

    figures = [line for line in lines if " images/sec" in line or "[1, " in line]
    assert lines[0][21:].startswith("network: vgg16_bn, ")
    assert (datetime.fromisoformat(figures[0][:19]) - started).total_seconds() < 60
    assert json.loads((tmp_path / "run" / "config.json").read_text())["recipe"]["epochs"] == 500
