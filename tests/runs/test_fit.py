import csv
import json
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs.tiny_network import Tiny
from tinyvgg.errors import CheckpointError, DivergedError, ShardError
from tinyvgg.model.summary import train_flop
from tinyvgg.runs.checkpoint import EpochRecord
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.fit import Callback, Run, open_run, train_run
from tinyvgg.runs.settings import read_settings
from tinyvgg.runs.signals import StopRequest, stop_request
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import Recipe
from tinyvgg.training.trainer import StepReport

CPU = torch.device("cpu")
RECIPE = {"arch": "vgg_net", "optimizer": "muon", "learning_rate": 0.0, "sizes": (), "dropout": 0.0}
RECIPE |= {"size_shares": ()}  # fast, on images as they are stored
SMALL = {"arch": "vgg11", "optimizer": "sgd", "learning_rate": 0.01, "dropout": 0.2}
SMALL |= {"sizes": (32,), "size_shares": (1.0,)}


@dataclass(frozen=True)
class Setup:
    """What a run is opened with."""

    recipe: Recipe
    out: Path
    options: RunOptions
    is_tiny: bool = False

    def changed(self, **changes: Any) -> "Setup":
        """Return it with fields of the recipe and the options changed."""
        names = vars(self.options).keys() & changes.keys()
        options = replace(self.options, **{name: changes.pop(name) for name in names})
        return replace(self, recipe=replace(self.recipe, **changes), options=options)

    def open(self, dataset: PackedDataset) -> Run:
        torch.manual_seed(self.recipe.seed)
        model = Tiny(dropout=0.2) if self.is_tiny else None
        return open_run(self.recipe, dataset, CPU, self.out, self.options, model=model)


@pytest.fixture
def make_setup(tmp_path: Path, make_recipe: Callable[..., Recipe]) -> Callable[..., Setup]:
    """Return a setup of a tiny network, unless `arch` names one of the package's."""

    def make(out: str = "run", **changes: Any) -> Setup:
        options, is_tiny = RunOptions(log_every=3), "arch" not in changes
        setup = Setup(make_recipe(**SMALL), tmp_path / out, options, is_tiny)
        return setup.changed(**changes)

    return make


class Told(Callback):
    """A callback that keeps what it hears, and does something after each step."""

    def __init__(self, act: Callable[[StepReport], None] = lambda report: None) -> None:
        self.act = act
        self.reports: list[StepReport] = []
        self.records: list[EpochRecord] = []

    def on_step(self, report: StepReport) -> None:
        self.reports.append(report)
        self.act(report)

    def on_epoch(self, record: EpochRecord) -> None:
        self.records.append(record)


def run_training(setup: Setup, dataset: PackedDataset) -> tuple[Run, list[StepReport]]:
    """Train a run to its end or limit; return it, and what its steps reported."""
    run, told = setup.open(dataset), Told()
    train_run(run, callback=told)
    return run, told.reports


