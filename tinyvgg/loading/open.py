"""Open: a data set, a split and a config to the loader that follows the plan.

From: `shards.store.open_dataset` and a `LoaderConfig`.
To:   `training` and `inference`, which see a `Loader` and no backend.

`auto` picks a backend and says why in one line, through the logger "tinyvgg". A backend that
was asked for by name and cannot run is an error.
"""

import importlib.util
import logging
import os
from collections.abc import Callable

import numpy as np
import torch

from tinyvgg.errors import BackendUnavailable, ShardError
from tinyvgg.loading.batch import DTYPES, BatchSource, Normalization, PixelPass, channel_triple
from tinyvgg.loading.config import LoaderConfig
from tinyvgg.loading.host_memory import find_free_memory
from tinyvgg.loading.loader import Loader
from tinyvgg.loading.pinned import PinnedSource
from tinyvgg.loading.resident import ResidentSource
from tinyvgg.loading.views import View, choose_view, find_shown_size
from tinyvgg.ranks import find_rank
from tinyvgg.shards.store import PackedDataset, Split, open_dataset

logger = logging.getLogger("tinyvgg")

DALI_BATCHES = 3  # that it decodes ahead (`dali_graphs.PREFETCH`), and the one that is trained on
SPARE_BYTES = 2 * 2**30  # left free on the device for network and activations


