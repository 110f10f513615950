"""Trained networks: a network, what its images must be, and what its logits mean.

From: `runs`, which trains networks and reads them from checkpoints.
To:   `evaluate`; and a notebook, which calls them.
"""

from dataclasses import dataclass

from torch import Tensor, nn

from tinyvgg.errors import CheckpointError
from tinyvgg.loading.batch import resize_images
from tinyvgg.loading.config import CENTER_SHARE
from tinyvgg.model.vgg import compute_logits
from tinyvgg.options import Amp
from tinyvgg.shards.store import PackedDataset


@dataclass(frozen=True)
class Preprocessing:
    """What a network's images must be, and in what precision it computes.

    Attributes:
        mean, std: per channel on the 0-to-1 scale, that pixels are normalized with.
        pixels: shorter side that images are reduced to; None: as stored.
        amp: autocast type it was trained in: "off", "bf16" or "fp16".
        center_share: side of the square that is shown of images of several sizes, as a share of
            their shorter side.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pixels: int | None = None
    amp: Amp = "off"
    center_share: float = CENTER_SHARE


def note_preprocessing(network: nn.Module, preprocessing: Preprocessing) -> None:
    """Note on a network what its images must be, as its attribute `preprocessing`."""
    setattr(network, "preprocessing", preprocessing)  # noqa: B010 - nn.Module is typed without it


def find_preprocessing(network: nn.Module) -> Preprocessing | None:
    """Return what is noted on a network, or None."""
    noted = getattr(network, "preprocessing", None)
    return noted if isinstance(noted, Preprocessing) else None


class TrainedNetwork(nn.Module):
    """A network from a checkpoint; called with images, it gives logits.

    Attributes:
        model: in eval mode.
        class_folders: in label order.
        class_words: what they are called, "" where nobody said.
        preprocessing: what its images must be.
    """

    def __init__(
        self,
        model: nn.Module,
        class_folders: list[str],
        class_words: list[str],
        preprocessing: Preprocessing,
    ) -> None:
        super().__init__()
        self.model = model
        self.class_folders = class_folders
        self.class_words = class_words
        self.preprocessing = preprocessing

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of images [B, 3, H, W], normalized as `preprocessing` says.

        Images of another size than `preprocessing.pixels` are scaled to it, as in training.
        """
        if self.preprocessing.pixels is not None:
            images = resize_images(images, self.preprocessing.pixels)
        return compute_logits(self.model, images)


def check_classes(trained: TrainedNetwork, dataset: PackedDataset) -> None:
    """Refuse a data set whose classes are not the network's.

    Raises:
        CheckpointError: they differ in number or name.
    """
    found, needed = dataset.class_names, trained.class_folders
    if len(found) != len(needed):
        raise CheckpointError(
            f"manifest has {len(found)} classes, checkpoint was trained on {len(needed)}; "
            "train again or pass the dataset it was trained on"
        )
    for label, (folder, expected) in enumerate(zip(found, needed, strict=True)):
        if folder != expected:
            raise CheckpointError(
                f"class {label} is {folder!r} in the manifest, {expected!r} in the checkpoint; "
                "train again or pass the dataset it was trained on"
            )