def test_training_learns_what_tells_the_classes_apart(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    run, _ = run_training(make_setup(epochs=6), color_dataset)

    assert run.history[-1].train_top1 > 0.95  # measured: 1.0 from epoch 3 on


def test_loss_is_read_every_log_every_steps_and_not_in_between(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    _, reports = run_training(make_setup(log_every=4), color_dataset)

    assert [number for number, report in enumerate(reports, 1) if report.loss is not None] == [4, 9]
    assert [report.step for report in reports] == [1, 2, 3, 4, 5] * 2
    assert all(0 <= report.data_wait_share <= 1 for report in reports)


def test_a_run_leaves_its_files(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup()

    run, _ = run_training(setup, color_dataset)

    lines = (setup.out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [0, 1]
    with (setup.out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["train_loss"]) for row in rows] == [
        record.train_loss for record in run.history
    ]
    document = json.loads((setup.out / "config.json").read_text())
    assert document["resolved"]["amp"] == "off"
    assert document["resolved"]["manifest_sha256"] == color_dataset.manifest_sha256
    last = torch.load(setup.out / "last.pt", weights_only=True)
    assert last["step"] == 10
    best = torch.load(setup.out / "best.pt", weights_only=True)
    assert "optimizer" not in best
    assert list(best["model"]) == list(run.trainer.model.state_dict())


@pytest.mark.parametrize(
    ("stop", "fields"),
    [
        (1, {"arch": "vgg11", "optimizer": "adamw", "learning_rate": 1e-3}),
        (4, {"arch": "vgg11"}),
        (5, {}),
        (7, {"optimizer": "muon", "learning_rate": 0.0}),
        pytest.param(7, RECIPE, marks=pytest.mark.long),
    ],
)
def test_a_run_that_was_stopped_and_resumed_ends_with_the_same_weights(
    color_dataset: PackedDataset,
    make_setup: Callable[..., Setup],
    tmp_path: Path,
    stop: int,
    fields: dict[str, object],
) -> None:
    whole, _ = run_training(make_setup("whole", **fields), color_dataset)
    setup = make_setup("parts", limit_steps=stop, **fields)
    run_training(setup, color_dataset)

    resumed, _ = run_training(setup.changed(limit_steps=None, resume=True), color_dataset)

    assert resumed.trainer.step == whole.trainer.step == 10
    for name, weights in whole.trainer.model.state_dict().items():
        assert torch.equal(weights, resumed.trainer.model.state_dict()[name]), name
    assert [record.train_loss for record in resumed.history] == [
        record.train_loss for record in whole.history
    ]


def test_a_run_that_is_gone_on_with_in_one_process_ends_with_the_same_weights(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    whole, _ = run_training(make_setup("whole", epochs=1), color_dataset)
    setup = make_setup("parts", epochs=1)
    run, _ = run_training(setup.changed(limit_steps=2), color_dataset)

    for limit_steps in (3, None):
        run.options = replace(run.options, limit_steps=limit_steps)
        train_run(run)

    assert run.trainer.step == whole.trainer.step == 5
    for name, weights in whole.trainer.model.state_dict().items():
        assert torch.equal(weights, run.trainer.model.state_dict()[name]), name


def test_two_runs_of_one_seed_are_bit_equal_and_another_seed_differs(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    losses = [
        run_training(make_setup(str(run), epochs=1, seed=seed), color_dataset)[0]
        .history[0]
        .train_loss
        for run, seed in enumerate((3, 3, 4))
    ]

    assert losses[0] == losses[1] != losses[2]


def train_until(setup: Setup, dataset: PackedDataset, signal_at: tuple[int, int]) -> Run:
    """Train as the command does; after that step, send this process that signal."""
    with stop_request() as stop:
        run = setup.open(dataset)

        def send(report: StepReport) -> None:
            if run.trainer.step == signal_at[0]:
                os.kill(os.getpid(), signal_at[1])

        train_run(run, stop, Told(send))
    return run


def assert_same_run(found: Run, expected: Run) -> None:
    """Compare weights, averaged weights and losses, bit by bit."""
    assert found.trainer.step == expected.trainer.step
    for model, other in (
        (found.trainer.model, expected.trainer.model),
        (found.trainer.scored_model, expected.trainer.scored_model),
    ):
        state = other.state_dict()
        for name, weights in model.state_dict().items():
            assert torch.equal(weights, state[name]), name
    for metrics, other_metrics in zip(found.history, expected.history, strict=True):
        for field in ("epoch", "step", "train_loss", "val_loss", "val_top1", "learning_rate"):
            assert getattr(metrics, field) == getattr(other_metrics, field), field


# 5 is the last step of its epoch: the signal is met in evaluation
@pytest.mark.parametrize(("name", "step"), [("SIGTERM", 3), ("SIGUSR1", 5), ("SIGINT", 3)])
def test_a_signal_saves_the_run_and_the_resumed_one_is_bit_equal(
    color_dataset: PackedDataset,
    make_setup: Callable[..., Setup],
    tmp_path: Path,
    name: str,
    step: int,
) -> None:
    fields = {"ema_decay": 0.9, "sizes": (32,), "size_shares": (0.5,)}
    whole = run_training(make_setup("whole", **fields), color_dataset)[0]
    setup = make_setup("parts", **fields)

    stopped = train_until(setup, color_dataset, (step, getattr(signal, name)))
    resumed = run_training(setup.changed(resume=True), color_dataset)[0]

    assert (stopped.trainer.step, stopped.history) == (step, [])
    assert (stopped.trainer.trained is not None) == (step == 5)
    assert_same_run(resumed, whole)


def test_the_second_ctrl_c_ends_at_once() -> None:
    before = signal.getsignal(signal.SIGINT)  # a background job ignores it

    with stop_request() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.ask()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)

    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_a_run_that_wrote_no_checkpoint_begins_anew(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    whole = run_training(make_setup("whole"), color_dataset)[0]
    setup = make_setup("killed")
    setup.open(color_dataset)

    resumed = run_training(setup.changed(resume=True), color_dataset)[0]

    assert_same_run(resumed, whole)


@pytest.mark.parametrize("damage", ["cut", "flipped", "missing"])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(
    color_dataset: PackedDataset,
    make_setup: Callable[..., Setup],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: str,
) -> None:
    whole = run_training(make_setup("whole"), color_dataset)[0]
    setup = make_setup("parts")
    train_until(setup, color_dataset, (8, signal.SIGTERM))
    last = setup.out / "last.pt"
    data = bytearray(last.read_bytes())
    if damage == "cut":
        last.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        weights = torch.load(last, weights_only=True)["model"]["head.weight"]
        data[data.index(weights.numpy().tobytes())] ^= 1
        last.write_bytes(data)
    else:
        last.unlink()

    resumed = run_training(setup.changed(resume=True), color_dataset)[0]

    assert "resuming from previous.pt, step 5" in caplog.text
    assert_same_run(resumed, whole)


def test_a_checkpoint_is_written_within_an_epoch_after_checkpoint_minutes(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(checkpoint_minutes=0.0, log_every=1)
    written = []

    def look(report: StepReport) -> None:
        if report.epoch == 0 and (setup.out / "last.pt").exists():
            written.append(torch.load(setup.out / "last.pt", weights_only=True)["step"])

    train_run(setup.open(color_dataset), callback=Told(look))

    assert written == [1, 2, 3, 4]


def test_a_diverged_run_stops_and_keeps_its_checkpoint(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(limit_steps=2)
    run_training(setup, color_dataset)
    wild = setup.changed(limit_steps=None, resume=True, learning_rate=1e30, clip_norm=0.0)

    with pytest.raises(DivergedError, match=r"step 3: .*, the run has diverged; start over"):
        run_training(wild.changed(log_every=1), color_dataset)

    assert torch.load(setup.out / "last.pt", weights_only=True)["step"] == 2


def pack_noise(pack_arrays: Callable[..., PackedDataset], pixels: int) -> PackedDataset:
    """Return 8 train and 8 val images of noise, 2 classes."""
    images = np.random.default_rng(0).integers(0, 256, (8, pixels, pixels, 3)).astype(np.uint8)
    labels = np.arange(8) % 2
    return pack_arrays("noise", images, labels, images, labels)


def test_images_grow_over_the_epochs_and_operations_are_counted_at_their_size(
    make_setup: Callable[..., Setup], pack_arrays: Callable[..., PackedDataset]
) -> None:
    dataset = pack_noise(pack_arrays, 64)
    setup = make_setup(arch="vgg11_bn", epochs=3, sizes=(32, 48), size_shares=(0.4, 0.3))

    run = run_training(setup, dataset)[0]

    assert [record.pixels for record in run.history] == [32, 48, 64]
    costs = [train_flop("vgg11_bn", 2, pixels, pixels) for pixels in (32, 48, 64)]
    assert [record.pflop for record in run.history] == pytest.approx(
        [sum(costs[: epoch + 1]) * 8 / 1e15 for epoch in range(3)]
    )


@pytest.mark.long
def test_nothing_compiles_after_the_first_epoch_though_images_grow(
    make_setup: Callable[..., Setup], pack_arrays: Callable[..., PackedDataset]
) -> None:
    dataset = pack_noise(pack_arrays, 48)
    fields = {"arch": "vgg11", "sizes": (32,), "size_shares": (0.6,), "compile": "on"}
    setup = make_setup(epochs=3, batch_size=4, **fields)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    run = setup.open(dataset)
    counts = torch._dynamo.utils.counters["stats"]
    num_graphs = []

    train_run(run, callback=Told(lambda report: num_graphs.append(counts["unique_graphs"])))

    assert num_graphs == [2] * 6  # one a size, both before the first step


def test_a_taken_run_folder_is_refused(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup()
    setup.out.mkdir()
    (setup.out / "notes.txt").write_text("mine")

    with pytest.raises(CheckpointError, match="exists already; resume it with --resume"):
        setup.open(color_dataset)

    assert [path.name for path in setup.out.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize(
    ("field", "value"), [("batch_size", 4), ("optimizer", "adamw"), ("seed", 1), ("arch", "vgg13")]
)
def test_what_a_run_depends_on_cannot_change_when_it_goes_on(
    color_dataset: PackedDataset,
    make_setup: Callable[..., Setup],
    field: str,
    value: object,
) -> None:
    setup = make_setup(limit_steps=1)
    run_training(setup, color_dataset)
    changed = setup.changed(limit_steps=None, resume=True, **{field: value})

    with pytest.raises(ValueError, match=f"{field} must stay .* within a run, got {value!r}"):
        changed.open(color_dataset)


def test_crop_and_flip_are_as_asked_for_and_stay_with_the_run(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(crop_pixels=2, flip=False)

    plan = setup.open(color_dataset).trainer.loader.plan
    stored = read_settings(setup.out)[0]

    assert (plan.augment, plan.crop_pixels, plan.flip) == (True, 2, False)
    assert (stored.augment, stored.crop_pixels, stored.flip) == (True, 2, False)
    for changes in ({"crop_pixels": 4}, {"flip": True}):
        changed = setup.changed(resume=True, **changes)
        with pytest.raises(ValueError, match=f"{next(iter(changes))} must stay .* within a run"):
            changed.open(color_dataset)


def test_other_settings_change_when_it_goes_on_and_are_stored(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(limit_steps=1)
    run_training(setup, color_dataset)

    changed = setup.changed(resume=True, weight_decay=0.25, epochs=3)
    run = changed.open(color_dataset)

    assert run.trainer.take_step.optimizer.param_groups[0]["weight_decay"] == 0.25
    assert read_settings(setup.out)[0].epochs == 3


class KilledInEvaluation(StopRequest):
    """Ends the process between two batches that are scored."""

    def check(self) -> None:
        raise SystemExit


def test_a_timed_checkpoint_after_the_last_step_does_not_lose_the_epoch(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup], tmp_path: Path
) -> None:
    fields = {"checkpoint_minutes": 0.0, "log_every": 5}  # of five steps an epoch
    whole = run_training(make_setup("whole", **fields), color_dataset)[0]
    setup = make_setup("killed", **fields)
    with pytest.raises(SystemExit):
        train_run(setup.open(color_dataset), KilledInEvaluation())

    resumed = run_training(setup.changed(resume=True), color_dataset)[0]

    assert_same_run(resumed, whole)


def test_weights_that_are_no_numbers_are_not_saved_even_if_the_loss_is_one(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(arch="vgg_net_bn", clip_norm=0.0, log_every=1)
    run = setup.open(color_dataset)

    def spoil(report: StepReport) -> None:
        with torch.no_grad():
            run.trainer.model.get_parameter("conv.0.weight")[0, 0, 0, 0] = -float("nan")

    with pytest.raises(DivergedError, match="a weight that is infinite or NaN, the run has"):
        train_run(run, callback=Told(spoil))


def test_resume_takes_the_settings_of_the_run(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(seed=7, limit_steps=1, label_smoothing=0.25)
    run_training(setup, color_dataset)

    stored, options = read_settings(setup.out)

    assert (stored.seed, stored.label_smoothing, stored.amp) == (7, 0.25, "off")
    assert options == RunOptions(log_every=3)  # neither limit_steps nor resume


def test_resume_on_another_dataset_is_refused(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup], packed: PackedDataset
) -> None:
    setup = make_setup(limit_steps=1, arch="vgg11")
    run_training(setup, color_dataset)

    with pytest.raises(ShardError, match="open the data set it was saved with"):
        setup.changed(resume=True).open(packed)


def test_a_damaged_checkpoint_is_named(
    color_dataset: PackedDataset, make_setup: Callable[..., Setup]
) -> None:
    setup = make_setup(limit_steps=1)
    run_training(setup, color_dataset)
    data = (setup.out / "last.pt").read_bytes()
    (setup.out / "last.pt").write_bytes(data[: len(data) // 2])
    assert not (setup.out / "previous.pt").exists()

    with pytest.raises(CheckpointError, match=r"last\.pt: damaged or not a checkpoint"):
        setup.changed(resume=True).open(color_dataset)


def test_images_of_a_size_the_network_cannot_take_are_refused(
    make_setup: Callable[..., Setup], pack_arrays: Callable[..., PackedDataset]
) -> None:
    images, labels = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4) % 2
    small = pack_arrays("small", images, labels, images, labels)

    with pytest.raises(ValueError, match="32x32 pixels, vgg_net takes 48 to 95"):
        make_setup(**RECIPE).open(small)
