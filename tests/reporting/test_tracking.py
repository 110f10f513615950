import importlib.util
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch

from tinyvgg.errors import TinyvggError
from tinyvgg.reporting.sinks import SINKS, find_entry
from tinyvgg.reporting.tracking import Callbacks, Tracker, check_installed, group_metrics
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.fit import Run, fit
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import StepReport

SMALL = {"arch": "vgg11", "optimizer": "sgd", "learning_rate": 0.01, "dropout": 0.0}
SMALL |= {"sizes": (32,), "size_shares": (1.0,)}
FLAGS = (
    "--arch vgg11 --sizes 32 --size-shares 1.0 --epochs 1 --batch-size 8 --amp off --log-every 2"
)
TAGS = {"train/loss", "train/top1", "train/learning_rate"}
TAGS |= {"speed/images_per_sec", "speed/data_wait_share", "val/loss", "val/top1", "val/top5"}


def is_installed(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def needing(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not is_installed(name), reason=f"NOT RUN: {name} is not installed")


@pytest.mark.parametrize("name", SINKS)
def test_a_package_that_is_missing_is_named_with_the_command_before_any_work(
    name: str, color_dataset: PackedDataset, tmp_path: Path
) -> None:
    if is_installed(name):
        pytest.skip(f"{name} is installed here")
    (tmp_path / name).mkdir()  # what wandb leaves in a folder must not pass for the package

    done = train(tmp_path, color_dataset, f"--{name}")

    assert done.returncode == 2
    assert done.stderr == (
        f"tinyvgg train: {name} is not installed, and --{name} needs it; "
        f"run pip install 'tinyvgg[{name}]', or pip install {name}\n"
    )
    assert not (tmp_path / "run").exists()


def test_an_unknown_tracker_is_refused() -> None:
    with pytest.raises(ValueError, match="must be one of tensorboard, wandb, trackio, got 'mlflow"):
        check_installed("mlflow")


def train(folder: Path, dataset: PackedDataset, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tinyvgg.cli", "train", str(dataset.folder), "--out", "run"]
    environment = {**os.environ, "WANDB_MODE": "offline", "TRACKIO_DIR": str(folder / "trackio_to")}
    environment |= {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    return subprocess.run(
        [*command, *FLAGS.split(), *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_metrics_are_grouped_by_tag() -> None:
    metrics = {"epoch": 3, "step": 9, "val_top1": 0.5, "train_loss": 2, "pflop": None}

    assert group_metrics(metrics) == {"val/top1": 0.5, "epoch/train_loss": 2.0}


def test_the_entry_of_a_run_is_drawn_once(tmp_path: Path) -> None:
    first = find_entry(tmp_path)

    assert find_entry(tmp_path) == first != find_entry(None)
    assert (tmp_path / "tracker.txt").read_text() == f"{first}\n"


@needing("tensorboard")
def test_tensorboard_has_every_reading_and_epoch_once_though_the_run_was_cut_off(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    class Ended(Callbacks):
        def on_step(self, report: StepReport) -> None:
            super().on_step(report)
            if report.run_step == 9:  # after a reading that no checkpoint knows of
                raise KeyboardInterrupt

    recipe = make_recipe(**SMALL)
    options = {"out": tmp_path / "run", "device": "cpu"}
    with pytest.raises(KeyboardInterrupt):
        fit(
            color_dataset,
            recipe,
            callback=Ended(Tracker("tensorboard")),
            options=RunOptions(log_every=2),
            **options,  # type: ignore[arg-type]
        )
    fit(
        color_dataset,
        recipe,
        callback=Tracker("tensorboard"),
        options=RunOptions(resume=True, log_every=2),
        **options,  # type: ignore[arg-type]
    )

    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert tags >= TAGS | {"epoch/train_loss", "epoch/pixels"}
    assert {tag.split("/")[0] for tag in tags} == {"train", "speed", "val", "epoch"}
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 7, 9]
    assert [event.step for event in events.Scalars("val/top1")] == [5, 10]


@needing("wandb")
@pytest.mark.slow
def test_wandb_offline_holds_the_figures_in_the_run_folder(
    color_dataset: PackedDataset, tmp_path: Path
) -> None:
    done = train(tmp_path, color_dataset, "--wandb", "--json")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["is_finished"]
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    entry = (tmp_path / "run" / "tracker.txt").read_text().strip()
    assert file.name == f"run-{entry}.wandb"
    data = file.read_bytes()
    assert all(tag.encode() in data for tag in TAGS)


@needing("trackio")
@pytest.mark.slow
def test_trackio_holds_the_figures_and_stdout_stays_ours(
    color_dataset: PackedDataset, tmp_path: Path
) -> None:
    done = train(tmp_path, color_dataset, "--trackio", "--json", "--project", "colors")

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["is_finished"]
    entry = (tmp_path / "run" / "tracker.txt").read_text().strip()
    program = (
        "import json; from trackio.sqlite_storage import SQLiteStorage as S; "
        f"print(json.dumps(S.get_logs('colors', 'run-{entry}')))"
    )
    logs = json.loads(
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio_to")},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout.splitlines()[-1]
    )
    assert [log["step"] for log in logs] == [2, 4, 5]
    assert set().union(*logs) >= TAGS


class Broken:
    """A sink that takes one reading."""

    def __init__(self, run: Run, project: str) -> None:
        self.num_taken = 0

    def log(self, values: Mapping[str, float], step: int) -> None:
        self.num_taken += 1
        if self.num_taken > 1:
            raise RuntimeError("server gone\nmore")

    def close(self) -> None:
        raise AssertionError("it was given up")


@needing("tensorboard")
def test_a_tracker_that_fails_is_said_once_and_the_run_goes_on(
    color_dataset: PackedDataset,
    make_recipe: Callable[..., Recipe],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setitem(SINKS, "tensorboard", Broken)

    with caplog.at_level(logging.WARNING, "tinyvgg"):
        run = fit(
            color_dataset,
            make_recipe(**SMALL),
            device="cpu",
            callback=Tracker("tensorboard"),
            options=RunOptions(log_every=1),
        )

    assert run.is_finished
    texts = [record.getMessage() for record in caplog.records]
    assert texts.count("tensorboard: server gone; the run continues without it") == 1


@needing("tensorboard")
def test_tensorboard_without_a_run_folder_is_refused(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(TinyvggError, match="the run has no folder; pass out"):
        fit(
            color_dataset,
            make_recipe(**SMALL),
            device=torch.device("cpu"),
            callback=Tracker("tensorboard"),
        )
