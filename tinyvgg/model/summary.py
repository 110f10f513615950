"""Summary: layers, parameters and operations of a network, counted from shapes alone.

From: `model`, run once on torch's `meta` device, which computes shapes and no numbers.
To:   `train --summary`, and the PFLOP column of a run's metrics.

Two operations per multiply-add, as `torch.utils.flop_counter` counts (a test compares). A training
image costs three forward passes, less the first layer's gradient for its input. What
`VGG_Net.compute_logits` leaves out is counted all the same: the figures compare recipes.
"""

import copy
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tinyvgg.model.vgg import build_network, compute_logits


@dataclass(frozen=True)
class LayerSummary:
    """One layer with parameters.

    Attributes:
        name: as in the state dict.
        kind: its class.
        shape: of its output, without the batch.
        num_parameters: weights and biases.
        flop: operations of a forward pass of one image; 0 for BatchNorm.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_parameters: int
    flop: int


@lru_cache
def summarize_network(
    arch: str, num_classes: int, height: int, width: int
) -> tuple[LayerSummary, ...]:
    """Return the layers of a network, in the order they are called.

    Args:
        arch: a key of `ARCHS`.
        num_classes: K.
        height: of its images, in pixels.
        width: likewise.
    """
    with torch.device("meta"):
        model = build_network(arch, num_classes).eval()
        images = torch.empty(1, 3, height, width)
    names = {module: name for name, module in model.named_modules()}
    layers: list[LayerSummary] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        del inputs
        num_parameters = sum(parameter.numel() for parameter in module.parameters())
        flop = 0
        if isinstance(module, nn.Conv2d | nn.Linear):
            flop = 2 * output.numel() * module.weight[0].numel()
        kind = type(module).__name__
        layers.append(
            LayerSummary(names[module], kind, tuple(output.shape[1:]), num_parameters, flop)
        )

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.register_forward_hook(record)
    model(images)
    return tuple(layers)


@lru_cache
def count_kept_bytes(arch: str, num_classes: int, height: int, width: int) -> int:
    """Return the bytes of activations that a backward pass keeps of one image, in float32.

    Counted by autograd's own hooks for saved tensors, on shapes alone; half types take half of it.

    Args:
        arch: a key of `ARCHS`.
        num_classes: K.
        height: of the images, in pixels.
        width: likewise.
    """
    num_images = 2  # BatchNorm trains on no less
    with torch.device("meta"):
        model = build_network(arch, num_classes).train()
        images = torch.empty(num_images, 3, height, width)
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # alive, so that no other has its address
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        compute_logits(model, images)
    return sum(storage.nbytes() for storage in kept.values()) // num_images


@dataclass(frozen=True)
class Probe:
    """What a network makes of images of one size.

    Attributes:
        num_logits: K.
        train_flop: operations that one training image costs, forward and backward.
    """

    num_logits: int
    train_flop: int


def probe_network(network: nn.Module, height: int, width: int) -> Probe | None:
    """Find out by torch's flop counter what a network is that nobody described.

    Args:
        network: gives logits, or a tuple that begins with them; it stays as it is.
        height: of the images, in pixels.
        width: likewise.

    Returns:
        None if it cannot take such images, or cannot run on the meta device.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            trial = copy.deepcopy(network).to("meta").train()
            images = torch.empty(2, 3, height, width, device="meta")  # BatchNorm needs two
            with FlopCounterMode(display=False) as counter:
                logits = compute_logits(trial, images)
                torch.autograd.backward(logits.sum())
        return Probe(logits.shape[1], counter.get_total_flops() // len(images))
    except Exception:  # somebody else's code may raise anything
        return None


def train_flop(arch: str, num_classes: int, height: int, width: int) -> int:
    """Return the operations that one training image costs, forward and backward."""
    layers = summarize_network(arch, num_classes, height, width)
    return 3 * sum(layer.flop for layer in layers) - layers[0].flop
