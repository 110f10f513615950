from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset


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
