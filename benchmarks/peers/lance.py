"""Lance: a columnar format with random access. Its authors are invited to mend this file."""

from collections.abc import Iterator
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
    data_loader,
    encode,
    make_collate,
)

PEER = Peer(
    "lance",
    (
        Variant("Lance, raw", ("stored", "flip", "crop", "convert"), "raw", {}),
        Variant("Lance, JPEG", ("flip", "photographs", "convert"), "jpeg", {}),
    ),
    unlike="`take` of random rows; it reads by threads of its own, so no processes; "
    "conversion to JPEG copies the files and decodes none",
)


def write(items: Items, out: Path, encoding: str) -> None:
    """Write bytes and labels, 1,000 rows at a time."""
    import lance
    import pyarrow

    schema = pyarrow.schema([("x", pyarrow.binary()), ("y", pyarrow.int64())])

    def make_batches() -> Iterator[Any]:
        for start in range(0, len(items), 1000):
            part = items[start : start + 1000]
            columns = [[encode(path, encoding) for path, _ in part], [label for _, label in part]]
            yield pyarrow.record_batch(dict(zip("xy", columns, strict=True)), schema=schema)

    reader = pyarrow.RecordBatchReader.from_batches(schema, make_batches())
    lance.write_dataset(reader, str(out / "train.lance"), mode="overwrite")


class Rows:
    """A Dataset that takes whole batches."""

    def __init__(self, path: str) -> None:
        import lance

        self.data = lance.dataset(path)

    def __len__(self) -> int:
        num_rows: int = self.data.count_rows()
        return num_rows

    def __getitems__(self, rows: list[int]) -> Any:
        table = self.data.take(rows)
        return list(zip((x.as_buffer() for x in table["x"]), table["y"].to_pylist(), strict=True))


def open_epochs(folder: Path, contest: Contest, encoding: str) -> OpenEpochs:
    """DataLoader over `take`."""
    loader = data_loader(
        Rows(str(folder / "train.lance")),
        contest,
        0,
        shuffle=True,
        collate_fn=make_collate(contest, encoding),
    )

    def epoch() -> Batches:
        for images, labels in loader:
            yield augment(images, contest), labels

    return epoch
