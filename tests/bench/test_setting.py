import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from tests.conftest import known_images
from tinyvgg.bench.setting import Setting, choose_setting
from tinyvgg.model.vgg import check_image_size
from tinyvgg.shards.store import PackedDataset

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


def test_several_sizes_are_scaled_to_the_middle_one_and_at_most_224(pack_arrays: Pack) -> None:
    def encode(pixels: np.ndarray, number: int) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG")
        return file.getvalue()

    small = pack_arrays(
        "jpeg", known_images(4), np.arange(4) % 2, known_images(2), np.arange(2), encode=encode
    )
    assert choose_setting(small) == Setting("vgg_net", None, "crop", (64, 64))

    small.manifest.image.height = small.manifest.image.width = None  # type: ignore[assignment]
    assert choose_setting(small).shown == (64, 64)
    assert choose_setting(small).reason.startswith("images have several sizes: ")
