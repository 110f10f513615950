"""torchvision's ImageFolder and torch's DataLoader, as in PyTorch's examples, and tuned."""

from pathlib import Path

import torch

from benchmarks.peers.contract import (
    FILL,
    MEAN,
    PAD,
    PIXELS,
    STD,
    Batches,
    Contest,
    OpenEpochs,
    Peer,
    Variant,
    augment,
    data_loader,
    photograph_transform,
)

ALL: tuple[Contest, ...] = ("stored", "flip", "crop", "photographs")
PEER = Peer(
    None,
    (
        Variant("ImageFolder + DataLoader", ALL, None, {"is_tuned": False, "workers": 2}),
        Variant("ImageFolder + DataLoader, tuned", ALL, None, {"is_tuned": True, "workers": 2}),
    ),
    {"convert": "it reads the files themselves"},
    "decodes every file in every epoch",
)


def open_epochs(
    folder: Path, contest: Contest, encoding: str | None, workers: int, is_tuned: bool
) -> OpenEpochs:
    """Plain: transforms of each image. Tuned: torchvision's decoder, whole batches augmented."""
    from torchvision.datasets import ImageFolder
    from torchvision.io import ImageReadMode, decode_jpeg, read_file
    from torchvision.transforms import v2

    steps: list[torch.nn.Module] = [] if is_tuned else [v2.PILToTensor()]
    if contest == "photographs":
        steps.append(photograph_transform())
    elif not is_tuned and contest != "stored":
        steps += [v2.RandomCrop(PIXELS, PAD, fill=FILL)] if contest == "crop" else []
        steps += [v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True)]
        steps += [v2.Normalize(MEAN, STD)]

    def load(path: str) -> torch.Tensor:
        pixels: torch.Tensor = decode_jpeg(read_file(path), mode=ImageReadMode.RGB)
        return pixels

    given = {"loader": load} if is_tuned else {}
    dataset = ImageFolder(str(folder / "train"), v2.Compose(steps) if steps else None, **given)
    loader = data_loader(dataset, contest, workers, shuffle=True)

    def epoch() -> Batches:
        for images, labels in loader:
            if contest == "stored":
                yield images.permute(0, 2, 3, 1), labels
            elif is_tuned and contest != "photographs":
                yield augment(images.permute(0, 2, 3, 1).contiguous(), contest), labels
            else:
                yield images, labels

    return epoch
