"""Summary: layers, parameters and operations of a network, counted from shapes alone.

From: `model`, run once on torch's `meta` device, which computes shapes and no numbers.
To:   `train --summary`, and the PFLOP column of a run's metrics.

Two operations per multiply-add, as `torch.utils.flop_counter` counts (a test compares). A training
image costs three forward passes, less the first layer's gradient for its input. What
`VGG_Net.compute_logits` leaves out is counted all the same: the figures compare recipes.
"""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from tinyvgg.model.vgg import build_network


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


def train_flop(arch: str, num_classes: int, height: int, width: int) -> int:
    """Return the operations that one training image costs, forward and backward."""
    layers = summarize_network(arch, num_classes, height, width)
    return 3 * sum(layer.flop for layer in layers) - layers[0].flop
