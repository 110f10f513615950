from pathlib import Path
from typing import get_args

import pytest

from tinyvgg.model import ARCHS, check_image_size
from tinyvgg.training.config import RECIPES, ArchName, TrainConfig


def config_of(recipe: str, **fields: object) -> TrainConfig:
    return TrainConfig(Path("packed"), Path("run"), **{**RECIPES[recipe], **fields})


def test_recipe_seed_is_the_reference_loop() -> None:
    config = config_of("seed")

    assert (config.optimizer, config.learning_rate, config.batch_size) == ("adam", 1e-4, 50)
    assert (config.epochs, config.dropout, config.init) == (20, 0.4, "default")
    assert (config.augment, config.amp, config.label_smoothing) == (False, "off", 0.0)
    assert (config.decay, config.warmup, config.clip_norm) == ("none", 0.0, 0.0)
    assert (config.statistics, config.log_every) == ("reference", 50)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_can_be_trained_and_names_itself(recipe: str) -> None:
    config = config_of(recipe)

    assert config.recipe == recipe
    assert config.arch in ARCHS
    for pixels in config.sizes:
        check_image_size(config.arch, pixels, pixels)


def test_every_network_has_its_flag() -> None:
    assert set(get_args(ArchName)) == set(ARCHS)


def test_cuda_graphs_are_not_combined_with_parts() -> None:
    with pytest.raises(ValueError, match="compile_mode must be default with accumulate 2"):
        config_of("fast", accumulate=2, compile_mode="reduce-overhead")


def test_recipe_fast_is_the_default() -> None:
    assert config_of("fast") == TrainConfig(Path("packed"), Path("run"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_size", -1, "batch_size must be at least 1, got -1"),
        ("learning_rate", float("nan"), "learning_rate must be at least 0, got nan"),
        ("dropout", 1.0, "dropout must be at least 0 and under 1, got 1.0"),
        ("limit_steps", 0, "limit_steps must be at least 1, got 0"),
        ("target_top1", 46.5, "target_top1 must be 0 to 1, got 46.5"),
        ("sizes", (), "sizes and size_shares must be as many, got 0 and 1; pass both"),
        ("size_shares", (1.5,), r"size_shares must add up to 0 to 1, got \(1.5,\)"),
        ("accumulate", 3, "batch_size must be divisible by accumulate 3, got 64"),
    ],
)
def test_values_that_cannot_be_trained_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("fast", **{field: value})
