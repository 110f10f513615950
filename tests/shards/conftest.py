from pathlib import Path

import numpy as np
import pytest

from tests.shards.damage import PackArrays, make_images


@pytest.fixture
def blocks(pack_arrays: PackArrays) -> Path:
    """Return a folder with shards of 600, 600 and 50 images: blocks of 256, 256, 88 and 50."""
    images, labels = make_images(1250), np.arange(1250) % 5
    return pack_arrays("blocks", images, labels, images[:9], labels[:9], shard_size=600).folder
