"""tinyvgg itself, by the same contract: backends `torch`, `resident` and `dali` over its shards."""

from pathlib import Path
from typing import Any

from benchmarks.peers.contract import (
    LARGE,
    MEAN,
    PAD,
    STD,
    Batches,
    Contest,
    OpenEpochs,
    Peer,
    Variant,
    batch_size,
)

SMALL: tuple[Contest, ...] = ("stored", "flip", "crop")
PEER = Peer(
    None,
    (
        Variant("tinyvgg, torch", (*SMALL, "convert"), "raw", {"backend": "torch"}),
        Variant("tinyvgg, torch, JPEG", ("flip", "photographs", "convert"), "jpeg",
                {"backend": "torch"}),
        Variant("tinyvgg, resident", SMALL, "raw", {"backend": "resident"}),
        Variant("DALI over tinyvgg's shards", SMALL, "raw", {"backend": "dali"}),
        Variant("DALI over tinyvgg's JPEG shards", ("photographs",), "jpeg", {"backend": "dali"}),
    ),
    unlike="conversion also hashes, and syncs to the disk; buffers of batches are reused",
)  # fmt: skip


def write_folders(source: Path, out: Path, encoding: str) -> None:
    """Pack all images by the command; a tenth is called val, which the others do not have."""
    from tinyvgg.cli import main

    words = ["pack", str(source / "train"), str(out), "--overwrite", "--val-share", "0.1"]
    status = main([*words, "--encoding", "jpeg"] if encoding == "jpeg" else words)
    if status:
        raise SystemExit(status)


def open_epochs(folder: Path, contest: Contest, encoding: str, backend: Any) -> OpenEpochs:
    """Open as the README says, from Python."""
    import torch

    from tinyvgg.loading import LoaderConfig, open_loader

    options: dict[str, Any] = {"augment": contest != "stored"}
    if contest == "photographs":
        options |= {"size": LARGE, "view": "resized-crop"}
    else:
        options |= {"crop_pixels": PAD if contest == "crop" else 0}
    config = LoaderConfig(
        backend=backend, batch_size=batch_size(contest), drop_last=False, mean=MEAN, std=STD,
        reuse_buffers=True, **options,
    )  # fmt: skip
    dtype = torch.uint8 if contest == "stored" else torch.float32
    loader = open_loader(folder, "train", config, device="cpu", dtype=dtype)

    def epoch() -> Batches:
        for batch in loader:
            if batch.num_valid < len(batch.labels):  # the last one is padded
                yield batch.images[: batch.num_valid], batch.labels[: batch.num_valid]
            else:
                yield batch.images, batch.labels

    return epoch
