"""Build: a recipe, a data set and a device to a trainer at its first step.

From: `runs`, a benchmark or a notebook.
To:   the same. Every rank builds the same weights, from the seed or the caller's network.
"""

import torch
import torch.distributed
from torch import nn

from tinyvgg.loading.open import open_loader
from tinyvgg.loading.views import choose_view, find_shown_size
from tinyvgg.model.summary import probe_network
from tinyvgg.model.vgg import Network, build_network, check_image_size, initialize_he
from tinyvgg.options import Backend
from tinyvgg.ranks import agree_on, find_rank
from tinyvgg.shards.store import PackedDataset
from tinyvgg.training.amp import AMP_DTYPES, choose_amp
from tinyvgg.training.average import AveragedNetwork
from tinyvgg.training.batch_norm import synchronize_batch_norm
from tinyvgg.training.config import (
    Recipe,
    resolve_steps,
)
from tinyvgg.training.step import (
    Transform,
)
from tinyvgg.training.trainer import Trainer


def build_model(recipe: Recipe, num_classes: int) -> Network:
    """Return the network of a recipe, on the CPU, with weights drawn from its seed."""
    torch.manual_seed(recipe.seed)
    model = build_network(recipe.arch, num_classes, recipe.dropout)
    if recipe.init == "he":
        initialize_he(model)
    return model


def list_sizes(recipe: Recipe, dataset: PackedDataset) -> list[tuple[int, int]]:
    """Return (H, W) of the images of a run: of its last epochs, when scored, of `recipe.sizes`.

    Raises:
        ValueError: the images have several sizes, and the recipe names none.
    """
    stored = dataset.manifest.image.size
    config = recipe.describe_batches(batch_size=1)
    view = choose_view(config, stored, is_augmented=recipe.augment)
    whole = find_shown_size(stored, recipe.size, view)
    plain = choose_view(config, stored, is_augmented=False)
    scored = find_shown_size(stored, recipe.size, plain)
    reduced = (min(pixels, *whole) for pixels in recipe.sizes)
    return [whole, scored, *(find_shown_size(stored, pixels, view) for pixels in reduced)]


def check_sizes(recipe: Recipe, dataset: PackedDataset) -> None:
    """Refuse images that the network cannot take, as packed or reduced to `recipe.sizes`.

    Raises:
        ValueError: they are not of a size that it takes.
    """
    for size in list_sizes(recipe, dataset):
        check_image_size(recipe.arch, *size)


def check_network(network: nn.Module, recipe: Recipe, dataset: PackedDataset) -> None:
    """Refuse a network of the caller's that cannot be trained on a data set, as far as can be told.

    Raises:
        ValueError: it gives another number of logits than there are classes, or takes the images of
            the last epochs, and not those that are scored or those of `recipe.sizes`.
    """
    whole, scored, *reduced = list_sizes(recipe, dataset)
    probe = probe_network(network, *whole)
    num_classes = len(dataset.class_names)
    if probe is None:
        return
    if probe.num_logits != num_classes:
        raise ValueError(
            f"model must give {num_classes:,} logits, one a class of {dataset.folder}, "
            f"got {probe.num_logits:,}"
        )
    if probe_network(network, *scored) is None:
        height, width = scored
        raise ValueError(
            f"model must take the whole images that are scored, cannot take {width}x{height} "
            "pixels; pass a recipe with view='center', or pack squares with --resize"
        )
    for size in reduced:
        if probe_network(network, *size) is None:
            raise ValueError(
                f"model must take the images of sizes {recipe.sizes}, cannot take {min(size)} "
                "pixels; pass a recipe with sizes=(), size_shares=()"
            )


def resolve_recipe(recipe: Recipe, dataset: PackedDataset, device: torch.device) -> Recipe:
    """Return a recipe with what depends on the data set, the device and the number of ranks."""
    _, world_size = find_rank()
    num_parts = world_size * recipe.accumulate
    return resolve_steps(recipe, device.type, dataset.train.num_images, num_parts)


def build_trainer(
    recipe: Recipe,
    dataset: PackedDataset,
    device: torch.device,
    *,
    backend: Backend = "auto",
    log_every: int = 50,
    network: nn.Module | None = None,
    transform: Transform | None = None,
) -> Trainer:
    """Build a trainer at its first step; every rank builds the same weights from the seed.

    Args:
        recipe: what to train, and how.
        dataset: to train on.
        device: of this process.
        backend: of its loader.
        log_every: steps between two readings of loss and top-1.
        network: gives logits, or a tuple that begins with them; moved to the device, and trained
            from the weights it has, the same on every rank. None: that of the recipe.
        transform: images and labels of a step to those that are trained on, on the device.

    Returns:
        The trainer, whose loader has read nothing yet; nothing was written anywhere.

    Raises:
        BackendUnavailable: the loader backend that was asked for cannot run here.
        TypeError: `transform` cannot be called.
        ValueError: the images are not of a size that the network takes, the batch size cannot be
            divided among ranks and parts, or `network` gives another number of logits.
    """
    if transform is not None and not callable(transform):
        raise TypeError(f"transform must be a function, got {type(transform).__name__}")
    if network is None:
        check_sizes(recipe, dataset)
    else:
        check_network(network, recipe, dataset)
    recipe = resolve_recipe(recipe, dataset, device)
    if device.type == "cuda":  # a run has a few shapes, each for thousands of steps
        torch.backends.cudnn.benchmark = True
    amp, amp_reason = choose_amp(device) if recipe.amp == "auto" else (recipe.amp, "")
    amp = agree_on(amp)
    compiled = recipe.compile == "on" or (recipe.compile == "auto" and device.type == "cuda")
    loader_config = recipe.describe_batches(backend=backend, reuse_buffers=True)
    dtype = AMP_DTYPES[amp]
    loader = open_loader(dataset, "train", loader_config, device=device, dtype=dtype)
    if recipe.batch_size % (loader.world_size * recipe.accumulate):
        raise ValueError(
            f"batch_size must be divisible by {loader.world_size} ranks times accumulate "
            f"{recipe.accumulate}, got {recipe.batch_size}"
        )
    torch.manual_seed(recipe.seed)
    model = build_model(recipe, len(dataset.class_names)) if network is None else network
    if recipe.sync_batch_norm and loader.world_size > 1:
        model = synchronize_batch_norm(model, device)
    model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = AveragedNetwork(model, recipe.ema_decay) if recipe.ema_decay else None
    return Trainer(
        recipe,
        dataset,
        loader,
        model,
        amp,
        device,
        compiled,
        is_own=network is not None,
        transform=transform,
        amp_reason=amp_reason,
        log_every=log_every,
        average=average,
    )
