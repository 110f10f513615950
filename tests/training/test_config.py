from typing import Any, get_args

import pytest

from tinyvgg.model.vgg import ARCHS, check_image_size
from tinyvgg.training.config import (
    CPU_STEPS,
    CUDA_STEPS,
    RECIPES,
    ArchName,
    Recipe,
    resolve_steps,
)


def test_recipe_seed_is_the_reference_loop() -> None:
    recipe = resolve_steps(Recipe.named("seed"), "cuda", 100_000)

    assert (recipe.optimizer, recipe.learning_rate, recipe.batch_size) == ("adam", 1e-4, 50)
    assert (recipe.epochs, recipe.dropout, recipe.init) == (20, 0.4, "default")
    assert (recipe.augment, recipe.amp, recipe.label_smoothing) == (False, "off", 0.0)
    assert (recipe.decay, recipe.warmup, recipe.clip_norm) == ("none", 0.0, 0.0)
    assert recipe.statistics == "reference"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained_and_names_itself(name: str) -> None:
    recipe = Recipe.named(name)

    assert recipe.name == name
    assert recipe.arch in ARCHS
    for pixels in recipe.sizes:
        check_image_size(recipe.arch, pixels, pixels)


def test_every_network_has_its_flag() -> None:
    assert set(get_args(ArchName)) == set(ARCHS)


def test_cuda_graphs_are_not_combined_with_parts() -> None:
    with pytest.raises(ValueError, match="compile_mode must be default with accumulate 2"):
        Recipe.named("fast", accumulate=2, compile_mode="reduce-overhead")


def test_a_batch_that_is_given_is_divisible_by_its_parts() -> None:
    with pytest.raises(ValueError, match="batch_size must be divisible by accumulate 3, got 64"):
        Recipe.named("fast", batch_size=64, accumulate=3)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_knows_its_steps_by_device(name: str) -> None:
    for device_type, steps in (("cpu", CPU_STEPS), ("cuda", CUDA_STEPS), ("mps", CPU_STEPS)):
        recipe = resolve_steps(Recipe.named(name), device_type, 100_000)

        assert recipe.batch_size == steps[name].batch_size
        assert recipe.learning_rate == steps[name].learning_rate
        assert recipe.compile_mode == steps[name].compile_mode
        assert resolve_steps(recipe, "cuda", 100_000) == recipe  # a resumed run keeps them


def test_a_flag_wins_over_the_device() -> None:
    asked = Recipe.named("fast", batch_size=48, learning_rate=0.5, compile_mode="max-autotune")

    assert resolve_steps(asked, "cuda", 100_000) == asked
    only_batch = resolve_steps(Recipe.named("fast", batch_size=48), "cuda", 100_000)
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
    recipe = resolve_steps(Recipe.named("fast"), "cuda", num_images, num_parts)

    assert (recipe.batch_size, recipe.learning_rate) == (batch_size, learning_rate)


def test_recipe_fast_is_the_default() -> None:
    assert Recipe.named("fast") == Recipe()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be at least 1, got 0"),
        ("batch_size", -1, "batch_size must be at least 0, got -1"),
        ("learning_rate", float("nan"), "learning_rate must be at least 0, got nan"),
        ("dropout", 1.0, "dropout must be at least 0 and under 1, got 1.0"),
        ("crop_pixels", 9, "crop_pixels must be a whole number from 0 to 8, got 9"),
        ("sizes", (), "sizes and size_shares must be as many, got 0 and 1; pass both"),
        ("size_shares", (1.5,), r"size_shares must add up to 0 to 1, got \(1.5,\)"),
    ],
)
def test_values_that_cannot_be_trained_are_refused(field: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe.named("fast", **{field: value})


def test_a_recipe_that_nobody_named_is_refused() -> None:
    with pytest.raises(ValueError, match="recipe must be one of fast, fast-bn, seed, strong, got"):
        Recipe.named("slow")


def test_a_recipe_of_lists_equals_one_of_tuples() -> None:
    given: dict[str, Any] = {"crop_area": [0.5, 1], "crop_aspect": [1, 2], "size": 48}

    assert Recipe(**given) == Recipe(crop_area=(0.5, 1.0), crop_aspect=(1.0, 2.0), size=48)
