"""WebDataset: tar files of samples. Its authors are invited to mend this file."""

from pathlib import Path

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
    shuffle_items,
)

PEER = Peer(
    "webdataset",
    (
        Variant("WebDataset, raw", ("stored", "flip", "crop", "convert"), "raw", {"workers": 2}),
        Variant("WebDataset, JPEG", ("flip", "photographs", "convert"), "jpeg", {"workers": 2}),
    ),
    unlike="shuffles tar files, then a buffer of 5,000 samples: no permutation of the whole set",
)


def write(items: Items, out: Path, encoding: str) -> None:
    """Write tar files of 2,500 samples, in a drawn order, as its documentation advises."""
    import webdataset

    with webdataset.ShardWriter(f"{out}/%06d.tar", maxcount=2500, verbose=0) as sink:
        for row, (path, label) in enumerate(shuffle_items(items)):
            sink.write({"__key__": f"{row:06d}", "x": encode(path, encoding), "cls": str(label)})


def open_epochs(folder: Path, contest: Contest, encoding: str, workers: int) -> OpenEpochs:
    """Read with WebLoader's processes; decode in them, augment whole batches in this one."""
    import webdataset

    tars = sorted(map(str, folder.glob("*.tar")))
    samples = webdataset.WebDataset(tars, shardshuffle=len(tars), empty_check=False, seed=0)
    batches = (
        samples.shuffle(5000)
        .map(lambda sample: (sample["x"], int(sample["cls"])))
        .batched(batch_size(contest), collation_fn=make_collate(contest, encoding), partial=True)
    )
    loader = webdataset.WebLoader(
        batches, batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )

    def epoch() -> Batches:
        for images, labels in loader:
            yield augment(images, contest), labels

    return epoch
