"""Averaged weights: an exponential moving average of a network's, kept on its device.

From: `trainer`, after every step.
To:   evaluation and `best.pt`, which take the averaged network.

As `torch.optim.swa_utils.AveragedModel`, whose state it reads and writes, without a host wait: that
one counts its updates on the device, asks for the count, and copies it, every step.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn


class AveragedNetwork:
    """The moving average of a network's parameters; running statistics are copied.

    Args:
        model: the network; its present weights are the first average.
        decay: part of the average that an update keeps, 0 to 1.

    Attributes:
        module: the network with averaged weights.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module = copy.deepcopy(model)
        self.decay = decay
        self.num_updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards a network's weights; the first time it becomes them."""
        averages: list[Tensor] = list(self.module.parameters())
        weights: list[Tensor] = list(model.parameters())
        if self.num_updates == 0:
            torch._foreach_copy_(averages, weights)
        else:
            torch._foreach_lerp_(averages, weights, 1 - self.decay)
        buffers = list(self.module.buffers())
        if buffers:
            torch._foreach_copy_(buffers, list(model.buffers()))
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the state as AveragedModel has it: `n_averaged`, and names behind `module.`."""
        named = {f"module.{name}": value for name, value in self.module.state_dict().items()}
        return {"n_averaged": torch.tensor(self.num_updates), **named}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take the state of another average.

        Raises:
            KeyError, RuntimeError: it is of another network.
        """
        self.num_updates = int(state["n_averaged"])
        named = {name.removeprefix("module."): value for name, value in state.items()}
        del named["n_averaged"]
        self.module.load_state_dict(named)
