from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import known_images
from tinyvgg.bench.setting import Setting, choose_setting
from tinyvgg.model.vgg import check_image_size
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset

Pack = Callable[..., PackedDataset]


def pack_size(pack_arrays: Pack, height: int, width: int) -> PackedDataset:
    images, labels = known_images(4, height, width), np.arange(4) % 2
    return pack_arrays("sized", images, labels, images[:2], labels[:2])


@pytest.mark.parametrize(
    ("height", "width", "arch", "size", "shown"),
    [
        (64, 64, "vgg_net", None, (64, 64)),
        (48, 95, "vgg_net", None, (48, 95)),
        (32, 32, "vgg11", None, (32, 32)),
        (96, 128, "vgg11", None, (96, 128)),
        (28, 28, "vgg11", 32, (32, 32)),
        (100, 600, "vgg11", 224, (224, 224)),
    ],
)
def test_images_get_a_network_that_takes_them_and_a_line_where_it_is_another(
    height: int, width: int, arch: str, size: int | None, shown: tuple[int, int], pack_arrays: Pack
) -> None:
    setting = choose_setting(pack_size(pack_arrays, height, width))

    assert (setting.arch, setting.size, setting.shown) == (arch, size, shown)
    check_image_size(setting.arch, *setting.shown)
    assert bool(setting.reason) == (arch != "vgg_net")
    assert "--" not in setting.reason


@pytest.mark.parametrize(("sizes", "size"), [((100, 120, 140), 120), ((300, 400, 900), 224)])
def test_several_sizes_are_scaled_to_the_middle_one_and_at_most_224(
    sizes: tuple[int, ...], size: int, class_folders: Path, tmp_path: Path
) -> None:
    for number, path in enumerate(sorted(class_folders.rglob("*.JPEG"))):
        side = sizes[number % 3]
        Image.open(path).resize((side + 20, side)).save(path, "JPEG")
    config = PackConfig(class_folders, tmp_path / "made", encoding="jpeg")
    pack_images(config, lambda split, num_images: lambda num_done: None)

    setting = choose_setting(open_dataset(config.out))

    reason = f"images have several sizes: boxes of them scaled to {size}x{size}, vgg11"
    assert setting == Setting("vgg11", size, "resized-crop", (size, size), reason)
