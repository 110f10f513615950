import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tinyvgg.errors import CheckpointError, ShardError
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import TrainConfig
from tinyvgg.training.loop import StepReport, finish_epoch, train
from tinyvgg.training.run import RunFolder, read_run_config
from tinyvgg.training.state import Training, open_training

CPU = torch.device("cpu")


def run_training(config: TrainConfig, dataset: PackedDataset) -> tuple[Training, list[StepReport]]:
    """Train without evaluating: validation top-1 counts the epochs."""
    training = open_training(config, dataset, CPU, rank=0)
    reports: list[StepReport] = []
    for metrics in train(training, RunFolder(config.out), reports.append):
        scored = replace(metrics, val_loss=0.0, val_top1=metrics.epoch / 10, val_top5=1.0)
        finish_epoch(training, RunFolder(config.out), scored)
    return training, reports


def test_training_learns_what_tells_the_classes_apart(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    training, _ = run_training(make_config(epochs=6, learning_rate=1e-3), color_dataset)

    assert training.history[-1].train_top1 > 0.95  # measured: 1.0 from epoch 3 on


def test_loss_is_read_every_log_every_steps_and_not_in_between(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    _, reports = run_training(make_config(log_every=4), color_dataset)

    assert [number for number, report in enumerate(reports, 1) if report.loss is not None] == [4, 8]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5] * 2
    assert all(0 <= report.data_wait_share <= 1 for report in reports)


def test_a_run_leaves_its_files(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config()

    training, _ = run_training(config, color_dataset)

    lines = (config.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    with (config.out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [
        metrics.train_loss for metrics in training.history
    ]
    document = json.loads((config.out / "config.json").read_text())
    assert document["resolved"]["amp"] == "off"
    assert document["resolved"]["manifest_sha256"] == color_dataset.manifest_sha256
    last = torch.load(config.out / "last.pt", weights_only=True)
    assert last["step"] == 10
    best = torch.load(config.out / "best.pt", weights_only=True)
    assert "optimizer" not in best
    assert list(best["model"]) == list(training.model.state_dict())


@pytest.mark.parametrize("stop", [1, 4, 5, 7])
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(
    color_dataset: PackedDataset,
    make_config: Callable[..., TrainConfig],
    tmp_path: Path,
    stop: int,
) -> None:
    whole, _ = run_training(make_config(out=tmp_path / "whole"), color_dataset)
    config = make_config(out=tmp_path / "parts", limit_steps=stop)
    run_training(config, color_dataset)

    resumed, _ = run_training(replace(config, limit_steps=None, resume=True), color_dataset)

    assert resumed.step == whole.step == 10
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name]), name
    assert [metrics.train_loss for metrics in resumed.history] == [
        metrics.train_loss for metrics in whole.history
    ]


def test_two_runs_of_one_seed_are_bit_equal_and_another_seed_differs(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    losses = [
        run_training(make_config(out=tmp_path / str(run), epochs=1, seed=seed), color_dataset)[0]
        .history[0]
        .train_loss
        for run, seed in enumerate((3, 3, 4))
    ]

    assert losses[0] == losses[1] != losses[2]


def test_ctrl_c_saves_the_run(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config()
    training = open_training(config, color_dataset, CPU, rank=0)

    def interrupt(report: StepReport) -> None:
        if report.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        next(train(training, RunFolder(config.out), interrupt))

    assert torch.load(config.out / "last.pt", weights_only=True)["step"] == 3


def test_a_taken_run_folder_is_refused(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config()
    config.out.mkdir()
    (config.out / "notes.txt").write_text("mine")

    with pytest.raises(CheckpointError, match="exists already; pass --resume"):
        open_training(config, color_dataset, CPU, rank=0)

    assert [path.name for path in config.out.iterdir()] == ["notes.txt"]


def test_resuming_what_was_never_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to go on with; start one without --resume"):
        read_run_config(tmp_path)


def test_resume_takes_the_settings_of_the_run(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(seed=7, limit_steps=1, label_smoothing=0.25)
    run_training(config, color_dataset)

    stored = read_run_config(config.out)

    assert (stored.seed, stored.label_smoothing, stored.amp) == (7, 0.25, "off")
    assert (stored.limit_steps, stored.resume) == (None, False)


def test_resume_on_another_dataset_is_refused(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig], packed: PackedDataset
) -> None:
    config = make_config(limit_steps=1)
    run_training(config, color_dataset)

    with pytest.raises(ShardError, match="open the data set it was saved with"):
        open_training(replace(config, resume=True), packed, CPU, rank=0)


def test_a_damaged_checkpoint_is_named(
    color_dataset: PackedDataset, make_config: Callable[..., TrainConfig]
) -> None:
    config = make_config(limit_steps=1)
    run_training(config, color_dataset)
    data = (config.out / "last.pt").read_bytes()
    (config.out / "last.pt").write_bytes(data[: len(data) // 2])

    with pytest.raises(CheckpointError, match=r"last\.pt: damaged or not a checkpoint"):
        open_training(replace(config, resume=True), color_dataset, CPU, rank=0)


def test_images_of_a_size_the_network_cannot_take_are_refused(
    make_config: Callable[..., TrainConfig], pack_arrays: Callable[..., PackedDataset]
) -> None:
    import numpy as np

    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2
    small = pack_arrays("small", images, labels, images, labels)

    with pytest.raises(ValueError, match="32x32 pixels, VGG_Net takes 48 to 95"):
        open_training(make_config(), small, CPU, rank=0)
