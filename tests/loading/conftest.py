from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from tests.conftest import known_images, write_packed
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset


@pytest.fixture(params=["raw", "jpeg"])
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> PackedDataset:
    """33 train images in shards of 10 and 7 val images, 3 classes; label = id mod 3."""
    train, val = known_images(33), known_images(7)
    arrays = (train, np.arange(33) % 3, val, np.arange(7) % 3)
    encode = None if request.param == "raw" else encode_gray
    return open_dataset(write_packed(tmp_path / "packed", *arrays, encode=encode))


def encode_gray(pixels: np.ndarray, number: int) -> bytes:
    """Return a gray JPEG file whose first pixel says which image it is, exactly."""
    gray = np.ascontiguousarray(pixels[:, :, 1:2])
    gray[:8, :8] = number  # a flat block is only its mean, which quality 100 keeps
    data: bytes = simplejpeg.encode_jpeg(gray, 100, "GRAY", "Gray")
    return data


@pytest.fixture(scope="session")
def real_dataset(
    real_images: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PackedDataset]:
    out = tmp_path_factory.mktemp("real") / "packed"
    pack_images(PackConfig(source=real_images, out=out), lambda split, num: lambda done: None)
    yield open_dataset(out)
    for path in out.iterdir():  # 0.6 GB that pytest would keep for three runs
        path.unlink()


@pytest.fixture
def three_threads() -> Iterator[None]:
    """Let the host kernel have threads to leave behind, whatever the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)
