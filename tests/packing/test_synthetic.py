import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import SynthConfig
from tinyvgg.packing.synthetic import WNIDS, draw_image, write_synthetic

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Pixels:
    """A set as its files say it is, read without the package: [N, 64, 64, 3] and labels [N]."""

    train: NDArray[np.uint8]
    train_labels: Labels
    val: NDArray[np.uint8]
    val_labels: Labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_synthetic(SynthConfig(tmp_path_factory.mktemp("synthetic") / "out"))


@pytest.fixture(scope="module")
def pixels(folder: Path) -> Pixels:
    wnids = (folder / "wnids.txt").read_text().split()
    train = [
        (path, label)
        for label, wnid in enumerate(wnids)
        for path in sorted((folder / "train" / wnid / "images").iterdir())
    ]
    val = [
        (folder / "val" / "images" / name, wnids.index(wnid))
        for name, wnid in read_annotations(folder)
    ]
    return Pixels(
        np.stack([read_rgb(path) for path, _ in train]),
        np.array([label for _, label in train]),
        np.stack([read_rgb(path) for path, _ in val]),
        np.array([label for _, label in val]),
    )


def read_rgb(path: Path) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def read_annotations(folder: Path) -> list[tuple[str, str]]:
    lines = (folder / "val" / "val_annotations.txt").read_text().splitlines()
    assert all(line.split("\t")[2:] == ["0", "0", "62", "62"] for line in lines)
    return [(line.split("\t")[0], line.split("\t")[1]) for line in lines]


def read_files(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def mean_colors(images: NDArray[np.uint8]) -> Array:
    return np.asarray(images.mean(axis=(1, 2)) / 255 - 0.5)


def squared_distances(a: Array, b: Array) -> Array:
    return np.asarray(((a[:, None] - b[None]) ** 2).sum(axis=-1))


def ridge_top1(train: Array, train_labels: Labels, val: Array, val_labels: Labels) -> float:
    """Fit one-hot labels linearly, with a little ridge, and return the share right on val."""
    center, scale = train.mean(axis=0), train.std(axis=0) + 1e-6
    x, x_val = (np.c_[np.ones(len(a)), (a - center) / scale] for a in (train, val))
    targets = np.eye(10)[train_labels]
    weights = np.linalg.solve(x.T @ x + 10 * np.eye(x.shape[1]), x.T @ targets)
    return float(((x_val @ weights).argmax(axis=1) == val_labels).mean())


def spectra(images: NDArray[np.uint8]) -> Array:
    """Return log magnitudes of low frequencies, blind to color, position and polarity."""
    gray = images.mean(axis=-1)
    gray = gray - gray.mean(axis=(1, 2), keepdims=True)
    gray = gray / gray.std(axis=(1, 2), keepdims=True)
    frequencies = np.abs(np.fft.rfft2(gray))[:, np.r_[0:12, -11:0], :12]
    return np.log1p(frequencies).reshape(len(images), -1)


def test_drawn_pixels_are_the_same_on_every_machine() -> None:
    images = [draw_image(0, split, label, 3) for label in range(10) for split in (0, 1)]

    pixels = b"".join(image.convert("RGB").tobytes() for image in images)

    assert hashlib.sha256(pixels).hexdigest()[:16] == "6485e90c5fa4e606"


def test_an_image_depends_on_each_part_of_its_key() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (2**64, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)]

    images = {draw_image(*key).convert("RGB").tobytes() for key in keys}

    assert len(images) == len(keys)


def test_the_layout_is_that_of_the_real_set(folder: Path) -> None:
    words = dict(line.split("\t") for line in (folder / "words.txt").read_text().splitlines())
    train = {wnid: f"train/{wnid}/images/{wnid}_" for wnid in WNIDS}
    expected = {"wnids.txt", "words.txt", "val/val_annotations.txt"}
    expected |= {f"{prefix}{i}.JPEG" for prefix in train.values() for i in range(200)}
    expected |= {f"val/images/val_{i}.JPEG" for i in range(500)}

    assert set(read_files(folder)) == expected
    assert (folder / "wnids.txt").read_text().splitlines() == list(WNIDS) == list(words)
    assert all(words.values())


