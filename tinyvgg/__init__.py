"""tinyvgg: TinyImageNet and VGG at the speed of the accelerator, not of the JPEG decoder.

    import tinyvgg

    data = tinyvgg.open_dataset("packed")
    run = tinyvgg.fit(data, tinyvgg.Recipe.named("fast", epochs=3))
    print(run.best, tinyvgg.evaluate(run.model, data).top1)

packing -> shards -> loading -> training -> inference -> runs -> reporting, with `model` beside
them and the command line in `cli`. The left half writes uint8 shards and never imports torch; the
right half turns shards into a trained network. README.md draws the whole of it.

The names below are imported when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

from tinyvgg.errors import (
    BackendUnavailable,
    CheckpointError,
    DatasetError,
    DivergedError,
    RankError,
    ShardError,
    TinyvggError,
)

if TYPE_CHECKING:
    from tinyvgg.inference.evaluate import evaluate
    from tinyvgg.loading.config import LoaderConfig
    from tinyvgg.loading.open import open_loader
    from tinyvgg.model.vgg import VGG_Net
    from tinyvgg.runs.config import RunOptions
    from tinyvgg.runs.fit import Callback, fit
    from tinyvgg.runs.networks import load
    from tinyvgg.shards.store import open_dataset
    from tinyvgg.training.config import Recipe

__version__ = "0.2.0"
__all__ = [
    "BackendUnavailable",
    "Callback",
    "CheckpointError",
    "DatasetError",
    "DivergedError",
    "LoaderConfig",
    "RankError",
    "Recipe",
    "RunOptions",
    "ShardError",
    "TinyvggError",
    "VGG_Net",
    "evaluate",
    "fit",
    "load",
    "open_dataset",
    "open_loader",
]

_HOMES = {
    "Callback": "tinyvgg.runs.fit",
    "LoaderConfig": "tinyvgg.loading.config",
    "Recipe": "tinyvgg.training.config",
    "RunOptions": "tinyvgg.runs.config",
    "VGG_Net": "tinyvgg.model.vgg",
    "evaluate": "tinyvgg.inference.evaluate",
    "fit": "tinyvgg.runs.fit",
    "load": "tinyvgg.runs.networks",
    "open_dataset": "tinyvgg.shards.store",
    "open_loader": "tinyvgg.loading.open",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
