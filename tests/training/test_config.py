from pathlib import Path
from typing import get_args

import pytest

from tinyvgg.model.vgg import ARCHS, check_image_size
from tinyvgg.training.config import (
    CPU_STEPS,
    CUDA_STEPS,
    RECIPES,
    ArchName,
    TrainConfig,
    resolve_steps,
)


def config_of(recipe: str, **fields: object) -> TrainConfig:
    return TrainConfig(Path("packed"), Path("run"), **{**RECIPES[recipe], **fields})


def test_recipe_seed_is_the_reference_loop() -> None:
    config = resolve_steps(config_of("seed"), "cuda", 100_000)

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


def test_a_batch_that_is_given_is_divisible_by_its_parts() -> None:
    with pytest.raises(ValueError, match="batch_size must be divisible by accumulate 3, got 64"):
        config_of("fast", batch_size=64, accumulate=3)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_knows_its_steps_by_device(recipe: str) -> None:
    for device_type, steps in (("cpu", CPU_STEPS), ("cuda", CUDA_STEPS), ("mps", CPU_STEPS)):
        config = resolve_steps(config_of(recipe), device_type, 100_000)

        assert config.batch_size == steps[recipe].batch_size
        assert config.learning_rate == steps[recipe].learning_rate
        assert config.compile_mode == steps[recipe].compile_mode
        assert resolve_steps(config, "cuda", 100_000) == config  # a resumed run keeps them


def test_a_flag_wins_over_the_device() -> None:
    asked = config_of("fast", batch_size=48, learning_rate=0.5, compile_mode="max-autotune")

    assert resolve_steps(asked, "cuda", 100_000) == asked
    only_batch = resolve_steps(config_of("fast", batch_size=48), "cuda", 100_000)
    assert (only_batch.batch_size, only_batch.learning_rate) == (
        48,
        CUDA_STEPS["fast"].learning_rate,
    )


@pytest.mark.parametrize(
    ("num_images", "num_parts", "batch_size", "learning_rate"),
    [
        (2560, 1, 256, 0.04),
        (2559, 1, 64, 0.02),  # ten steps an epoch of 256 it has not
        (64, 1, 64, 0.02),
        (63, 1, 32, 0.02),
        (33, 1, 32, 0.02),
        (1, 1, 1, 0.02),
        (100_000, 6, 252, 0.04),  # divisible by ranks times parts
        (33, 3, 30, 0.02),
    ],
)
def test_a_small_set_gets_a_smaller_batch(
    num_images: int, num_parts: int, batch_size: int, learning_rate: float
) -> None:
    config = resolve_steps(config_of("fast"), "cuda", num_images, num_parts)

    assert (config.batch_size, config.learning_rate) == (batch_size, learning_rate)


def test_recipe_fast_is_the_default() -> None:
    assert config_of("fast") == TrainConfig(Path("packed"), Path("run"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_size", -1, "batch_size must be at least 0, got -1"),
        ("learning_rate", float("nan"), "learning_rate must be at least 0, got nan"),
        ("dropout", 1.0, "dropout must be at least 0 and under 1, got 1.0"),
        ("crop_pixels", 9, "crop_pixels must be a whole number from 0 to 8, got 9"),
        ("limit_steps", 0, "limit_steps must be at least 1, got 0"),
        ("target_top1", 46.5, "target_top1 must be 0 to 1, got 46.5"),
        ("sizes", (), "sizes and size_shares must be as many, got 0 and 1; pass both"),
        ("size_shares", (1.5,), r"size_shares must add up to 0 to 1, got \(1.5,\)"),
    ],
)
def test_values_that_cannot_be_trained_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config_of("fast", **{field: value})
