"""Contract: what a peer's file has, and the steps that peers without their own share.

Contests, by name; batches of `batch_size(contest)`, shuffled, labels int64 [b]:

    stored       uint8 as stored, [b, 64, 64, 3] or its view [b, 3, 64, 64]
    flip         every image mirrored or not, normalized, float32
    crop         moved by up to 4 pixels over the mean color, then as flip
    photographs  JPEG files of 200 to 500 pixels a side, a random box scaled to 224, then as flip
    convert      class folders of JPEG files to the peer's format, the whole command

Float32 images are [b, 3, H, W], channels last in memory where the peer can.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

if TYPE_CHECKING:  # a conversion does not wait for torch, unless its peer does
    import torch

Contest = Literal["stored", "flip", "crop", "photographs", "convert"]
Batches = Iterator[tuple["torch.Tensor", "torch.Tensor"]]
OpenEpochs = Callable[[], Batches]
Items = Sequence[tuple[Path, int]]  # JPEG files and labels, by class
MODULES = (
    "ours", "plain_torch", "image_folder", "ffcv", "dali_files", "spdl", "webdataset", "streaming",
    "litdata", "huggingface", "grain", "lance",
)  # fmt: skip
PIXELS, LARGE, PAD = 64, 224, 4
MEAN, STD = (0.4802, 0.4481, 0.3975), (0.2302, 0.2265, 0.2262)
SCALE = (1 / (255 * np.array(STD))).astype(np.float32)
SHIFT = (-np.array(MEAN) / np.array(STD)).astype(np.float32)
FILL = tuple(int(value) for value in np.rint(255 * np.array(MEAN)))


class Variant(NamedTuple):
    """A way to use a peer that is measured.

    `encoding` says what `write` stored (raw pixels or JPEG); None: it needs no format of its own.
    `levels_off`: how far off the mean of all pixels may be, where files are encoded again.
    """

    name: str
    contests: tuple[Contest, ...]
    encoding: str | None
    options: dict[str, Any]
    levels_off: float = 0.0


@dataclass(frozen=True)
class Peer:
    """What a peer enters, and what it cannot do.

    Attributes:
        environment: name of its lock in locks/; None: it runs in the project's.
        variants: each an arm in each of its contests.
        cannot: reason by contest.
        unlike: what differs from the others' work, in its favor or not.
    """

    environment: str | None
    variants: tuple[Variant, ...]
    cannot: dict[Contest, str] = field(default_factory=dict)
    unlike: str = ""


def batch_size(contest: Contest) -> int:
    """Return the number of images in a batch."""
    return 64 if contest == "photographs" else 256


def list_items(folders: str | Path) -> list[tuple[Path, int]]:
    """Return (file, label) of class folders, sorted as ImageFolder does."""
    top = Path(folders) / "train"
    names = sorted(path.name for path in top.iterdir() if path.is_dir())
    return [
        (folder / file, label)
        for label, folder in enumerate(top / name for name in names)
        for file in sorted(os.listdir(folder))  # noqa: PTH208 - sorting paths takes 0.3 s
    ]


def shuffle_items(items: Items) -> list[tuple[Path, int]]:
    """Return items in a drawn order, for formats whose own shuffle is not of the whole set."""
    return [items[row] for row in np.random.default_rng(0).permutation(len(items)).tolist()]


def decode(data: bytes) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return uint8 [H, W, 3] of a JPEG file; the decoder of `tinyvgg pack`."""
    import simplejpeg

    pixels: np.ndarray[Any, np.dtype[np.uint8]] = simplejpeg.decode_jpeg(data)
    return pixels


def encode(path: Path, encoding: str) -> bytes:
    """Return what is stored of a file: its bytes, or its pixels."""
    data = path.read_bytes()
    return data if encoding == "jpeg" else decode(data).tobytes()


def make_collate(
    contest: Contest, encoding: str
) -> Callable[[Sequence[tuple[Any, int]]], tuple["torch.Tensor", "torch.Tensor"]]:
    """Return a function of (stored bytes, label) that decodes and stacks a batch.

    Photographs are finished by it, image by image; others are uint8, for `augment`.
    """
    import torch

    transform = photograph_transform() if contest == "photographs" else None

    def collate(samples: Sequence[tuple[Any, int]]) -> tuple["torch.Tensor", "torch.Tensor"]:
        labels = torch.tensor([int(label) for _, label in samples])
        if transform is not None:
            images = [
                transform(torch.from_numpy(decode(bytes(data))).permute(2, 0, 1))
                for data, _ in samples
            ]
            return torch.stack(images), labels
        if encoding == "jpeg":
            return torch.from_numpy(np.stack([decode(bytes(data)) for data, _ in samples])), labels
        pixels = np.frombuffer(bytearray(b"".join(data for data, _ in samples)), np.uint8)
        return torch.from_numpy(pixels.reshape(-1, PIXELS, PIXELS, 3)), labels

    return collate


def photograph_transform() -> Any:
    """Return torchvision's random box, flip and normalization, of uint8 [3, H, W]."""
    import torch
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(LARGE, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )


def augment(
    images: "torch.Tensor", contest: Contest, out: "torch.Tensor | None" = None
) -> "torch.Tensor":
    """Return a batch as its contest wants it, by whole-batch operations of torch.

    Args:
        images: uint8 [b, H, W, 3], overwritten; photographs come finished and are returned.
        contest: what to do.
        out: float32 [B, H, W, 3], reused memory.
    """
    import torch

    if contest in ("stored", "photographs"):
        return images
    count, height, width, _ = images.shape
    if contest == "crop":
        padded = torch.tensor(FILL, dtype=torch.uint8).expand(
            count, height + 2 * PAD, width + 2 * PAD, 3
        )
        padded = padded.contiguous()
        padded[:, PAD : PAD + height, PAD : PAD + width] = images
        corners = torch.randint(0, 2 * PAD + 1, (count, 2)).tolist()
        images = torch.stack(
            [padded[i, y : y + height, x : x + width] for i, (y, x) in enumerate(corners)]
        )
    flip = torch.rand(count) < 0.5
    images[flip] = images[flip].flip(2)
    if out is None:
        out = torch.empty(images.shape, dtype=torch.float32)
    out = out[:count]
    torch.mul(images, torch.from_numpy(SCALE), out=out)
    out.add_(torch.from_numpy(SHIFT))
    return out.permute(0, 3, 1, 2)


def data_loader(dataset: Any, contest: Contest, workers: int, **options: Any) -> Any:
    """Return torch's DataLoader with the settings that all its users here have."""
    import torch

    return torch.utils.data.DataLoader(
        dataset,
        options.pop("batch_size", batch_size(contest)),
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        **options,
    )
