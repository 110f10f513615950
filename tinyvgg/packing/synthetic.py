"""Synthetic: a seed to a small class-folder set of JPEG images that a network can learn.

From: the user, who has no TinyImageNet at hand.
To:   `folders`, which finds the Stanford layout here as it does in the real set.

    wnids.txt, words.txt                      10 classes; "n00000001<TAB>horizontal stripes"
    train/<wnid>/images/<wnid>_<i>.JPEG       64 x 64, quality 90, 2 % of them grayscale
    val/images/val_<i>.JPEG                   classes in shuffled order
    val/val_annotations.txt                   "val_0.JPEG<TAB><wnid><TAB>0<TAB>0<TAB>62<TAB>62"

Promises: an image depends on (seed, split, class, its number in the class) and on nothing else,
so a larger set contains the smaller one; OUT appears by one rename, complete, or not at all.
The pixels are the same on every platform: random numbers are raw words of Philox, which numpy
keeps stable, and what follows is add, multiply, divide, square root and floor, one operation at
a time, whose results IEEE 754 fixes. The files are the same as far as Pillow's encoder is.

The mean color is drawn first, from one distribution for all classes, and the figure is laid
around it. Drawing a foreground and a background would let the mean tell a figure that covers
20 % of the image from one that covers 50 %; here only shape and texture tell the classes apart.
A class and its mirror image are the same class, because training flips.
"""

import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import SynthConfig

SIZE = 64  # pixels: height and width of every image
JPEG_QUALITY = 90
GRAYSCALE_SHARE = 0.02  # as in TinyImageNet; decoding must turn them into RGB
LUMA = (0.299, 0.587, 0.114)
MIN_CONTRAST = 80  # gray levels between figure and ground, so that grayscale shows it as well

Field = NDArray[np.float64]  # [SIZE, SIZE]: one number a pixel


