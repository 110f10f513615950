"""Grain over ArrayRecord files. Its authors are invited to mend this file."""

import itertools
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
    encode,
    make_collate,
)

PEER = Peer(
    "grain",
    (
        Variant("Grain, raw", ("stored", "flip", "crop", "convert"), "raw", {"threads": 2}),
        Variant("Grain, JPEG", ("flip", "photographs", "convert"), "jpeg", {"threads": 2}),
    ),
    unlike="one record a sample, read by threads; made for JAX; "
    "conversion to JPEG copies the files and decodes none",
)


def write(items: Items, out: Path, encoding: str) -> None:
    """Write records: 4 bytes of label, then the image; uncompressed, as random reads want them."""
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(
        str(out / "train.array_record"), "group_size:1,uncompressed"
    )
    for path, label in items:
        writer.write(label.to_bytes(4, "little") + encode(path, encoding))
    writer.close()


def open_epochs(folder: Path, contest: Contest, encoding: str, threads: int) -> OpenEpochs:
    """Its index shuffle of the whole set, its threads; decoding in them."""
    import grain

    source = grain.sources.ArrayRecordDataSource([str(folder / "train.array_record")])
    collate = make_collate(contest, encoding)
    seeds = itertools.count()

    def join(records: Any) -> Any:
        return collate([(record[4:], int.from_bytes(record[:4], "little")) for record in records])

    def epoch() -> Batches:
        data = grain.MapDataset.source(source).shuffle(seed=next(seeds))
        data = data.batch(batch_size(contest), drop_remainder=False, batch_fn=list).map(join)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=4)
        for images, labels in data.to_iter_dataset(options):
            yield augment(images, contest), labels

    return epoch
