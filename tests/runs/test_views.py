"""Runs on images of several sizes, and on boxes of stored ones."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch

from tinyvgg import RunOptions, evaluate, fit, load
from tinyvgg.inference.trained import note_preprocessing
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset
from tinyvgg.training.build import check_network, check_sizes
from tinyvgg.training.config import Recipe


@pytest.fixture
def photographs(tmp_path: Path) -> PackedDataset:
    """24 train and 8 val JPEG files of several sizes, 2 classes: class 1 is brighter."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 24), ("val", 8)):
        for number in range(count):
            height, width = generator.integers(40, 90, 2).tolist()
            pixels = generator.integers(0, 128, (height, width, 3)) + 100 * (number % 2)
            path = tmp_path / "photographs" / split / f"class{number % 2}" / f"{number:02d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(simplejpeg.encode_jpeg(pixels.astype(np.uint8), 90))
    out = tmp_path / "packed"
    config = PackConfig(source=tmp_path / "photographs", out=out, encoding="jpeg")
    pack_images(config, lambda split, num_images: lambda num_done: None)
    return open_dataset(out)


def test_images_of_several_sizes_are_trained_on_resumed_and_scored_alike(
    photographs: PackedDataset, make_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    recipe = make_recipe(
        arch="vgg11_bn", optimizer="sgd", learning_rate=0.01, size=48, sizes=(32,),
        size_shares=(0.5,), center_share=0.75, crop_area=(0.5, 1.0),
    )  # fmt: skip
    whole = fit(photographs, recipe, out=tmp_path / "whole", device="cpu")
    stopped = RunOptions(limit_steps=4)
    fit(photographs, recipe, out=tmp_path / "run", device="cpu", options=stopped)
    resume = RunOptions(resume=True)
    run = fit(photographs, recipe, out=tmp_path / "run", device="cpu", options=resume)
    loaded = load(tmp_path / "run" / "last.pt", device="cpu")

    expected = whole.model.state_dict()
    assert all(torch.equal(w, expected[name]) for name, w in run.model.state_dict().items())
    assert [record.pixels for record in run.history] == [32, 48]
    last = run.history[-1]
    for network in (run.model, loaded):
        assert evaluate(network, photographs).loss == last.val_loss
    assert loaded.preprocessing.center_share == 0.75
    note_preprocessing(run.model, replace(loaded.preprocessing, center_share=1.0))
    assert evaluate(run.model, photographs).loss != last.val_loss


def test_images_of_several_sizes_need_a_size_and_cannot_be_cropped_by_pixels(
    photographs: PackedDataset, make_recipe: Callable[..., Recipe]
) -> None:
    with pytest.raises(ValueError, match="size must be given for images of several sizes, 224"):
        fit(photographs, make_recipe(arch="vgg11"), device="cpu")
    with pytest.raises(ValueError, match="view must be resized-crop or center for images of sev"):
        fit(photographs, make_recipe(arch="vgg11", size=48, view="crop"), device="cpu")
    with pytest.raises(ValueError, match="images are 600x600 pixels, vgg11 takes 32 to 512"):
        fit(photographs, make_recipe(arch="vgg11", size=600), device="cpu")


@pytest.mark.parametrize("view", ["resized-crop", "center"])
def test_stored_images_of_one_size_take_the_views_too(
    color_dataset: PackedDataset, make_recipe: Callable[..., Recipe], view: Any
) -> None:
    recipe = make_recipe(
        arch="vgg11_bn", optimizer="sgd", learning_rate=0.01, view=view, size=32, sizes=(),
        size_shares=(),
    )  # fmt: skip

    run = fit(color_dataset, recipe, device="cpu")

    assert {record.pixels for record in run.history} == {32}
    assert evaluate(run.model, color_dataset).loss == run.history[-1].val_loss


def test_the_size_of_what_is_scored_is_checked_before_training(
    pack_arrays: Callable[..., PackedDataset], make_recipe: Callable[..., Recipe]
) -> None:
    images, labels = np.zeros((4, 64, 256, 3), np.uint8), np.arange(4) % 2
    wide = pack_arrays("wide", images, labels, images, labels)
    recipe = make_recipe(arch="vgg_net", view="resized-crop", size=64, sizes=(), size_shares=())

    with pytest.raises(ValueError, match="images are 256x64 pixels, vgg_net takes"):
        check_sizes(recipe, wide)
    flat = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2))
    with pytest.raises(ValueError, match="model must take the whole images that are scored, canno"):
        check_network(flat, recipe, wide)
    check_sizes(replace(recipe, view="center"), wide)


def test_images_of_several_sizes_are_not_scored_without_pixels(photographs: PackedDataset) -> None:
    with pytest.raises(ValueError, match="pixels must be given for images of several sizes, 224"):
        evaluate(torch.nn.Flatten(), photographs)
