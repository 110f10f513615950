"""Trained networks: a network, what its images must be, and what its logits mean.

From: `runs`, which trains networks and reads them from checkpoints.
To:   `evaluate`, `predict`, `export`; and a notebook, which calls them.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from tinyvgg.errors import CheckpointError, DatasetError, bad_files_text
from tinyvgg.loading.batch import resize_images
from tinyvgg.loading.config import CENTER_SHARE
from tinyvgg.model.vgg import compute_logits
from tinyvgg.options import Amp
from tinyvgg.shards.store import PackedDataset

if TYPE_CHECKING:  # it builds on this module
    from tinyvgg.inference.predict import Prediction


@dataclass(frozen=True)
class Preprocessing:
    """What a network's images must be, and in what precision it computes.

    Attributes:
        mean, std: per channel on the 0-to-1 scale, that pixels are normalized with.
        pixels: shorter side that images are reduced to; None: as stored.
        amp: autocast type it was trained in: "off", "bf16" or "fp16".
        center_share: side of the square that is shown of images of several sizes, as a share of
            their shorter side.
        stored_size: (H, W) of the images that it was trained on; None: several, or not known.
        is_center: whether images are shown by their central square, as those of several sizes are;
            else whole.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    pixels: int | None = None
    amp: Amp = "off"
    center_share: float = CENTER_SHARE
    stored_size: tuple[int, int] | None = None
    is_center: bool = False


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
        arch: its name in `ARCHS`; None for a network of the caller's.
    """

    def __init__(
        self,
        model: nn.Module,
        class_folders: list[str],
        class_words: list[str],
        preprocessing: Preprocessing,
        arch: str | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.class_folders = class_folders
        self.class_words = class_words
        self.preprocessing = preprocessing
        self.arch = arch

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, K] of images [B, 3, H, W], normalized as `preprocessing` says.

        Images of another size than `preprocessing.pixels` are scaled to it, as in training.
        """
        if self.preprocessing.pixels is not None:
            images = resize_images(images, self.preprocessing.pixels)
        return compute_logits(self.model, images)

    def predict(
        self,
        images: Any,
        *,
        top_k: int = 5,
        batch_size: int | None = None,
        amp: Amp = "auto",
        keep_damaged: bool = False,
    ) -> "list[Prediction]":
        """Say what images show, seen as the run's evaluation view shows them.

        Args:
            images: one, or any iterable of: paths of image files, PIL images, arrays uint8
                [H, W, 3] RGB; or an array uint8 [n, H, W, 3]. Any size; any kind that `pack`
                takes.
            top_k: classes to name of each.
            batch_size: images that are computed at once; None: 256 on a CPU, 1,024 elsewhere.
            amp: autocast type; "auto": as the network was trained.
            keep_damaged: whether what cannot be decoded gets a `Prediction` without guesses, whose
                `damage` says why, and is no error.

        Returns:
            A `Prediction` for each image, in order: `guesses`, best first, with `class_folder`,
            `words` and `probability`.

        Raises:
            DatasetError: images cannot be decoded; it names the first 20.
            TypeError: an image is none of these.
            ValueError: `top_k` or `batch_size` is under 1.
            CheckpointError: what the network gives is NaN or infinite.
        """
        from tinyvgg.inference.given_images import take_images
        from tinyvgg.inference.predict import Predictor

        predictor = Predictor(self, top_k=top_k, batch_size=batch_size, amp=amp)
        predictions = list(predictor.predict(take_images(images)))
        damaged = [(found.name, found.damage) for found in predictions if found.damage is not None]
        if damaged and not keep_damaged:
            remedy = "drop them, or pass keep_damaged=True"
            raise DatasetError(bad_files_text("images", damaged, remedy))
        return predictions


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
