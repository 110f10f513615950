"""Loader: one split's batches, epoch by epoch, from where a state says.

From: `open`, which has chosen a backend.
To:   `training` and `inference`, which see no backend.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tinyvgg.errors import ShardError
from tinyvgg.loading.batch import Batch, BatchSource, Normalization, resize_images
from tinyvgg.loading.config import LoaderConfig, read_size
from tinyvgg.loading.plan import EpochPlanner, LoaderState
from tinyvgg.loading.readahead import open_readahead
from tinyvgg.loading.views import View, find_shown_size
from tinyvgg.ranks import find_rank
from tinyvgg.shards.store import Split


class Loader:
    """Follows the plan of a split through one backend; what `open_loader` returns.

    To be used as torch's DataLoader is: `for images, labels in loader`, `len(loader)`,
    `loader.dataset`; `with` closes it.

    Attributes:
        dataset: the split that it reads.
        batch_size: images of a step, over all ranks.
        backend: "torch", "resident" or "dali".
        rank, world_size: of this process.
        normalization: of the pixels, unless they are uint8.
        image_size: (H, W) of the images of the next epoch.
        state: where it stands.
    """

    def __init__(
        self,
        split: Split,
        config: LoaderConfig,
        source: BatchSource,
        backend: str,
        normalization: Normalization,
        manifest_sha256: str,
        stored_size: tuple[int, int] | None,
        view: View | None = None,
    ) -> None:
        is_train = split.name == "train"
        self.dataset = split
        self.source: BatchSource | None = source
        self.backend = backend
        self.batch_size = config.batch_size
        self.rank, self.world_size = find_rank()
        if self.batch_size % self.world_size:
            raise ValueError(
                f"batch_size must be divisible by the world size {self.world_size}, "
                f"got {self.batch_size}"
            )
        augment = is_train if config.augment is None else config.augment
        self.plan = EpochPlanner(
            split.labels,
            self.batch_size,
            shuffle=is_train if config.shuffle is None else config.shuffle,
            augment=augment and (config.crop_pixels > 0 or config.flip),
            drop_last=is_train if config.drop_last is None else config.drop_last,
            rank=self.rank,
            world_size=self.world_size,
            crop_pixels=config.crop_pixels,
            flip=config.flip,
            view=view,
            sizes=None if view is None else split.sizes,
        )
        if len(self) == 0:
            raise ValueError(
                f"batch_size must be at most {split.num_images:,}, the images of split "
                f"{split.name!r}, got {self.batch_size:,}"
            )
        is_mapped = backend != "resident"
        self.readahead = open_readahead(split) if is_mapped and self.plan.shuffle else None
        self.normalization = normalization
        self.stored_size = stored_size
        self.set_size(config.size)
        self.state = LoaderState(config.seed, 0, 0, manifest_sha256)
        self.is_resumed = False  # the next epoch begins inside, where `load_state_dict` says

    def __len__(self) -> int:
        """Return the steps of a full epoch."""
        return self.plan.num_steps

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """Return an iterator over an epoch's batches, from its start.

        It moves `state`; left early, it leaves no thread or process behind.

        Returns:
            An iterator; a batch stays as it is, but under `reuse_buffers` only until the next one
            is asked for.

        Raises:
            ValueError: `epoch` is negative.
        """
        self.set_epoch(epoch)
        self.is_resumed = False  # from its start, wherever it stands
        return iter(self)

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter` begin this epoch, as that of torch's DistributedSampler does.

        Where the loader stands inside that epoch, by `load_state_dict`, it goes on there.

        Raises:
            ValueError: `epoch` is negative.
        """
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0, got {epoch}")
        if epoch != self.state.epoch:
            self.state = replace(self.state, epoch=epoch, images_consumed=0)
            self.is_resumed = False

    def set_size(self, size: int | None) -> None:
        """Let the next `iter` give images whose shorter side has so many pixels.

        They are scaled bilinear and antialiased, to squares where a view cuts boxes out; None
        leaves them as they are stored.

        Raises:
            ValueError: no image has that size, or it is None though the images have several.
        """
        self.image_size = self.find_size(read_size(size))

    def choose_rows(self, rows: NDArray[np.int64]) -> None:
        """Let every epoch read these rows of the split alone, int64 [n], in their order."""
        self.plan = replace(self.plan, chosen=rows, recent={})

    def find_size(self, size: int | None) -> tuple[int, int]:
        """Return (H, W) of the images that `set_size(size)` asks for."""
        return find_shown_size(self.stored_size, size, self.plan.view)

    def close(self) -> None:
        """Let go of the backend's memory and threads; the loader gives no more batches."""
        self.source = None

    def __enter__(self) -> "Loader":
        """Return the loader itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close it."""
        self.close()

    def __iter__(self) -> Iterator[Batch]:
        """Begin the current epoch, or after `load_state_dict` go on inside it; then the next."""
        if not self.is_resumed:
            self.state = replace(self.state, images_consumed=0)
        self.is_resumed = False
        return self._follow(self.state)

    def _follow(self, state: LoaderState) -> Iterator[Batch]:
        """Yield what is left of an epoch, keeping `self.state` at what was yielded."""
        planned = self.plan(state)
        if len(planned) == 0:  # resumed with a larger batch than what was left
            yield from self._follow(state.next_epoch())
            return
        if self.source is None:
            raise ValueError("loader is closed; open another one")
        size = self.image_size
        batches = self.source.batches(self.plan, state, size)
        if self.readahead is not None:
            batches = self.readahead.follow(planned.rows, batches)
        for step, batch in enumerate(batches):
            self.state = state.after(planned, step)
            batch.images = resize_images(batch.images, min(size))
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return where the loader stands: four JSON fields, under 1 kB."""
        return self.state.to_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader stood, in the next epoch that is begun and only there.

        Raises:
            ShardError: the state is of another data set.
            ValueError: it is no loader state.
        """
        if set(state) != set(self.state.to_dict()):
            raise ValueError(f"loader state must have {', '.join(self.state.to_dict())}")
        loaded = LoaderState(**state)
        if loaded.manifest_sha256 != self.state.manifest_sha256:
            raise ShardError(
                f"loader state is of data set {loaded.manifest_sha256[:12]}…, this one is "
                f"{self.state.manifest_sha256[:12]}…; open the data set it was saved with"
            )
        if not 0 <= loaded.images_consumed <= self.dataset.num_images or loaded.epoch < 0:
            raise ValueError(f"loader state is out of range: {state}")
        self.state, self.is_resumed = loaded, True
