"""Where the halves meet: the on-disk format and the only code that knows its file names.

`open_dataset` is resolved when it is first asked for, so that `--help` is instant.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyvgg.shards.store import open_dataset

__all__ = ["open_dataset"]


def __getattr__(name: str) -> Any:
    if name == "open_dataset":
        from tinyvgg.shards.store import open_dataset

        return open_dataset
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
