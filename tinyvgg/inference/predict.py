"""Predict: a network and images of any kind and size to the likeliest classes of each.

From: `runs` or a notebook (a network), and `given_images`.
To:   the command line, `reporting`, and a notebook: `tinyvgg.load(checkpoint).predict(images)`.

B images of a batch, K classes. Threads decode ahead while the network computes, so that it waits
for no file (benchmarks/predict.py measures it). An image that cannot be decoded has an answer like
the others, which says why, and the rest goes on.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tinyvgg.errors import CheckpointError, DatasetError
from tinyvgg.inference.given_images import GivenImage
from tinyvgg.inference.shown import EvaluationView
from tinyvgg.inference.trained import TrainedNetwork
from tinyvgg.loading.batch import Normalization, PixelPass
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.options import Amp
from tinyvgg.regular import is_of_the_file
from tinyvgg.training.amp import AMP_DTYPES

NUM_AHEAD = 3  # batches that threads decode, the one included that the network waits for


@dataclass(frozen=True)
class Guess:
    """A class that an image may be of.

    Attributes:
        label: index of the class.
        class_folder: its name.
        words: what it is called, "" where nobody said.
        probability: 0 to 1, of all classes together 1.
    """

    label: int
    class_folder: str
    words: str
    probability: float

    @property
    def title(self) -> str:
        """What a person calls it: its words, or the class folder where there are none."""
        return self.words or self.class_folder


@dataclass(frozen=True)
class Prediction:
    """What a network says of one image.

    Attributes:
        name: the image's path, or "image 3" for the fourth of those that have none.
        guesses: the likeliest classes, best first; none if the image is damaged.
        damage: why it could not be decoded; None if it could.
        shown: what the network was shown, uint8 [H, W, 3], if it was to be kept.
    """

    name: str
    guesses: tuple[Guess, ...]
    damage: str | None = None
    shown: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)

    @property
    def best(self) -> Guess:
        """The likeliest class.

        Raises:
            DatasetError: the image is damaged.
        """
        if not self.guesses:
            raise DatasetError(f"{self.name}: {self.damage}")
        return self.guesses[0]

    def describe(self) -> dict[str, Any]:
        """Return name and guesses, ready for JSON."""
        guesses = [
            {
                "label": guess.label,
                "class": guess.class_folder,
                "words": guess.words,
                "probability": guess.probability,
            }
            for guess in self.guesses
        ]
        return {"image": self.name, "guesses": guesses}


@dataclass
class _Prepared:
    """A batch that threads fill: pixels, and on a CPU what the network gets."""

    images: list[GivenImage]
    pixels: NDArray[np.uint8]  # [B, H, W, 3]
    normalized: Tensor | None  # [B, H, W, 3]
    damages: list[str | None]
    jobs: list[Future[None]] = field(default_factory=list)


class Predictor:
    """Shows images to a network, batch by batch; see `TrainedNetwork.predict`.

    Args:
        trained: where it is, it computes.
        top_k: classes to name of each image.
        batch_size: images in a batch; None: 256 on a CPU, 1,024 elsewhere.
        amp: autocast type; "auto": as it was trained.
        num_kept: images of which `shown` is kept, the first ones.

    Raises:
        ValueError: `top_k` or `batch_size` is under 1.
    """

    def __init__(
        self,
        trained: TrainedNetwork,
        *,
        top_k: int = 5,
        batch_size: int | None = None,
        amp: Amp = "auto",
        num_kept: int = 0,
    ) -> None:
        check_counts(top_k, batch_size)
        preprocessing = trained.preprocessing
        self.trained = trained
        self.device = next((weight.device for weight in trained.parameters()), torch.device("cpu"))
        self.amp = preprocessing.amp if amp == "auto" else amp
        self.top_k = min(top_k, len(trained.class_folders))
        self.batch_size = batch_size or (256 if self.device.type == "cpu" else 1024)
        self.num_kept = num_kept
        self.view = EvaluationView(preprocessing)
        normalization = Normalization(preprocessing.mean, preprocessing.std)
        shape, dtype = (*self.view.size, 3), AMP_DTYPES[self.amp]
        self.kernel = HostKernel(PixelPass(shape, normalization, dtype))
        self.scale, self.shift = (
            torch.from_numpy(values).to(self.device)
            for values in (normalization.scale, normalization.shift)
        )

    def predict(
        self,
        images: Iterable[GivenImage],
        advance: Callable[[int], Any] = lambda num_images: None,
    ) -> Iterator[Prediction]:
        """Yield what the network says of each image, in order.

        Args:
            images: asked for three batches ahead.
            advance: called with the number of images of each batch that is done.

        Raises:
            CheckpointError: what the network gives is NaN or infinite.
            OSError, MemoryError: the machine cannot read or decode anything now.
        """
        given, num_threads = iter(images), max(1, torch.get_num_threads())
        was_training = self.trained.training
        threads = ThreadPoolExecutor(num_threads, "tinyvgg-predict")
        ahead: deque[_Prepared] = deque()
        num_kept = self.num_kept
        try:
            self.trained.eval()
            while True:
                while len(ahead) < NUM_AHEAD and (batch := list(islice(given, self.batch_size))):
                    ahead.append(self._begin(batch, threads, num_threads))
                if not ahead:
                    return
                prepared = ahead.popleft()
                for job in prepared.jobs:
                    job.result()
                yield from self._answer(prepared, num_kept)
                num_kept = max(0, num_kept - len(prepared.images))
                advance(len(prepared.images))
        finally:
            threads.shutdown(cancel_futures=True)
            self.trained.train(was_training)

    def _begin(
        self, images: list[GivenImage], threads: ThreadPoolExecutor, num_threads: int
    ) -> _Prepared:
        """Let threads prepare a batch."""
        is_host = self.device.type == "cpu"
        prepared = _Prepared(
            images,
            np.empty((len(images), *self.kernel.image_shape), np.uint8),
            self.kernel.empty(len(images)) if is_host else None,
            [None] * len(images),
        )
        step = -(-len(images) // num_threads)
        prepared.jobs += [
            threads.submit(self._prepare, prepared, range(first, min(first + step, len(images))))
            for first in range(0, len(images), step)
        ]
        return prepared

    def _prepare(self, prepared: _Prepared, part: range) -> None:
        """Fill part of a batch."""
        for place in part:
            pixels = prepared.pixels[place]
            prepared.damages[place] = damage = self._show(prepared.images[place], pixels)
            if damage is not None:
                pixels[:] = 0
        if prepared.normalized is not None:
            first = prepared.pixels[part.start :]
            nowhere = np.zeros(len(part), np.int32)
            self.kernel.write(
                first.ctypes.data + np.arange(len(part)) * first.strides[0],
                nowhere,
                nowhere,
                nowhere.astype(np.bool_),
                prepared.normalized[part.start : part.stop],
                is_augmented=False,
            )

    def _show(self, image: GivenImage, pixels: NDArray[np.uint8]) -> str | None:
        """Fill `pixels` with an image, or return why that cannot be."""
        try:
            self.view.show(image, pixels)
        except DatasetError as error:
            return str(error)
        except OSError as error:
            if not is_of_the_file(error):
                raise
            return error.strerror or type(error).__name__
        return None

    def read_batch(self, images: list[GivenImage]) -> Tensor:
        """Return images as the network gets them, on its device, [B, H, W, 3] in its type.

        Raises:
            DatasetError: one of them is damaged.
        """
        with ThreadPoolExecutor(1) as threads:
            prepared = self._begin(images, threads, 1)
        for job in prepared.jobs:
            job.result()
        for image, damage in zip(images, prepared.damages, strict=True):
            if damage is not None:
                raise DatasetError(f"{image.name}: {damage}")
        return self._normalize(prepared)

    def _normalize(self, prepared: _Prepared) -> Tensor:
        """Return what threads have normalized, or normalize it on the device."""
        if prepared.normalized is not None:
            return prepared.normalized
        pixels = torch.from_numpy(prepared.pixels).to(self.device)
        return (pixels.float() * self.scale + self.shift).to(self.kernel.dtype)

    @torch.no_grad()
    def _compute(self, prepared: _Prepared) -> tuple[list[list[float]], list[list[int]]]:
        """Return the best probabilities and their labels, best first."""
        images = self._normalize(prepared)
        with torch.autocast(self.device.type, self.kernel.dtype, enabled=self.amp != "off"):
            logits: Tensor = self.trained(images.permute(0, 3, 1, 2))
        best = logits.float().softmax(dim=1).topk(self.top_k)
        if not best.values.isfinite().all():
            raise CheckpointError(
                "outputs of the network are NaN or infinite; pass --amp off, or train again"
            )
        return best.values.tolist(), best.indices.tolist()

    def _answer(self, prepared: _Prepared, num_kept: int) -> Iterator[Prediction]:
        probabilities, labels = self._compute(prepared)
        folders, words = self.trained.class_folders, self.trained.class_words
        for place, image in enumerate(prepared.images):
            damage = prepared.damages[place]
            if damage is not None:
                yield Prediction(image.name, (), damage)
                continue
            guesses = tuple(
                Guess(label, folders[label], words[label] if words else "", probability)
                for label, probability in zip(labels[place], probabilities[place], strict=True)
            )
            shown = prepared.pixels[place].copy() if place < num_kept else None
            yield Prediction(image.name, guesses, shown=shown)


def check_counts(top_k: int, batch_size: int | None) -> None:
    """Refuse counts under 1.

    Raises:
        ValueError: one is.
    """
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