class _Draws:
    """Random numbers of one image, in the order they are asked for."""

    def __init__(self, seed: int, *key: int) -> None:
        # the seed comes last: it may be longer than the 32 bits that the others stay under
        self.bits = np.random.Philox([*key, seed])

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * ((int(self.bits.random_raw()) >> 11) / 2**53)

    def either(self) -> bool:
        return self.uniform(0, 1) < 0.5

    def noise(self) -> NDArray[np.int16]:
        """Return int16 [SIZE, SIZE, 3], -7 to 7 around 0, the sum of two flat draws."""
        words = self.bits.random_raw(SIZE * SIZE * 3 // 8).astype("<u8")
        two = words.view(np.uint8).reshape(SIZE, SIZE, 3)
        return (two & 7).astype(np.int16) + (two >> 5) - 7

    def order(self, count: int) -> NDArray[np.int64]:
        """Return a permutation of `count` numbers."""
        return np.argsort(self.bits.random_raw(count), kind="stable")


# A figure maps coordinates in pixels, turned and moved, to the distance from its outline in
# pixels, positive inside: what is needed for one pixel of anti-aliasing.


def _wave(x: Field, period: float) -> Field:
    """Bands of half a period each; the phase is in `x`."""
    turns = x / period
    return (0.25 - np.abs(turns - np.floor(turns) - 0.5)) * period


def _box(u: Field, v: Field, half_width: float, half_height: float) -> Field:
    return np.minimum(half_width - np.abs(u), half_height - np.abs(v))


def _stripes(u: Field, v: Field, draws: _Draws) -> Field:
    period = draws.uniform(8, 11)
    return _wave(v + draws.uniform(0, period), period)


def _checkerboard(u: Field, v: Field, draws: _Draws) -> Field:
    period = draws.uniform(22, 28)
    columns, rows = _wave(u, period), _wave(v, period)
    return np.maximum(np.minimum(columns, rows), -np.maximum(columns, rows))


def _dots(u: Field, v: Field, draws: _Draws) -> Field:
    pitch = draws.uniform(8, 11)
    radius = draws.uniform(0.27, 0.34) * pitch
    across = (u / pitch - np.floor(u / pitch) - 0.5) * pitch
    down = (v / pitch - np.floor(v / pitch) - 0.5) * pitch
    return radius - np.sqrt(across * across + down * down)


def _rings(u: Field, v: Field, draws: _Draws) -> Field:
    period = draws.uniform(8, 11)
    return _wave(np.sqrt(u * u + v * v) + draws.uniform(0, period), period)


def _disc(u: Field, v: Field, draws: _Draws) -> Field:
    return draws.uniform(16, 21) - np.sqrt(u * u + v * v)


def _frame(u: Field, v: Field, draws: _Draws) -> Field:
    side, width = draws.uniform(12, 19), draws.uniform(4, 6)
    return width / 2 - np.abs(_box(u, v, side, side))


def _plus(u: Field, v: Field, draws: _Draws) -> Field:
    length, width = draws.uniform(20, 26), draws.uniform(2.5, 4)
    return np.maximum(_box(u, v, length, width), _box(u, v, width, length))


def _triangle(u: Field, v: Field, draws: _Draws) -> Field:
    inradius = draws.uniform(11, 14)
    return inradius - np.maximum(v, math.sqrt(0.75) * np.abs(u) - 0.5 * v)


@dataclass(frozen=True)
class _Design:
    """What makes a class: words for it, a figure, and how the figure may be turned.

    `axis` is the direction of the figure's u axis and `wobble` the tangent of the largest angle
    away from it; a tangent, because a sine may differ in the last bit between machines.
    """

    words: str
    figure: Callable[[Field, Field, _Draws], Field]
    axis: tuple[float, float] = (1, 0)
    wobble: float = 0.18  # 10 degrees


DESIGNS = (
    _Design("horizontal stripes", _stripes, (1, 0), 0.09),
    _Design("vertical stripes", _stripes, (0, 1), 0.09),
    _Design("diagonal stripes", _stripes, (1, 1), 0.09),
    _Design("checkerboard", _checkerboard),
    _Design("dots, polka dots", _dots),
    _Design("concentric rings", _rings),
    _Design("disc, filled circle", _disc),
    _Design("square outline, frame", _frame),
    _Design("plus, cross", _plus),
    _Design("triangle", _triangle),
)
WNIDS = tuple(f"n{number:08d}" for number in range(1, len(DESIGNS) + 1))


def draw_image(seed: int, split: int, label: int, index: int) -> Image.Image:
    """Draw one image.

    Args:
        seed: at least 0.
        split: 0 for train, 1 for val.
        label: class, 0 to 9.
        index: number of the image in its class and split.

    Returns:
        64 x 64 pixels, mode "RGB", or "L" for 2 % of all.
    """
    draws = _Draws(seed, split, label, index)
    # in 255ths, so that the sum is exact in whichever order numpy adds
    coverage = np.floor(_draw_coverage(DESIGNS[label], draws) * 255 + 0.5)
    figure = (coverage - coverage.sum() / SIZE**2) / 255
    mean = [draws.uniform(112, 144) for _ in range(3)]
    contrast = _draw_contrast(draws)
    light = _draw_light(draws)
    noise = draws.noise()
    channels = [figure * contrast[c] + light + mean[c] + noise[..., c] for c in range(3)]
    pixels = np.clip(np.floor(np.stack(channels, axis=-1) + 0.5), 0, 255).astype(np.uint8)
    image = Image.fromarray(pixels)
    return image.convert("L") if draws.uniform(0, 1) < GRAYSCALE_SHARE else image


def write_synthetic(config: SynthConfig) -> Path:
    """Write the whole set and return its folder.

    Args:
        config: where to, how many images of each class, and the seed.

    Raises:
        DatasetError: OUT exists; it is left as it is.
        OSError: the disk cannot be written; nothing is left behind.
    """
    out = config.out.absolute()
    if out.exists():
        raise DatasetError(f"{config.out}: exists already; remove it or choose another folder")
    partial = out.with_name(out.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial)
    partial.mkdir(parents=True)
    try:
        words = zip(WNIDS, DESIGNS, strict=True)
        _write_lines(partial / "wnids.txt", list(WNIDS))
        _write_lines(partial / "words.txt", [f"{wnid}\t{design.words}" for wnid, design in words])
        _write_train(partial / "train", config)
        _write_val(partial / "val", config)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return config.out


def _draw_coverage(design: _Design, draws: _Draws) -> Field:
    """Return how much of each pixel the figure covers, 0 to 1."""
    pixels = np.arange(SIZE) - (SIZE - 1) / 2  # 0 is the center of the image
    x = pixels[None, :] - draws.uniform(-6, 6)
    y = pixels[:, None] - draws.uniform(-6, 6)
    slope = draws.uniform(-design.wobble, design.wobble)
    along, across = design.axis
    cos, sin = along - slope * across, across + slope * along
    length = math.sqrt(cos * cos + sin * sin)
    cos, sin = cos / length, sin / length
    if draws.either():  # both diagonals; for the rest a mirror image is nothing new
        x = -x
    distance = design.figure(cos * x + sin * y, cos * y - sin * x, draws)
    return np.clip(distance + 0.5, 0, 1)


def _draw_contrast(draws: _Draws) -> list[float]:
    """Return figure minus ground in each channel, in gray levels; lighter as often as darker."""
    while True:
        contrast = [draws.uniform(-120, 120) for _ in LUMA]
        if abs(sum(c * weight for c, weight in zip(contrast, LUMA, strict=True))) >= MIN_CONTRAST:
            return contrast


def _draw_light(draws: _Draws) -> Field:
    """Return a slope of light across the image, in gray levels; its mean is 0."""
    pixels = (np.arange(SIZE) - (SIZE - 1) / 2) / (SIZE / 2)
    return draws.uniform(-10, 10) * pixels[None, :] + draws.uniform(-10, 10) * pixels[:, None]


def _write_train(folder: Path, config: SynthConfig) -> None:
    for label, wnid in enumerate(WNIDS):
        images = folder / wnid / "images"
        images.mkdir(parents=True)
        for index in range(config.train_per_class):
            _write_jpeg(images / f"{wnid}_{index}.JPEG", draw_image(config.seed, 0, label, index))


def _write_val(folder: Path, config: SynthConfig) -> None:
    images = folder / "images"
    images.mkdir(parents=True)
    annotations = []
    order = _Draws(config.seed, 2).order(len(WNIDS) * config.val_per_class)
    for number, row in enumerate(order.tolist()):
        index, label = divmod(row, len(WNIDS))
        name = f"val_{number}.JPEG"
        _write_jpeg(images / name, draw_image(config.seed, 1, label, index))
        annotations.append(f"{name}\t{WNIDS[label]}\t0\t0\t{SIZE - 2}\t{SIZE - 2}")
    _write_lines(folder / "val_annotations.txt", annotations)


def _write_jpeg(path: Path, image: Image.Image) -> None:
    image.save(path, "JPEG", quality=JPEG_QUALITY)


def _write_lines(path: Path, lines: list[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), "utf-8", newline="\n")
