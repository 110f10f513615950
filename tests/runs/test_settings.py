"""Settings of a run: a named recipe, a file, the run that is resumed, and flags over them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tinyvgg.errors import CheckpointError
from tinyvgg.runs.config import Output, RunOptions
from tinyvgg.runs.fit import open_run
from tinyvgg.runs.settings import find_flag, parse_train_flags, read_recipe, read_settings
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.config import RECIPES, Recipe

TRAIN = ["packed", "--out"]


@pytest.fixture
def run(color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path) -> Path:
    """A run folder with its config.json, of a run that takes no step."""
    recipe = make_recipe(name="fast-bn", arch="vgg11", optimizer="sgd", sizes=(), size_shares=())
    options = RunOptions(device="cpu", backend="torch", log_every=7, limit_steps=1)
    open_run(recipe, color_dataset, torch.device("cpu"), tmp_path / "run", options)
    return tmp_path / "run"


@pytest.mark.parametrize("name", RECIPES)
def test_flags_are_laid_over_the_named_recipe(name: str) -> None:
    plain = parse_train_flags([*TRAIN, "run", "--recipe", name])
    changed = parse_train_flags([*TRAIN, "run", f"--recipe={name}", "--epochs", "3", "--no-flip"])

    assert plain.build_recipe() == Recipe.named(name)
    assert changed.build_recipe() == Recipe.named(name, epochs=3, flip=False)
    assert (changed.packed, changed.out, changed.run) == (Path("packed"), Path("run"), RunOptions())


def test_what_is_no_part_of_the_recipe_has_its_place() -> None:
    words = ["--limit-steps", "3", "--backend", "resident", "--profile", "2", "--json"]

    flags = parse_train_flags([*TRAIN, "run", *words])

    assert flags.run == RunOptions(limit_steps=3, backend="resident")
    assert flags.output == Output(profile=2, json=True)


def test_flags_are_found_before_they_are_parsed() -> None:
    assert find_flag(["--recipe", "seed"], "--recipe") == "seed"
    assert find_flag(["--recipe=seed"], "--recipe") == "seed"
    assert find_flag(["--resume"], "--recipe") is None


def test_a_recipe_is_read_from_a_file_of_its_own_and_from_that_of_a_run(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "fast-bn", "epochs": 3, "sizes": [32], "size_shares": [1]}))

    recipe, changes = read_recipe(str(file))
    of_run, _ = read_recipe(str(run / "config.json"))

    assert recipe == Recipe.named("fast-bn", epochs=3, sizes=(32,), size_shares=(1.0,))
    assert changes == {"epochs": 3, "sizes": (32,), "size_shares": (1.0,)}
    assert of_run == read_settings(run)[0]
    flags = parse_train_flags([*TRAIN, "other", "--recipe", str(run / "config.json")])
    assert flags.build_recipe() == of_run
    assert flags.run == RunOptions()  # a recipe says nothing of the machine


def test_a_config_json_of_before_has_recipe_and_options_in_one_object(tmp_path: Path) -> None:
    config = {"recipe": "seed", "epochs": 4, "backend": "resident", "log_every": 9, "amp": "auto"}
    document = {"config": config, "resolved": {"amp": "bf16"}}
    (tmp_path / "config.json").write_text(json.dumps(document))

    assert read_recipe(str(tmp_path / "config.json"))[0] == Recipe.named(
        "seed", epochs=4, amp="auto"
    )
    assert read_settings(tmp_path) == (
        Recipe.named("seed", epochs=4, amp="bf16"),
        RunOptions(backend="resident", log_every=9),
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epochs": "many"}, "epochs: Input should be a valid integer"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"epoch": 3}, "'epoch' is no field of a recipe"),
        ({"out": "run"}, "'out' is no field of a recipe"),
        ({"name": "slow"}, "name: Input should be 'fast'"),
        ({"name": ["fast"]}, "name: Input should be 'fast'"),
        ({"recipe": {"sizes": [32, 48]}}, "sizes and size_shares must be as many"),
        ([], "not a JSON object"),
        (None, "Expecting value"),
    ],
)
def test_a_file_that_holds_no_recipe_is_refused_by_name(
    tmp_path: Path, content: Any, message: str
) -> None:
    file = tmp_path / "mine.json"
    file.write_text("" if content is None else json.dumps(content))

    with pytest.raises(ValueError, match=r"mine\.json: holds no recipe \(") as caught:
        read_recipe(str(file))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_word_is_no_recipe() -> None:
    with pytest.raises(ValueError, match="recipe must be one of fast, fast-bn, seed, strong, or a"):
        parse_train_flags([*TRAIN, "run", "--recipe", "slow"])


def test_resume_keeps_recipe_and_options_and_lets_flags_change_them(run: Path) -> None:
    stored, options = read_settings(run)
    words = [*TRAIN, str(run), "--resume"]

    kept = parse_train_flags(words)
    named = parse_train_flags([*words, "--recipe", "fast-bn"])
    changed = parse_train_flags([*words, "--epochs", "9", "--log-every", "1"])

    assert stored == Recipe.named(
        "fast-bn", arch="vgg11", sizes=(), size_shares=(), epochs=2, batch_size=8,
        learning_rate=0.05, compile_mode="default", amp="off", warmup=0.15, weight_decay=0.0,
    )  # fmt: skip
    assert options == RunOptions(device="cpu", backend="torch", log_every=7)
    for flags in (kept, named):
        assert flags.build_recipe() == stored
        assert (flags.run.resume, flags.run.backend, flags.run.log_every) == (True, "torch", 7)
        assert flags.run.limit_steps is None
    assert (changed.build_recipe().epochs, changed.run.log_every) == (9, 1)


def test_a_file_under_resume_changes_what_it_says_and_nothing_else(
    run: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"name": "fast-bn", "epochs": 9}))

    flags = parse_train_flags([*TRAIN, str(run), "--resume", "--recipe", str(file)])

    stored, _ = read_settings(run)
    assert flags.build_recipe().epochs == 9
    assert flags.build_recipe().arch == stored.arch == "vgg11"


def test_another_recipe_than_that_of_the_run_is_refused(run: Path) -> None:
    with pytest.raises(ValueError, match="recipe must stay 'fast-bn' within a run, got 'seed'"):
        parse_train_flags([*TRAIN, str(run), "--resume", "--recipe", "seed"])


def test_resuming_what_was_never_started_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no run to resume; start one without --resume"):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"recipe": {}}', '{"recipe": {"epochs": 0}, "resolved": {"amp": "off"}}',
        '{"config": {"log_every": 0}, "resolved": {"amp": "off"}}',
    ],
)  # fmt: skip
def test_a_damaged_config_json_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)

    with pytest.raises(CheckpointError, match=r"config\.json: damaged \(.+\); start over"):
        read_settings(tmp_path)


def test_options_that_cannot_be_run_are_refused() -> None:
    with pytest.raises(ValueError, match="limit_steps must be at least 1, got 0"):
        RunOptions(limit_steps=0)
    with pytest.raises(ValueError, match=r"target_top1 must be 0 to 1, got 46\.5"):
        RunOptions(target_top1=46.5)
    with pytest.raises(ValueError, match="checkpoint_minutes must be at least 0, got -1"):
        RunOptions(checkpoint_minutes=-1)
    with pytest.raises(ValueError, match="profile must be at least 1, got 0"):
        Output(profile=0)
