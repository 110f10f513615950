"""SPDL: threads around functions that let go of the GIL. Its authors are invited to mend this file.

It decodes here by simplejpeg: its own FFmpeg needs system libraries and gives other pixels.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.peers.contract import (
    Batches,
    Contest,
    OpenEpochs,
    Peer,
    Variant,
    augment,
    batch_size,
    list_items,
    make_collate,
)

ALL: tuple[Contest, ...] = ("stored", "flip", "crop", "photographs")
PEER = Peer(
    "spdl",
    (Variant("SPDL, JPEG files", ALL, None, {"threads": 2}),),
    {"convert": "it has no format of its own"},
    "its pipeline of threads around simplejpeg, which every other peer here uses",
)


def open_epochs(folder: Path, contest: Contest, encoding: str | None, threads: int) -> OpenEpochs:
    """Read, decode and augment a batch in a thread of its pipeline."""
    from spdl.pipeline import PipelineBuilder

    items = list_items(folder)
    collate = make_collate(contest, "jpeg")
    torch.set_num_threads(1)  # its threads are the parallelism

    def load(rows: torch.Tensor) -> Any:
        chosen = [items[row] for row in rows.tolist()]
        images, labels = collate([(path.read_bytes(), label) for path, label in chosen])
        return augment(images, contest), labels

    def epoch() -> Batches:
        rows = torch.randperm(len(items)).split(batch_size(contest))
        builder = PipelineBuilder().add_source(rows).pipe(load, concurrency=threads).add_sink(4)
        pipeline = builder.build(num_threads=threads)
        with pipeline.auto_stop():
            yield from pipeline

    return epoch
