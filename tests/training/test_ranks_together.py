"""Several ranks train what one process trains: real processes on a CPU."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed
from torch import nn

from tests.conftest import known_images, write_packed
from tests.rank_processes import run_ranks
from tinyvgg.ranks import find_rank
from tinyvgg.runs.config import RunOptions
from tinyvgg.runs.fit import open_run, train_run
from tinyvgg.shards.store import PackedDataset, open_dataset
from tinyvgg.training.batch_norm import synchronize_batch_norm
from tinyvgg.training.build import build_trainer
from tinyvgg.training.config import Recipe

CPU = torch.device("cpu")


def build_small_network() -> nn.Sequential:
    """Return convolutions that a CPU trains in no time; neither BatchNorm nor dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 5, stride=2), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, 5),
    )  # fmt: skip


def train_some_steps(folder: str, recipe: Recipe, num_steps: int) -> dict[str, Any]:
    """Return the ids of each step on this rank, and its loss over all ranks."""
    torch.manual_seed(0)
    trainer = build_trainer(
        recipe, open_dataset(folder), CPU, log_every=1, network=build_small_network()
    )
    ids: list[list[int]] = []
    take_step = trainer.take_step

    def note_ids(batch: Any, learning_rate: float) -> Any:
        ids.append(batch.ids.tolist())
        return take_step(batch, learning_rate)

    trainer.take_step = note_ids  # type: ignore[assignment]
    losses = [report.loss for report in trainer.train_steps(num_steps)]
    return {"ids": ids, "losses": losses}


def join_ids(ranks: list[dict[str, Any]]) -> list[list[int]]:
    """Return the ids of each step over all ranks, in the order of the ranks."""
    steps = zip(*(found["ids"] for found in ranks), strict=True)
    return [list(itertools.chain(*parts)) for parts in steps]


@pytest.mark.slow
def test_any_number_of_ranks_takes_the_same_images_and_steps(tmp_path: Path) -> None:
    images = known_images(540, 32, 32)
    folder = write_packed(
        tmp_path / "packed", images, np.arange(540) % 5, images[:10], np.arange(10) % 5
    )
    recipe = Recipe(
        batch_size=252, epochs=15, optimizer="sgd", learning_rate=0.05, amp="off",
        sizes=(), size_shares=(),
    )  # fmt: skip
    arguments = (str(folder), recipe, 30)

    alone = run_ranks(1, train_some_steps, *arguments, out=tmp_path / "1")
    worlds = {
        size: run_ranks(size, train_some_steps, *arguments, out=tmp_path / str(size))
        for size in (2, 3, 4)
    }

    assert len(alone[0]["losses"]) == 30
    assert len(set(alone[0]["losses"])) > 20  # it does train
    for ranks in worlds.values():
        assert join_ids(ranks) == alone[0]["ids"]
        for found in ranks:
            assert found["losses"] == pytest.approx(alone[0]["losses"], rel=1e-4)


def draw_values() -> list[list[float]]:
    """Return what a rank draws at its first two steps."""
    folder = open_dataset(Path.cwd() / "packed")
    trainer = build_trainer(Recipe(batch_size=12, amp="off", arch="vgg11"), folder, CPU)
    drawn = []
    for trainer.step in range(2):
        trainer._seed_rank()
        drawn.append(torch.rand(3).tolist())
    return drawn


