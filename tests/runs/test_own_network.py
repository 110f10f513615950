"""`fit` from Python: a network of one's own, a transform, and what the run then knows."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import tinyvgg
from tests.runs.tiny_network import Tiny
from tinyvgg.errors import CheckpointError
from tinyvgg.inference.trained import Preprocessing
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import Recipe

SMALL: dict[str, Any] = {"arch": "vgg11", "sizes": (32,), "size_shares": (0.5,)}
SMALL |= {"optimizer": "sgd", "learning_rate": 0.01}


@pytest.fixture
def recipe(make_recipe: Callable[..., Recipe]) -> Recipe:
    return make_recipe(**SMALL)


@pytest.mark.parametrize("gives_tuple", [False, True])
def test_a_network_of_ones_own_is_trained_in_place_and_learns(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], gives_tuple: bool
) -> None:
    torch.manual_seed(0)
    network = Tiny(gives_tuple=gives_tuple)
    recipe = make_recipe(**SMALL | {"epochs": 8, "learning_rate": 0.1})

    run = tinyvgg.fit(color_dataset, recipe, model=network)

    assert run.model is network
    assert run.history[-1].train_top1 > 0.95
    assert run.best is not None
    assert run.best.val_top1 == max(record.val_top1 for record in run.history)


def test_its_weights_are_the_start_whatever_the_recipe_says_of_networks(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe]
) -> None:
    states = []
    for changes in ({}, {"arch": "vgg16_bn", "init": "default", "dropout": 0.5}):
        network = Tiny()
        nn.init.constant_(network.head.weight, 0.25)
        nn.init.constant_(network.conv.weight, 0.01)
        for bias in (network.conv.bias, network.head.bias):
            assert bias is not None
            nn.init.zeros_(bias)
        tinyvgg.fit(color_dataset, make_recipe(**SMALL | changes), model=network)
        states.append(network.state_dict())

    assert all(torch.equal(weight, states[1][name]) for name, weight in states[0].items())
    assert not torch.equal(states[0]["head.weight"], torch.full((2, 8), 0.25))


def test_its_operations_are_those_of_the_flop_counter_or_unknown(
    color_dataset: PackedDataset, recipe: Recipe
) -> None:
    class Odd(Tiny):
        def forward(self, images: Tensor) -> Any:
            if images.sum().item() == 0:  # which the meta device cannot say
                raise AssertionError("no images")
            return super().forward(images)

    counted = tinyvgg.fit(color_dataset, recipe, model=Tiny())
    unknown = tinyvgg.fit(color_dataset, recipe, model=Odd())

    flop = 0
    for pixels in (32, 48):
        with FlopCounterMode(display=False) as counter:
            Tiny()(torch.zeros(40, 3, pixels, pixels)).sum().backward()
        flop += counter.get_total_flops()
    assert counted.history[-1].pflop == pytest.approx(flop / 1e15)
    assert [record.pflop for record in unknown.history] == [None, None]


def test_a_transform_sees_what_the_network_would_and_decides_what_it_sees(
    color_dataset: PackedDataset, recipe: Recipe
) -> None:
    seen: list[tuple[Any, ...]] = []

    def mix(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append((tuple(images.shape), labels.dtype))
        hot = nn.functional.one_hot(labels, 2).float()
        return (images + images.flip(0)) / 2, (hot + hot.flip(0)) / 2

    start = Tiny()
    mixed = tinyvgg.fit(color_dataset, recipe, model=copy.deepcopy(start), transform=mix)
    plain = tinyvgg.fit(color_dataset, recipe, model=start)

    assert seen == [((8, 3, 32, 32), torch.int64)] * 5 + [((8, 3, 48, 48), torch.int64)] * 5
    assert mixed.history[0].train_loss != plain.history[0].train_loss


@pytest.mark.parametrize(
    ("is_own", "changes"),
    [(False, {}), (True, {}), (True, {"ema_decay": 0.5}), (True, {"statistics": "reference"})],
    ids=str,
)
def test_evaluate_gives_the_last_epochs_figures_exactly(
    color_dataset: PackedDataset,
    make_recipe: Callable[..., Recipe],
    is_own: bool,
    changes: dict[str, Any],
) -> None:
    recipe = make_recipe(**SMALL | changes)

    run = tinyvgg.fit(color_dataset, recipe, model=Tiny() if is_own else None)
    found = tinyvgg.evaluate(run.model, color_dataset)

    last = run.history[-1]
    assert (found.loss, found.top1, found.top5) == (last.val_loss, last.val_top1, last.val_top5)
    assert isinstance(found.loss, float)
    other = tinyvgg.evaluate(run.model, color_dataset, mean=(0, 0, 0), std=(1, 1, 1), pixels=32)
    assert other.loss != found.loss


def test_a_network_that_nobody_trained_here_is_scored_on_images_as_stored(
    color_dataset: PackedDataset,
) -> None:
    torch.manual_seed(0)
    network = Tiny().train()

    found = tinyvgg.evaluate(network, color_dataset, batch_size=10)

    assert network.training
    config = tinyvgg.LoaderConfig(batch_size=10)
    (batch,) = tinyvgg.open_loader(color_dataset, "val", config)
    logits = network.eval()(batch.images)
    assert found.loss == pytest.approx(
        nn.functional.cross_entropy(logits, batch.labels).item(), rel=1e-6
    )
    assert found.top1 == (logits.argmax(1) == batch.labels).float().mean().item()


def test_nothing_is_written_without_out(
    color_dataset: PackedDataset,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")

    tinyvgg.fit(color_dataset.folder, recipe, model=Tiny())

    assert list((tmp_path / "empty").iterdir()) == []


def test_a_run_of_ones_own_network_is_resumed_and_loaded_with_the_network(
    color_dataset: PackedDataset, recipe: Recipe, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = Tiny().state_dict()

    def begin() -> Tiny:
        network = Tiny()
        network.load_state_dict(start)
        return network

    whole = tinyvgg.fit(color_dataset, recipe, model=begin(), out=tmp_path / "whole")
    stopped = tinyvgg.RunOptions(limit_steps=7)
    tinyvgg.fit(color_dataset, recipe, model=begin(), out=tmp_path / "run", options=stopped)
    options = tinyvgg.RunOptions(resume=True)
    run = tinyvgg.fit(color_dataset, recipe, model=Tiny(), out=tmp_path / "run", options=options)
    loaded = tinyvgg.load(tmp_path / "run" / "last.pt", model=Tiny(), device="cpu")

    expected = whole.model.state_dict()
    for network in (run.model, loaded.model):
        assert all(torch.equal(w, expected[name]) for name, w in network.state_dict().items())
    assert loaded.class_folders == color_dataset.class_names
    assert loaded.preprocessing == run.model.preprocessing
    assert isinstance(loaded.preprocessing, Preprocessing)
    assert tinyvgg.evaluate(loaded, color_dataset).loss == run.history[-1].val_loss


def test_a_checkpoint_of_ones_own_network_says_what_it_needs(
    color_dataset: PackedDataset, recipe: Recipe, tmp_path: Path
) -> None:
    tinyvgg.fit(color_dataset, recipe, model=Tiny(), out=tmp_path / "run")

    with pytest.raises(CheckpointError, match=r"best\.pt: holds the weights of a network of your"):
        tinyvgg.load(tmp_path / "run" / "best.pt")
    with pytest.raises(CheckpointError, match=r"names differ, .*; pass the model that was trained"):
        tinyvgg.load(tmp_path / "run" / "best.pt", model=nn.Linear(2, 2))


def test_a_network_that_does_not_fit_the_dataset_is_refused_before_any_work(
    color_dataset: PackedDataset, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r"model must give 2 logits, one a class of .*, got 5"):
        tinyvgg.fit(color_dataset, recipe, model=Tiny(5), out=tmp_path / "run")
    fixed = nn.Sequential(nn.Flatten(), nn.Linear(3 * 48 * 48, 2))
    with pytest.raises(ValueError, match=r"sizes \(32,\), cannot take 32 pixels; pass a recipe"):
        tinyvgg.fit(color_dataset, recipe, model=fixed, out=tmp_path / "run")
    with pytest.raises(ValueError, match="network must give 2 logits, one a class, got 5"):
        tinyvgg.evaluate(Tiny(5), color_dataset)
    with pytest.raises(ValueError, match="resume needs out"):
        tinyvgg.fit(color_dataset, recipe, options=tinyvgg.RunOptions(resume=True))

    assert not (tmp_path / "run").exists()


def test_a_callback_hears_of_every_step_and_epoch(
    color_dataset: PackedDataset, recipe: Recipe
) -> None:
    class Told(tinyvgg.Callback):
        def __init__(self) -> None:
            self.steps = self.epochs = 0

        def on_step(self, report: object) -> None:
            self.steps += 1

        def on_epoch(self, record: object) -> None:
            self.epochs += 1

    told = Told()

    tinyvgg.fit(color_dataset, recipe, model=Tiny(), callback=told)

    assert (told.steps, told.epochs) == (10, 2)


def test_what_is_given_in_the_wrong_form_is_named(
    color_dataset: PackedDataset, recipe: Recipe
) -> None:
    wrong: Any = "fast"
    with pytest.raises(TypeError, match=r"^recipe must be a Recipe, .* example, got str$"):
        tinyvgg.fit(color_dataset, wrong)
    with pytest.raises(TypeError, match=r"^a recipe has no field 'lr'; its fields are accumulate,"):
        Recipe.named("fast", lr=0.1)
    with pytest.raises(TypeError, match=r"^network must be a torch\.nn\.Module, .* got str$"):
        tinyvgg.evaluate(wrong, color_dataset)
    with pytest.raises(TypeError, match=r"^transform must be a function, got str$"):
        tinyvgg.fit(color_dataset, recipe, transform=wrong)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda images, labels: images, "two tensors, got Tensor$"),
        (lambda images, labels: (images, 3), r"two tensors, got 2 values \(Tensor, int\)$"),
        (lambda images, labels: (images[:4], labels), "as many images as labels, got 4 and 8$"),
    ],
    ids=["images alone", "no tensor", "another number"],
)
def test_a_transform_that_returns_something_else_is_named(
    color_dataset: PackedDataset, recipe: Recipe, transform: Any, message: str
) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^transform must return .*{message}"):
        tinyvgg.fit(color_dataset, recipe, transform=transform)


def test_a_run_is_resumed_only_with_the_kind_of_network_it_trains(
    color_dataset: PackedDataset, recipe: Recipe, tmp_path: Path
) -> None:
    options = tinyvgg.RunOptions(limit_steps=2)
    tinyvgg.fit(color_dataset, recipe, model=Tiny(), out=tmp_path / "own", options=options)
    tinyvgg.fit(color_dataset, recipe, out=tmp_path / "named", options=options)
    resume = tinyvgg.RunOptions(resume=True)

    with pytest.raises(CheckpointError, match=r"own: trains a network of your own; resume it from"):
        tinyvgg.fit(color_dataset, recipe, out=tmp_path / "own", options=resume)
    with pytest.raises(CheckpointError, match=r"named: trains vgg11 of its recipe; resume it with"):
        tinyvgg.fit(color_dataset, recipe, out=tmp_path / "named", model=Tiny(), options=resume)


def test_a_loaded_network_scales_images_to_the_size_it_was_scored_on(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(**SMALL | {"size_shares": (1.0,)})
    run = tinyvgg.fit(color_dataset, recipe, model=Tiny(), out=tmp_path / "run")
    loaded = tinyvgg.load(tmp_path / "run" / "last.pt", model=Tiny(), device="cpu")

    config = tinyvgg.LoaderConfig(batch_size=len(color_dataset.val))
    ((images, labels),) = tinyvgg.open_loader(color_dataset, "val", config)
    loss = nn.functional.cross_entropy(loaded(images), labels).item()

    assert loaded.preprocessing.pixels == 32
    assert loss == pytest.approx(run.history[-1].val_loss, rel=1e-5)
