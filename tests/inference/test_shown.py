"""What a network is shown of an image is what `pack` and a loader make of the same file."""

import io
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError
from tinyvgg.inference.evaluate import open_scored
from tinyvgg.inference.given_images import GivenImage, find_images
from tinyvgg.inference.shown import EvaluationView, find_largest_box, find_view_size
from tinyvgg.inference.trained import Preprocessing
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import open_dataset

MEAN = STD = (0.5, 0.5, 0.5)


def draw(height: int, width: int) -> NDArray[np.uint8]:
    generator = np.random.default_rng([height, width])
    coarse = generator.integers(0, 256, (5, 6, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Class folders of images of several sizes and kinds."""
    sizes = [(40, 60), (33, 32), (32, 32), (90, 50), (20, 24), (64, 64)]
    for split in ("train", "val"):
        for number, size in enumerate(sizes):
            folder = tmp_path / "photographs" / split / f"class{number % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            data = simplejpeg.encode_jpeg(np.ascontiguousarray(draw(*size)), 90)
            (folder / f"{number}.jpg").write_bytes(data)
    return tmp_path / "photographs"


def show(view: EvaluationView, image: GivenImage) -> NDArray[np.uint8]:
    out = np.empty((*view.size, 3), np.uint8)
    view.show(image, out)
    return out


def show_all(view: EvaluationView, folder: Path) -> NDArray[np.uint8]:
    return np.stack([show(view, image) for image in find_images([str(folder)])])


def pack(**options: object) -> None:
    config = PackConfig(**options)  # type: ignore[arg-type]
    pack_images(config, lambda split, num_images: lambda num_done: None)


def test_a_run_on_several_sizes_shows_the_pixels_of_its_loader(
    photographs: Path, tmp_path: Path
) -> None:
    pack(source=photographs, out=tmp_path / "packed", encoding="jpeg")
    loader = open_scored(
        open_dataset(tmp_path / "packed"), "val", torch.device("cpu"), torch.uint8,
        mean=MEAN, std=STD, backend="torch", batch_size=6, size=28, center_share=0.75,
    )  # fmt: skip
    (batch,) = loader.epoch(0)
    preprocessing = Preprocessing(MEAN, STD, 28, center_share=0.75, is_center=True)

    shown = show_all(EvaluationView(preprocessing), photographs / "val")

    assert np.array_equal(shown, batch.images.permute(0, 2, 3, 1).numpy())


def test_a_run_on_one_square_size_shows_the_pixels_that_pack_resizes_to(
    photographs: Path, tmp_path: Path
) -> None:
    pack(source=photographs, out=tmp_path / "packed", resize=32)
    packed = open_dataset(tmp_path / "packed").val.read_images(np.arange(6))
    view = EvaluationView(Preprocessing(MEAN, STD, 24, stored_size=(32, 32)))

    assert np.array_equal(show_all(view, photographs / "val"), packed)


def test_pictures_and_arrays_are_shown_as_their_lossless_files_are(tmp_path: Path) -> None:
    pixels = draw(50, 70)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    (file,) = find_images([str(tmp_path / "a.png")])
    for preprocessing in (
        Preprocessing(MEAN, STD, 32),
        Preprocessing(MEAN, STD, 32, is_center=True),
        Preprocessing(MEAN, STD, 50, stored_size=(50, 70)),
        Preprocessing(MEAN, STD, 20, stored_size=(20, 60)),
    ):
        view = EvaluationView(preprocessing)

        expected = show(view, file)

        assert np.array_equal(show(view, GivenImage("a", pixels)), expected)
        assert np.array_equal(show(view, GivenImage("a", Image.fromarray(pixels))), expected)


def test_an_image_of_another_shape_gives_its_largest_box_of_the_shape() -> None:
    pixels = draw(50, 70)
    view = EvaluationView(Preprocessing(MEAN, STD, 20, stored_size=(20, 40)))

    shown = show(view, GivenImage("a", pixels))

    part = Image.fromarray(pixels[7:42])  # 35 x 70
    assert np.array_equal(shown, np.asarray(part.resize((40, 20), Image.Resampling.BILINEAR)))


@pytest.mark.parametrize(
    ("size", "shape", "box"),
    [
        ((50, 70), (20, 40), (7, 0, 35, 70)),
        ((70, 50), (20, 40), (22, 0, 25, 50)),
        ((1, 1000), (48, 64), (0, 499, 1, 1)),
        ((1000, 1), (48, 64), (499, 0, 1, 1)),
        ((96, 128), (48, 64), (0, 0, 96, 128)),
    ],
)
def test_the_largest_box_lies_in_the_middle(
    size: tuple[int, int], shape: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    assert find_largest_box(size, shape) == box


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "LA", "1", "I;16"])
def test_any_mode_becomes_rgb_as_in_pack(mode: str) -> None:
    image = Image.fromarray(draw(32, 32)).convert("L" if mode == "I;16" else mode)
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 100)
    view = EvaluationView(Preprocessing(MEAN, STD, 32))

    shown = show(view, GivenImage("a", image))

    assert np.array_equal(shown, np.asarray(image.convert("RGB")))


def test_a_picture_whose_file_is_cut_short_is_refused(tmp_path: Path) -> None:
    data = io.BytesIO()
    Image.fromarray(draw(64, 64)).save(data, "PNG")
    (tmp_path / "a.png").write_bytes(data.getvalue()[:-400])
    view = EvaluationView(Preprocessing(MEAN, STD, 32))

    with (
        Image.open(tmp_path / "a.png") as image,
        pytest.raises(DatasetError, match=r"cannot be converted to RGB \("),
    ):
        show(view, GivenImage("a", image))


def test_a_network_that_does_not_say_its_size_is_refused() -> None:
    with pytest.raises(ValueError, match="must have pixels or stored_size"):
        find_view_size(Preprocessing(MEAN, STD))