def test_validation_images_are_annotated_once_and_shuffled(folder: Path) -> None:
    names, wnids = zip(*read_annotations(folder), strict=True)

    assert list(names) == [f"val_{i}.JPEG" for i in range(500)]
    assert Counter(wnids) == dict.fromkeys(WNIDS, 50)
    assert len(set(wnids[:50])) > 5


def test_every_image_is_a_small_jpeg_and_a_few_are_grayscale(folder: Path) -> None:
    kinds: Counter[tuple[str | None, tuple[int, int], str]] = Counter()
    for path in folder.rglob("*.JPEG"):
        with Image.open(path) as image:
            kinds[image.format, image.size, image.mode] += 1

    assert set(kinds) == {("JPEG", (64, 64), "RGB"), ("JPEG", (64, 64), "L")}
    assert 0.01 < kinds["JPEG", (64, 64), "L"] / kinds.total() < 0.03


def test_nearest_mean_color_cannot_tell_the_classes_apart(pixels: Pixels) -> None:
    train, val = mean_colors(pixels.train), mean_colors(pixels.val)
    centroids = np.stack([train[pixels.train_labels == label].mean(axis=0) for label in range(10)])

    guesses = squared_distances(val, centroids).argmin(axis=1)

    assert (guesses == pixels.val_labels).mean() < 0.2


def test_neighbors_in_mean_color_cannot_tell_the_classes_apart(pixels: Pixels) -> None:
    train, val = mean_colors(pixels.train), mean_colors(pixels.val)

    nearest = pixels.train_labels[squared_distances(val, train).argsort(axis=1)[:, :15]]
    guesses = np.eye(10)[nearest].sum(axis=1).argmax(axis=1)

    assert (guesses == pixels.val_labels).mean() < 0.2


def test_mean_color_and_its_products_cannot_tell_the_classes_apart(pixels: Pixels) -> None:
    rows, columns = np.triu_indices(3)
    train, val = (
        np.c_[colors, colors[:, rows] * colors[:, columns]]
        for colors in (mean_colors(pixels.train), mean_colors(pixels.val))
    )

    top1 = ridge_top1(train, pixels.train_labels, val, pixels.val_labels)

    assert top1 < 0.2


def test_shape_and_texture_tell_the_classes_apart(pixels: Pixels) -> None:
    train, val = spectra(pixels.train), spectra(pixels.val)

    top1 = ridge_top1(train, pixels.train_labels, val, pixels.val_labels)

    assert top1 > 0.9


def test_writing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_synthetic(SynthConfig(tmp_path / name, train_per_class=3, val_per_class=2, seed=7))

    assert read_files(tmp_path / "a") == read_files(tmp_path / "b")


def test_another_seed_gives_other_images_and_another_order(tmp_path: Path) -> None:
    for seed in (7, 8):
        config = SynthConfig(tmp_path / str(seed), train_per_class=3, val_per_class=2, seed=seed)
        write_synthetic(config)

    a, b = read_files(tmp_path / "7"), read_files(tmp_path / "8")
    assert a.keys() == b.keys()
    assert {name for name in a if a[name] == b[name]} == {"wnids.txt", "words.txt"}


def test_a_larger_set_contains_the_smaller_one(tmp_path: Path) -> None:
    write_synthetic(SynthConfig(tmp_path / "small", train_per_class=2, val_per_class=1))
    write_synthetic(SynthConfig(tmp_path / "large", train_per_class=4, val_per_class=3))

    small, large = read_files(tmp_path / "small"), read_files(tmp_path / "large")
    train = {name: data for name, data in small.items() if name.startswith("train/")}
    val = {data for name, data in small.items() if name.startswith("val/images/")}
    assert train.items() <= large.items()
    assert val <= set(large.values())


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("keep me")

    with pytest.raises(DatasetError, match=r"out: exists already; remove it or choose another"):
        write_synthetic(SynthConfig(out, train_per_class=1, val_per_class=1))

    assert read_files(tmp_path) == {"out/precious.txt": b"keep me"}


def test_what_a_killed_run_left_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "stale.txt").touch()

    folder = write_synthetic(SynthConfig(tmp_path / "out", train_per_class=1, val_per_class=1))

    assert "stale.txt" not in read_files(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
