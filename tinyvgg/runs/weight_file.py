"""Weight files: a .safetensors that `tinyvgg export` wrote, read as a checkpoint.

From: `inference.export`, or anybody, so it is checked like a checkpoint.
To:   `networks`, which builds the network.
"""

from pathlib import Path

import torch
from torch import Tensor

from tinyvgg.errors import CheckpointError
from tinyvgg.inference.metadata import hash_weights, read_description
from tinyvgg.runs.checkpoint import Checkpoint, check_fields

SUFFIX = ".safetensors"


def read_weight_file(path: Path, device: torch.device | str = "cpu") -> Checkpoint:
    """Read weights and what they are.

    Args:
        path: of the file.
        device: where the weights go.

    Returns:
        The network; no step and no history.

    Raises:
        CheckpointError: missing, damaged, not one that `tinyvgg export` wrote, or a field is not
            what it must be.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; run 'tinyvgg export' first")
    weights: dict[str, Tensor]
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged or not a .safetensors ({type(error).__name__}); export it again"
        ) from error
    try:
        fields = read_description(metadata)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: not one that tinyvgg wrote ({error}); use 'tinyvgg export'"
        ) from error
    if metadata.get("weights_sha256") != hash_weights(weights):
        raise CheckpointError(
            f"{path}: weights are not those of its weights_sha256; copy or export it again"
        )
    fields["model"] = {name: tensor.to(device, copy=True) for name, tensor in weights.items()}
    return check_fields(path, Checkpoint, fields)
