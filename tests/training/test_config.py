from pathlib import Path

import pytest

from tinyvgg.training.config import RECIPES, TrainConfig


def config_of(recipe: str, **fields: object) -> TrainConfig:
    return TrainConfig(Path("packed"), Path("run"), **{**RECIPES[recipe], **fields})


def test_recipe_seed_is_the_reference_loop() -> None:
    config = config_of("seed")

    assert (config.optimizer, config.learning_rate, config.batch_size) == ("adam", 1e-4, 50)
    assert (config.epochs, config.dropout, config.init) == (20, 0.4, "default")
    assert (config.augment, config.amp, config.label_smoothing) == (False, "off", 0.0)
    assert (config.decay, config.warmup, config.clip_norm) == ("none", 0.0, 0.0)
    assert (config.statistics, config.log_every) == ("reference", 50)


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
    ],
)
def test_values_that_cannot_be_trained_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("fast", **{field: value})
