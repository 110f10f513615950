"""Sources of small PNG files whose pixels are known, and packing of them."""

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.manifest import Manifest

CLASSES = ("ant", "bee", "cat")


def known_pixels(split: str, name: str, number: int, size: int = 8) -> np.ndarray:
    key = [split == "val", *name.encode(), number]
    return np.random.default_rng(key).integers(0, 256, (size, size, 3), np.uint8)


def write_image(path: Path, pixels: np.ndarray, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, "PNG", **options)


def write_source(root: Path, train: int = 5, val: int = 2, size: int = 8) -> Path:
    """Write `train` and `val` images a class, as root/SPLIT/CLASS/000.png."""
    for split, count in (("train", train), ("val", val)):
        for name in CLASSES:
            for number in range(count):
                path = root / split / name / f"{number:03d}.png"
                write_image(path, known_pixels(split, name, number, size))
    return root


def rearrange_as_stanford(source: Path, root: Path) -> Path:
    """Copy a folder-per-class source into the other layout, under the same sorted order."""
    lines = []
    for path in sorted(source.glob("train/*/*")):
        target = root / "train" / path.parent.name / "images" / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "val/images").mkdir(parents=True)
    for number, path in enumerate(sorted(source.glob("val/*/*"))):
        shutil.copy(path, root / f"val/images/{number:03d}.png")
        lines.append(f"{number:03d}.png\t{path.parent.name}\t0\t0\t8\t8\n")
    (root / "val/val_annotations.txt").write_text("".join(reversed(lines)))
    return root


def zip_folder(folder: Path, path: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in folder.rglob("*"):
            if file.is_file():
                archive.write(file, file.relative_to(folder))
    return path


def pack(source: Path, out: Path, **options: Any) -> Manifest:
    return pack_images(PackConfig(source, out, **options), lambda split, count: lambda num: None)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def assert_nothing_left(out: Path) -> None:
    assert sorted(path.name for path in out.parent.glob(f"{out.name}*")) == []


BAD_FILES = {
    "train/ant/000.png": (b"", "0 bytes, expected an image"),
    "train/bee/003.png": (b"hello", "5 bytes that are not an image"),
    "train/cat/004.png": (None, "9x8 pixels, expected 8x8; drop it, or pack with --resize"),
    "val/ant/001.png": (b"\xff\xd8", "2 bytes that are not an image"),
}


def spoil(source: Path) -> None:
    for path, (content, _) in BAD_FILES.items():
        if content is None:
            write_image(source / path, np.zeros((8, 9, 3), np.uint8))
        else:
            (source / path).write_bytes(content)
