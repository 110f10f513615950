"""Device decoder: JPEG files of a step to uint8 images of one size, on the device.

From: a split of JPEG files, and the boxes of `views`.
To:   the device slots of backend `torch`, which crops, flips and normalizes them as any others.

nvJPEG on CUDA, through torchcodec where it is installed, else through torchvision, which will give
up decoding images; both decode on a CPU, too, with the same call. nvJPEG repeats the nearest
chroma where libjpeg interpolates, so pixels differ from those of a CPU (tests/GPU.md).
"""

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from tinyvgg.loading.reader import name_damage
from tinyvgg.shards.jpeg import decode_jpeg
from tinyvgg.shards.store import Split

Decode = Callable[[list[Tensor], torch.device], list[Tensor]]
MAX_PIXELS = 2**28  # that are decoded before they are scaled: 0.8 GB, and one more image
EXIF_SEGMENT = b"\xff\xe1"  # APP1; two bytes of length follow, then the name
UNUSED_SEGMENT = 0xEF  # APP15
EXIF_NAME = b"Exif\0\0"


@functools.cache
def find_decode() -> Decode:
    """Return what decodes a list of files uint8 [bytes] on the host to uint8 [3, H, W]."""
    try:
        decode = importlib.import_module("torchcodec.decoders").decode_jpeg
    except (ImportError, OSError, RuntimeError):  # not installed, or without the libraries it needs
        return _decode_by_torchvision
    return lambda files, device: decode([hide_exif(file) for file in files], device=device)


def _decode_by_torchvision(files: list[Tensor], device: torch.device) -> list[Tensor]:
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():  # that torchcodec is to be used instead
        warnings.simplefilter("ignore", DeprecationWarning)
        images: list[Tensor] = decode_jpeg(files, ImageReadMode.RGB, device)
    return images


def hide_exif(file: Tensor) -> Tensor:
    """Make the EXIF segments of a file others, in place, so that no decoder turns the image.

    Entropy-coded bytes hold no marker: what looks like such a segment is one.
    """
    data: NDArray[np.uint8] = file.numpy()
    content = data.tobytes()
    place = content.find(EXIF_NAME)
    while place >= 0:
        if content[place - 4 : place - 2] == EXIF_SEGMENT:
            data[place - 3] = UNUSED_SEGMENT
        place = content.find(EXIF_NAME, place + 1)
    return file


def scale_box(image: Tensor, box: Sequence[int], out: Tensor) -> None:
    """Scale a box of an image, bilinear and antialiased, on its device.

    Args:
        image: uint8 [3, H, W].
        box: top, left, height and width, inside the image.
        out: uint8 [h, w, 3], filled.
    """
    top, left, height, width = box
    part = image[:, top : top + height, left : left + width]
    if part.shape[1:] != out.shape[:2]:
        scaled = functional.interpolate(
            part[None].float(), out.shape[:2], mode="bilinear", antialias=True
        )
        part = scaled[0].round_()  # between the smallest and the largest: weights are 0 to 1
    out.copy_(part.permute(1, 2, 0))


class DeviceDecoder:
    """Decodes the files of a step on a device; on its current stream, which the host waits for.

    Args:
        split: of JPEG files.
        device: CUDA, or the CPU, where it shows what it would do.
    """

    def __init__(self, split: Split, device: torch.device) -> None:
        self.split = split
        self.device = device

    def __call__(
        self, rows: NDArray[np.int64], boxes: NDArray[np.int32] | None, out: Tensor
    ) -> None:
        """Fill `out` with images.

        Args:
            rows: int64 [n], of the split.
            boxes: int32 [n, 4], to be cut out and scaled; None: whole images.
            out: uint8 [n, H, W, 3], on the device.

        Raises:
            ShardError: a file is damaged.
        """
        sizes = self.split.sizes[rows].tolist()
        if boxes is None:
            boxes = np.array([(0, 0, *size) for size in sizes], np.int32)
        first = 0
        while first < len(rows):
            end, num_pixels = first, 0
            while end < len(rows) and (end == first or num_pixels <= MAX_PIXELS):
                num_pixels += sizes[end][0] * sizes[end][1]
                end += 1
            images = self._decode(rows[first:end].tolist(), sizes[first:end])
            for image, box, target in zip(
                images, boxes[first:end].tolist(), out[first:end], strict=True
            ):
                scale_box(image, box, target)
            first = end

    def _decode(self, rows: list[int], sizes: list[list[int]]) -> list[Tensor]:
        """Return images, uint8 [3, H, W] on the device."""
        files = [torch.from_numpy(np.array(self.split.view_row(row))) for row in rows]
        if self.device.type == "cuda":
            # the decoder's own stream does not wait for this one, whose memory it takes
            torch.cuda.current_stream(self.device).synchronize()
        try:
            images = find_decode()(files, self.device)
        except RuntimeError:  # says not which: one of a kind that the device cannot decode, or bad
            images = [self._decode_one(row, file) for row, file in zip(rows, files, strict=True)]
        for row, image, (height, width) in zip(rows, images, sizes, strict=True):
            if image.shape[1:] != (height, width):
                found = f"{image.shape[2]}x{image.shape[1]} pixels, expected {width}x{height}"
                raise name_damage(self.split, row, found)
        return images

    def _decode_one(self, row: int, file: Tensor) -> Tensor:
        """Decode a file on the device, or on the host if the device cannot."""
        try:
            return find_decode()([file], self.device)[0]
        except RuntimeError:
            pixels = np.empty((*self.split.sizes[row].tolist(), 3), np.uint8)
            try:
                decode_jpeg(file.numpy().data, pixels)
            except ValueError as error:
                raise name_damage(self.split, row, str(error)) from error
            return torch.from_numpy(pixels).permute(2, 0, 1).to(self.device)
