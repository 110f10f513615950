"""MosaicML Streaming: MDS files. Its authors are invited to mend this file."""

from pathlib import Path
from typing import Any

from benchmarks.peers.contract import (
    Batches,
    Contest,
    Items,
    OpenEpochs,
    Peer,
    Variant,
    augment,
    batch_size,
    data_loader,
    encode,
    make_collate,
)

PEER = Peer(
    "streaming",
    (
        Variant("Streaming, raw", ("stored", "flip", "crop", "convert"), "raw", {"workers": 2}),
        Variant("Streaming, JPEG", ("flip", "photographs", "convert"), "jpeg", {"workers": 2}),
    ),
    unlike="made for data in a cloud; one Python call a sample",
)


def write(items: Items, out: Path, encoding: str) -> None:
    """Write bytes and a number; it has one process."""
    from streaming import MDSWriter

    with MDSWriter(out=str(out), columns={"x": "bytes", "y": "int"}, exist_ok=True) as writer:
        for path, label in items:
            writer.write({"x": encode(path, encoding), "y": label})


def open_epochs(folder: Path, contest: Contest, encoding: str, workers: int) -> OpenEpochs:
    """Its own shuffle (py1e, the default), DataLoader's processes."""
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()  # of a process that was killed: it refuses to start otherwise
    size = batch_size(contest)
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=size, num_canonical_nodes=1)
    collate = make_collate(contest, encoding)

    def join(samples: list[dict[str, Any]]) -> Any:
        return collate([(sample["x"], sample["y"]) for sample in samples])

    loader = data_loader(data, contest, workers, collate_fn=join)

    def epoch() -> Batches:
        for images, labels in loader:
            yield augment(images, contest), labels

    return epoch
