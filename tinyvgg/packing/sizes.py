"""Sizes: the one that all images of a set must have is that of most train images.

From: `folders`, which lists the images.
To:   `pack`, which makes room for images of that size, and names those of another.

Where 64 images spread over the train split agree, it is theirs; else the headers of all are read,
one more pass that few sets need. One odd image must not decide for all the others.
"""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Event

from tinyvgg.errors import DatasetError, bad_files_text
from tinyvgg.packing.decode import read_image_size
from tinyvgg.packing.folders import ImageSource, SourceImage, show_path
from tinyvgg.packing.interrupts import run_interruptible
from tinyvgg.packing.trees import Stamp
from tinyvgg.regular import is_of_the_file
from tinyvgg.shards.manifest import ImageFormat

SAMPLE_IMAGES = 64  # whose headers are read first: 3 ms


def find_image_format(source: ImageSource, resize: int | None, num_threads: int) -> ImageFormat:
    """Return the size every image must have: that of most train images that can be read.

    Raises:
        DatasetError: no image can be read, or no size is that of more than half.
    """
    if resize is not None:
        return ImageFormat(height=resize, width=resize)
    images = source.splits["train"]
    num_sampled = min(SAMPLE_IMAGES, len(images))
    sample = [images[len(images) * place // num_sampled] for place in range(num_sampled)]
    sizes, bad_files = _count_sizes(source, sample, num_threads)
    if len(sizes) != 1 and num_sampled < len(images):
        sizes, bad_files = _count_sizes(source, images, num_threads)
    if not sizes:
        title = f"{source.name}: no train image can be read"
        raise DatasetError(bad_files_text(title, bad_files, "are these images?"))
    (height, width), num_images = sizes.most_common(1)[0]
    if 2 * num_images <= sizes.total():
        most = ", ".join(f"{n:,} of {w}x{h}" for (h, w), n in sizes.most_common(3))
        raise DatasetError(
            f"{source.name}: train images of {len(sizes):,} sizes, {most} and so on, expected one "
            "size that most of them have; pack with --resize, or as they are with --encoding jpeg"
        )
    return ImageFormat(height=height, width=width)


def _count_sizes(
    source: ImageSource, images: list[SourceImage], num_threads: int
) -> tuple[Counter[tuple[int, int]], list[tuple[str, str]]]:
    """Count the (height, width) of some images by their headers, and list what has none."""

    def read_size(image: SourceImage) -> tuple[int, int] | str:
        try:
            return read_image_size(read_image(source, image))
        except DatasetError as error:
            return str(error)

    def read_sizes(stop: Event) -> list[tuple[int, int] | str]:
        with ThreadPoolExecutor(num_threads) as pool:
            return list(pool.map(lambda image: "" if stop.is_set() else read_size(image), images))

    is_sample = len(images) <= SAMPLE_IMAGES  # threads would take longer to start
    found = list(map(read_size, images)) if is_sample else run_interruptible(read_sizes)
    bad_files = [
        (show_path(image.path), size)
        for image, size in zip(images, found, strict=True)
        if isinstance(size, str)
    ]
    return Counter(size for size in found if not isinstance(size, str)), bad_files


def read_image(source: ImageSource, image: SourceImage) -> bytes:
    """Return the bytes of an image; as `read_stamped_image`."""
    return read_stamped_image(source, image)[0]


def read_stamped_image(source: ImageSource, image: SourceImage) -> tuple[bytes, Stamp]:
    """Return the bytes of an image, and the stamp of its file.

    Raises:
        DatasetError: the file is none that can be read.
        OSError: the machine cannot read it.
    """
    try:
        return source.tree.read_stamped(image.path)
    except OSError as error:
        if is_of_the_file(error):
            raise DatasetError(error.strerror or str(error)) from error
        raise