def open_loader(
    dataset: PackedDataset | str | os.PathLike[str],
    split: str,
    config: LoaderConfig | None = None,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Loader:
    """Open one split of a data set for reading.

    Rank and world size come from `torch.distributed` where it is initialized.

    Args:
        dataset: from `open_dataset`, or the folder that it opens.
        split: "train" or "val".
        config: batch size, seed, backend and so on; the defaults if None.
        device: where batches go.
        dtype: of the images: float32, bfloat16, float16 (normalized), or uint8 (as stored).

    Returns:
        The loader; of pixels it has read none (`resident`: all). It has threads while an epoch is
        read, those of `dali` until it is dropped, and no processes.

    Raises:
        TypeError: `dataset` is neither.
        ValueError: a parameter that no loader can follow.
        BackendUnavailable: the device, or the backend that `config` names, cannot be used here.
        ShardError: the split is empty, or the folder holds no data set.
    """
    config = config or LoaderConfig()
    dataset = open_given(dataset)
    opened = dataset.split(split)
    target = _find_device(torch.device(device))
    if dtype not in DTYPES:
        names = ", ".join(str(known).removeprefix("torch.") for known in DTYPES)
        raise ValueError(f"dtype must be one of {names}, got {dtype}")
    if opened.num_images == 0:
        raise ShardError(f"{dataset.folder}: split {split!r} has no images; pack it again")
    record = dataset.manifest.splits.train
    normalization = Normalization(
        channel_triple(config.mean or record.mean),
        # a channel without variation is centered and left as it is
        channel_triple(config.std or [value or 1.0 for value in record.std]),
    )
    stored = dataset.manifest.image.size
    augment = split == "train" if config.augment is None else config.augment
    view = choose_view(config, stored, is_augmented=augment)
    shown = stored if stored and view is None else find_shown_size(stored, config.size, view)
    shape = (*shown, 3)
    pixel_pass = PixelPass(shape, normalization, dtype, config.reuse_buffers)
    backend: str = config.backend
    batch_bytes = count_batch_bytes(opened, config.batch_size, view)
    if backend == "auto":
        backend, reason = choose_backend(
            opened, target, is_whole=view is None, batch_bytes=batch_bytes
        )
        logger.info("backend %s for split %s: %s", backend, split, reason)
    elif backend == "dali":
        _check_dali(opened, batch_bytes, target)
    elif backend == "resident":
        _check_resident(opened, target)
        if opened.is_jpeg:
            needed = _gib(count_pixel_bytes(opened))
            logger.info("backend resident for split %s: decodes it once, to %s", split, needed)
    source_class = _find_source(backend)
    source = source_class(opened, pixel_pass, target)
    return Loader(
        opened,
        config,
        source,
        backend,
        normalization,
        dataset.manifest_sha256,
        stored,
        view,
    )


def open_given(dataset: PackedDataset | str | os.PathLike[str]) -> PackedDataset:
    """Return a data set as it is, or open the folder that it is given as.

    Raises:
        TypeError: it is neither.
        ShardError: the folder holds no data set.
    """
    if isinstance(dataset, str | os.PathLike):
        dataset = open_dataset(dataset)
    if not isinstance(dataset, PackedDataset):
        raise TypeError(
            "dataset must be a packed folder or what open_dataset returns, "
            f"got {type(dataset).__name__}"
        )
    return dataset


def count_batch_bytes(split: Split, batch_size: int, view: View | None) -> int:
    """Return the bytes of decoded images that `dali` may hold at once for a view; else 0.

    It decodes a batch as a whole, or its boxes at least, and prepares `DALI_BATCHES` ahead: as many
    of the largest images as there are in a batch, whatever the plan draws.
    """
    if view is None:
        return 0
    _, world_size = find_rank()
    sides = split.sizes.astype(np.int64)
    largest = np.sort(sides.min(axis=1) ** 2 if view.kind == "center" else sides.prod(axis=1))
    return int(3 * DALI_BATCHES * largest[-(batch_size // world_size) :].sum())


def choose_backend(
    split: Split, device: torch.device, *, is_whole: bool = True, batch_bytes: int = 0
) -> tuple[str, str]:
    """Return the backend that `auto` means for a split on a device, and why."""
    work = "decodes JPEG files" if split.is_jpeg else "cuts boxes out"
    if device.type == "cpu":
        if split.is_jpeg or not is_whole:
            return "torch", f"on a CPU it {work} with every core"
        return "torch", "on a CPU it reads the mapped shards without a copy"
    if device.type != "cuda":
        return "torch", f"the only one for {device.type}"
    if importlib.util.find_spec("nvidia") and importlib.util.find_spec("nvidia.dali"):
        if batch_bytes + SPARE_BYTES <= _free_bytes(device):
            return "dali", "NVIDIA DALI is installed"
        return "torch", f"dali may need {_gib(batch_bytes)} for a batch of the largest images"
    if not is_whole:
        return "torch", f"nvidia-dali is not installed; it {work} with every core"
    needed, free = count_pixel_bytes(split), _free_bytes(device)
    if needed + SPARE_BYTES <= free:
        reason = f"nvidia-dali is not installed; {_gib(needed)} fit into {_gib(free)} free"
        return "resident", f"{reason} on {device}"
    reason = f"nvidia-dali is not installed; resident needs {_gib(needed + SPARE_BYTES)}"
    return "torch", f"{reason} on {device}, {_gib(free)} is free"


def _find_source(backend: str) -> Callable[..., BatchSource]:
    """Return the class of a backend; DALI is loaded only if it is used."""
    if backend == "dali":
        from tinyvgg.loading.dali import DaliSource

        return DaliSource
    return PinnedSource if backend == "torch" else ResidentSource


def _find_device(device: torch.device) -> torch.device:
    """Return the device with its number, "cuda:0" for "cuda"."""
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:  # no driver, or a torch built without it
        raise BackendUnavailable(
            f"device '{device}': torch {torch.__version__} finds none on this machine; "
            "pass device='cpu'"
        ) from error


def _check_resident(split: Split, device: torch.device) -> None:
    """Raise `BackendUnavailable` unless the split's pixels fit into the memory of the device."""
    needed, free = count_pixel_bytes(split), _free_bytes(device)
    if needed > free:
        raise BackendUnavailable(
            f"backend 'resident' needs {_gib(needed)} on {device} for split {split.name!r}, "
            f"{_free_text(device, free)}; use --backend torch"
        )


def _check_dali(split: Split, batch_bytes: int, device: torch.device) -> None:
    """Raise `BackendUnavailable` unless a batch of the largest images fits into free memory."""
    free = _free_bytes(device)
    if batch_bytes > free:
        raise BackendUnavailable(
            f"backend 'dali' may need {_gib(batch_bytes)} for a batch of the largest images of "
            f"split {split.name!r}, {_free_text(device, free)}; use --backend torch, or smaller "
            "batches"
        )


def count_pixel_bytes(split: Split) -> int:
    """Return the bytes of a split's pixels, decoded."""
    return 3 * int(split.sizes.astype(np.int64).prod(axis=1).sum())


def _free_bytes(device: torch.device) -> int:
    """Return what is free on a CUDA device; elsewhere half of what is free on the host."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return find_free_memory() // 2


def _free_text(device: torch.device, free: int) -> str:
    if device.type == "cuda":
        return f"{_gib(free)} is free"
    return f"{_gib(free)} may be used, half of the host memory that is free"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
