"""Scored: what the last evaluation of a run said, with a few small images, for its report.

From: `fit`, as a run comes to its end.
To:   RUN/scored.json; `reporting.report`, which believes nothing that stands in it.

Images are those that show most: up to four of each of the 20 most confused pairs, and the 60
mistakes with the highest loss: at most 140, of at most 64 x 64 pixels, as JPEG.
"""

import base64
import io
import json
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError, model_validator

from tinyvgg.durable import replace_file
from tinyvgg.errors import CheckpointError
from tinyvgg.inference.confusion import find_confused_pairs
from tinyvgg.inference.evaluate import Evaluation
from tinyvgg.regular import read_regular_file
from tinyvgg.shards.store import PackedDataset

NUM_PAIRS, IMAGES_PER_PAIR, NUM_WORST = 20, 4, 60
IMAGE_PIXELS, JPEG_QUALITY = 64, 85
MAX_JSON_BYTES = 64 * 2**20
MAX_CLASSES = 20_000


class ScoredImage(BaseModel):
    """A val image that was taken for another class.

    Attributes:
        row: of the val split.
        label, prediction: of classes.
        confidence: probability of the prediction, 0 to 1.
        loss: cross-entropy.
        jpeg: base64.
    """

    row: NonNegativeInt
    label: NonNegativeInt
    prediction: NonNegativeInt
    confidence: Annotated[float, Field(ge=0, le=1.001)]
    loss: float
    jpeg: Annotated[str, Field(pattern="^[A-Za-z0-9+/=]*$", max_length=20_000)]


class Scored(BaseModel):
    """An evaluation.

    Attributes:
        epoch: from 0, whose network it was.
        class_folders, class_words: in label order.
        cells: label, prediction and number of images, of every cell that is not empty.
        images: mistakes.
    """

    epoch: NonNegativeInt
    class_folders: Annotated[list[str], Field(min_length=1, max_length=MAX_CLASSES)]
    class_words: list[str]
    cells: list[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]]
    images: Annotated[list[ScoredImage], Field(max_length=200)]

    @model_validator(mode="after")
    def _check_labels(self) -> Self:
        num_classes = len(self.class_folders)
        labels = [label for cell in self.cells for label in cell[:2]]
        labels += [label for image in self.images for label in (image.label, image.prediction)]
        if len(self.class_words) != num_classes or max(labels, default=0) >= num_classes:
            raise ValueError(f"labels must be under {num_classes}, with words for each")
        return self

    @property
    def confusion(self) -> NDArray[np.int64]:
        """The confusion matrix, int64 [K, K]."""
        matrix = np.zeros((len(self.class_folders),) * 2, np.int64)
        for label, prediction, num_images in self.cells:
            matrix[label, prediction] = num_images
        return matrix


def describe_scored(dataset: PackedDataset, epoch: int, evaluation: Evaluation) -> Scored:
    """Return what is kept of an evaluation of the val split."""
    labels, predictions = np.nonzero(evaluation.confusion)
    counts = evaluation.confusion[labels, predictions]
    cells = zip(labels.tolist(), predictions.tolist(), counts.tolist(), strict=True)
    return Scored(
        epoch=epoch,
        class_folders=_storable(dataset.class_names),
        class_words=_storable(dataset.class_words),
        cells=list(cells),
        images=_choose_images(dataset, evaluation),
    )


def _storable(names: list[str]) -> list[str]:
    """Return names as JSON may hold them: bytes of a folder that are no UTF-8, escaped."""
    return [name.encode("utf-8", "backslashreplace").decode() for name in names]


def _choose_images(dataset: PackedDataset, evaluation: Evaluation) -> list[ScoredImage]:
    images = evaluation.images
    if images is None:
        return []
    labels = dataset.val.labels[images.rows]
    by_loss = np.argsort(-images.losses, kind="stable")
    by_loss = by_loss[labels[by_loss] != images.predictions[by_loss]]
    chosen: dict[int, None] = dict.fromkeys(by_loss[:NUM_WORST].tolist())
    for pair in find_confused_pairs(evaluation.confusion, NUM_PAIRS):
        is_pair = (labels == pair.label) & (images.predictions == pair.prediction)
        chosen |= dict.fromkeys(by_loss[is_pair[by_loss]][:IMAGES_PER_PAIR].tolist())
    return [
        ScoredImage(
            row=int(images.rows[place]),
            label=int(labels[place]),
            prediction=int(images.predictions[place]),
            confidence=float(images.confidences[place]),
            loss=float(images.losses[place]),
            jpeg=_encode(dataset.val[int(images.rows[place])][0]),
        )
        for place in chosen
    ]


def _encode(pixels: NDArray[np.uint8]) -> str:
    """Return an image, uint8 [H, W, 3], as a small JPEG in base64."""
    image = Image.fromarray(pixels)
    image.thumbnail((IMAGE_PIXELS, IMAGE_PIXELS))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=JPEG_QUALITY)
    return base64.b64encode(data.getvalue()).decode()


def write_scored(path: Path, scored: Scored) -> None:
    """Replace scored.json."""
    text = json.dumps(scored.model_dump(), separators=(",", ":"), allow_nan=True)
    replace_file(path, text.encode())


def read_scored(path: Path) -> Scored:
    """Read scored.json, every field checked.

    Raises:
        CheckpointError: damaged, or not one of ours.
        FileNotFoundError: there is none.
    """
    try:
        return Scored.model_validate_json(read_regular_file(path, MAX_JSON_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{path}: damaged ({name}: {first['msg']}); train again") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged ({error}); train again") from error
