"""Metadata: what an exported file says of its network, as strings that any program can read.

From: `export`, which writes them into .safetensors, .onnx and .pt2.
To:   whoever loads these; and `runs`, which reads a .safetensors as a checkpoint.

    tinyvgg, arch, amp     plain strings; arch is "" for a network of the caller's
    class_folders          JSON, a list of K names in label order; class_words likewise, or []
    mean, std              JSON, 3 numbers each, on the 0-to-1 scale, of the normalization
    input_size             JSON, [H, W] that the network computes on
    pixels, stored_size, is_center, center_share    JSON; as in a checkpoint: the evaluation view
    weights_sha256         of the weights, by sorted name (.safetensors)
    input                  what to pass (.onnx, .pt2)
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

import tinyvgg
from tinyvgg.inference.shown import find_view_size
from tinyvgg.inference.trained import TrainedNetwork
from tinyvgg.loading.views import scaled_size

PLAIN_FIELDS = ("arch", "amp")
JSON_FIELDS = (
    *("class_folders", "class_words", "mean", "std"),
    *("pixels", "stored_size", "is_center", "center_share"),
)


def find_input_size(trained: TrainedNetwork) -> tuple[int, int]:
    """Return (H, W) of the images that a network computes on."""
    size, pixels = find_view_size(trained.preprocessing), trained.preprocessing.pixels
    return size if pixels is None else scaled_size(*size, pixels)


def describe_network(trained: TrainedNetwork) -> dict[str, str]:
    """Return what a network, its input and its output are, as strings."""
    preprocessing = trained.preprocessing
    size = find_input_size(trained)
    fields = {
        "class_folders": trained.class_folders,
        "class_words": trained.class_words,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "pixels": min(size) if preprocessing.pixels is None else preprocessing.pixels,
        "stored_size": preprocessing.stored_size,
        "is_center": preprocessing.is_center,
        "center_share": preprocessing.center_share,
        "input_size": size,
    }
    return {
        "tinyvgg": tinyvgg.__version__,
        "arch": trained.arch or "",
        "amp": preprocessing.amp,
        **{name: json.dumps(value) for name, value in fields.items()},
    }


def read_description(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return the fields of a checkpoint from such strings, as they stand there, unchecked.

    Raises:
        ValueError: one is missing, or no JSON.
    """
    fields: dict[str, Any] = {}
    for name in (*PLAIN_FIELDS, *JSON_FIELDS):
        if name not in metadata:
            raise ValueError(f"metadata has no {name!r}")
        try:
            fields[name] = metadata[name] if name in PLAIN_FIELDS else json.loads(metadata[name])
        except (ValueError, RecursionError) as error:
            raise ValueError(f"metadata {name!r} is no JSON") from error
    return {**fields, "arch": fields["arch"] or None}


def hash_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of weights, by sorted name, as hex digits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode("utf-8", "surrogatepass"))
        flat = weights[name].detach().cpu().contiguous().view(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()
