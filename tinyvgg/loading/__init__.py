"""Loading: shards in, model-ready batches on the device out.

`LoaderConfig` imports no torch; `open_loader` is resolved when it is first asked for.
"""

from typing import TYPE_CHECKING, Any

from tinyvgg.loading.config import LoaderConfig

if TYPE_CHECKING:
    from tinyvgg.loading.open import open_loader

__all__ = ["LoaderConfig", "open_loader"]


def __getattr__(name: str) -> Any:
    if name == "open_loader":
        from tinyvgg.loading.open import open_loader

        return open_loader
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