def test_each_rank_drops_other_values_at_each_step_and_the_same_ones_again(
    packed: PackedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(packed.folder.parent)

    first = run_ranks(2, draw_values, out=tmp_path / "first")
    again = run_ranks(2, draw_values, out=tmp_path / "again")

    assert first == again
    assert len({tuple(values) for values in itertools.chain(*first)}) == 4


def normalize_part(images: list[Any], momentum: float | None) -> dict[str, Any]:
    """Return what a rank's part of a batch becomes, with gradients as DDP averages them."""
    rank, world_size = find_rank()
    torch.manual_seed(0)
    layer = nn.BatchNorm2d(4, momentum=momentum)
    nn.init.uniform_(layer.weight)
    nn.init.uniform_(layer.bias)
    network: nn.Module = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.ReLU(), nn.Conv2d(4, 2, 3))
    if world_size > 1:
        network = synchronize_batch_norm(network, CPU)
    network.to(memory_format=torch.channels_last)
    outer = network if world_size == 1 else nn.parallel.DistributedDataParallel(network)
    own = torch.tensor(images).chunk(world_size)[rank].requires_grad_()
    for _ in range(2):
        network.zero_grad()
        own.grad = None
        outputs = outer(own)
        (outputs.square().mean()).backward()
    assert own.grad is not None
    return {
        "outputs": outputs.tolist(),
        "gradient": (own.grad / world_size).tolist(),
        "parameters": [
            p.grad.flatten().tolist() for p in network.parameters() if p.grad is not None
        ],
        "state": {name: value.tolist() for name, value in network.state_dict().items()},
    }


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_over_ranks_is_that_of_one_process_on_the_whole_batch(
    tmp_path: Path, momentum: float | None
) -> None:
    images = (5 + 3 * np.random.default_rng(0).standard_normal((12, 3, 7, 6))).tolist()

    (alone,) = run_ranks(1, normalize_part, images, momentum, out=tmp_path / "1")
    for world_size in (2, 3):
        ranks = run_ranks(world_size, normalize_part, images, momentum, out=tmp_path / "n")

        for name in ("outputs", "gradient"):
            together = np.concatenate([found[name] for found in ranks])
            np.testing.assert_allclose(together, alone[name], rtol=1e-4, atol=1e-6)
        for found in ranks:
            for own, whole in zip(found["parameters"], alone["parameters"], strict=True):
                np.testing.assert_allclose(own, whole, rtol=1e-4, atol=1e-6)
            assert found["state"].keys() == alone["state"].keys()
            for name, whole in alone["state"].items():
                np.testing.assert_allclose(found["state"][name], whole, rtol=1e-5, atol=1e-6)


def train_part(folder: str, out: str, options: RunOptions, dropout: float) -> dict[str, Any]:
    """Train until a step; only the first rank sees the run folder. Return what came of it."""
    rank, _ = find_rank()
    recipe = Recipe(
        batch_size=12, epochs=2, optimizer="sgd", learning_rate=0.05, amp="off",
        sizes=(), size_shares=(),
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_small_network().insert(7, nn.Dropout(dropout))
    seen = Path(out) if rank == 0 else Path(out) / "of-another-machine"
    run = open_run(recipe, open_dataset(folder), CPU, seen, options, is_main=rank == 0, model=model)
    before = run.trainer.step
    train_run(run)
    weights = torch.cat([p.detach().flatten() for p in run.model.parameters()])
    return {
        "before": before,
        "step": run.trainer.step,
        "weights": weights[::100].tolist(),
        "history": [[record.train_loss, record.val_loss] for record in run.history],
    }


@pytest.fixture
def small_folder(tmp_path: Path) -> str:
    """A packed folder of 60 train and 10 val images of 32 pixels, 5 classes."""
    images = known_images(60, 32, 32)
    labels = np.arange(60) % 5
    return str(write_packed(tmp_path / "packed", images, labels, images[:10], labels[:10]))


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_ranks_inside_an_epoch(
    small_folder: str, tmp_path: Path
) -> None:
    def go(world_size: int, name: str, **options: Any) -> dict[str, Any]:
        arguments = (small_folder, str(tmp_path / name), RunOptions(**options), 0.0)
        ranks = run_ranks(world_size, train_part, *arguments, out=tmp_path / "returned")
        assert all(found == ranks[0] for found in ranks)
        found: dict[str, Any] = ranks[0]
        return found

    whole = go(1, "whole")
    go(2, "run", limit_steps=3)
    second = go(3, "run", limit_steps=7, resume=True)
    last = go(1, "run", resume=True)

    assert [second["before"], last["before"], last["step"]] == [3, 7, 10]
    np.testing.assert_allclose(last["weights"], whole["weights"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(last["history"], whole["history"], rtol=1e-4)
    assert not (tmp_path / "run" / "of-another-machine").exists()


@pytest.mark.slow
def test_a_resumed_run_of_two_ranks_with_dropout_is_the_uninterrupted_one(
    small_folder: str, tmp_path: Path
) -> None:
    def go(name: str, **options: Any) -> Any:
        arguments = (small_folder, str(tmp_path / name), RunOptions(**options), 0.3)
        return run_ranks(2, train_part, *arguments, out=tmp_path / "returned")[1]

    whole = go("whole")
    go("run", limit_steps=3)
    resumed = go("run", resume=True)

    assert resumed["weights"] == whole["weights"]
    assert resumed["history"] == whole["history"]
