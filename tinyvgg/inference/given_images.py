"""Given images: what a user names or holds, as one list of images to look at.

From: the command line (paths of files and folders, lines of stdin), or a notebook (paths, PIL
      images, arrays).
To:   `predict`, whose threads read them.

A folder is walked to its depth, sorted byte by byte; what is hidden, or no image by its
name, is left out, counted and named as `pack` does. A file that is named itself is an image
whatever its name says.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tinyvgg.errors import DatasetError
from tinyvgg.packing.file_kinds import is_hidden, is_image, is_metadata
from tinyvgg.packing.trees import MAX_FILE_BYTES, FileTree, open_tree
from tinyvgg.regular import is_of_the_file, read_regular_file

NUM_NAMED = 20  # of the files that are left out

logger = logging.getLogger("tinyvgg")


@dataclass(frozen=True)
class GivenImage:
    """One image.

    Attributes:
        name: what results call it: its path, or "image 3".
        content: its pixels, uint8 [H, W, 3] RGB or a PIL image; or what reads the file's bytes.
    """

    name: str
    content: Callable[[], bytes] | Image.Image | NDArray[np.uint8]


def find_images(paths: Iterable[str], lines: Iterable[bytes] = ()) -> Iterator[GivenImage]:
    """Yield the images that paths name.

    What cannot be read is an image as well: whoever reads it hears of it.

    Args:
        paths: of files and folders; "-" stands for those of `lines`.
        lines: a path each, as the lines of a file; empty ones are skipped.
    """
    for path in paths:
        if path == "-":
            names = (os.fsdecode(line.rstrip(b"\r\n")) for line in lines)
            yield from (image for name in names if name for image in _find_below(name))
        else:
            yield from _find_below(path)


def _find_below(path: str) -> Iterator[GivenImage]:
    if not os.path.isdir(path):  # noqa: PTH112
        yield GivenImage(path, partial(read_regular_file, path, MAX_FILE_BYTES))
        return
    try:
        tree = open_tree(Path(path))
        names = _list_images(path, tree)
    except OSError as error:
        if not is_of_the_file(error):
            raise
        yield GivenImage(path, partial(_refuse, error))
        return
    except DatasetError as error:
        reason = str(error).removeprefix(f"{path}: ")
        yield GivenImage(path, partial(_refuse, DatasetError(reason)))
        return
    top = path.rstrip("/") or path
    for name in names:
        yield GivenImage(f"{top}/{name}", partial(tree.read_file, name))


def _refuse(error: Exception) -> bytes:
    raise error


def _list_images(path: str, tree: FileTree) -> list[str]:
    """Return the images below a folder, sorted; say what is left out.

    Raises:
        DatasetError: there is none.
        OSError: a folder must not be read.
    """
    images, others, num_hidden = [], [], 0
    for name in tree.list_files(""):
        if name.endswith("/"):
            continue
        *folders, last = name.split("/")
        if is_hidden(last) or any(map(is_hidden, folders)):
            num_hidden += is_image(last) and not is_hidden(last)
        elif is_image(last):
            images.append(name)
        elif not is_metadata(last):
            others.append(name)
    _say_what_is_left(path, others, num_hidden)
    if not images:
        raise DatasetError("no image by its name in it; name another folder, or the files")
    return sorted(images, key=os.fsencode)


def _say_what_is_left(path: str, others: list[str], num_hidden: int) -> None:
    if num_hidden:
        logger.warning("%s: left out: %s images in hidden folders", path, f"{num_hidden:,}")
    if others:
        count = f"{len(others):,}"
        logger.warning("%s: left out: %s files that are no images by their names", path, count)
        for name in sorted(others, key=os.fsencode)[:NUM_NAMED]:
            logger.warning("  %s", name)
        if len(others) > NUM_NAMED:
            logger.warning("  … and %s more", f"{len(others) - NUM_NAMED:,}")


def take_images(images: Any) -> Iterator[GivenImage]:
    """Yield the images that a Python program holds.

    Args:
        images: one of, or any iterable of: paths of files, PIL images, arrays uint8 [H, W, 3];
            or one array uint8 [n, H, W, 3].

    Raises:
        TypeError: one of them is none of these.
    """
    is_one = isinstance(images, str | os.PathLike | Image.Image)
    is_one = is_one or (isinstance(images, np.ndarray) and images.ndim == 3)
    for number, image in enumerate([images] if is_one else images):
        if isinstance(image, str | os.PathLike):
            path = os.fsdecode(image)
            yield GivenImage(path, partial(read_regular_file, path, MAX_FILE_BYTES))
        elif isinstance(image, Image.Image):
            yield GivenImage(f"image {number}", image)
        else:
            yield GivenImage(f"image {number}", _check_array(number, image))


def _check_array(number: int, image: Any) -> NDArray[np.uint8]:
    if isinstance(image, np.ndarray):
        is_fit = image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size
        found = f"an array {image.dtype} {list(image.shape)}"
    else:
        is_fit, found = False, type(image).__name__
    if not is_fit:
        raise TypeError(
            f"image {number}: {found}, needed a path, a PIL image or an array uint8 [H, W, 3]; "
            "convert it first"
        )
    return image  # type: ignore[no-any-return]
