"""Device decoder: on the CPU, where its decoders give libjpeg's pixels; nvJPEG's in test_gpu."""

import io
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.loading.contract import CPU, keep
from tinyvgg.errors import ShardError
from tinyvgg.loading import LoaderConfig, device_decoder, open_loader
from tinyvgg.loading.batch import PixelPass
from tinyvgg.loading.device_decoder import DeviceDecoder, find_decode, hide_exif, scale_box
from tinyvgg.loading.pinned import PinnedSource
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import PackedDataset, open_dataset

ORIENTATION, TURNED = 0x0112, 6
NUM_IMAGES = 12


@pytest.fixture(params=["torchvision", "torchcodec"])
def decoder_name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name: str = request.param
    if name == "torchcodec":
        pytest.importorskip("torchcodec.decoders", reason="torchcodec is not installed")
    else:
        monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    find_decode.cache_clear()
    yield name
    find_decode.cache_clear()


@pytest.fixture
def dataset(tmp_path: Path) -> PackedDataset:
    """JPEG files of several sizes: gray, progressive, turned by EXIF, and plain."""
    generator = np.random.default_rng(5)
    for split, count in (("train", NUM_IMAGES), ("val", 1)):
        folder = tmp_path / "source" / split / "a"
        folder.mkdir(parents=True)
        for number in range(count):
            height, width = generator.integers(30, 90, 2).tolist()
            coarse = generator.integers(0, 256, (5, 5, 3)).astype(np.uint8)
            image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
            options: dict[str, Any] = {"progressive": number % 4 == 1}
            if number % 4 == 2:
                exif = Image.Exif()
                exif[ORIENTATION] = TURNED
                options["exif"] = exif
            mode = "L" if number % 4 == 3 else "RGB"
            image.convert(mode).save(folder / f"{number:02d}.jpg", quality=92, **options)
    config = PackConfig(source=tmp_path / "source", out=tmp_path / "packed", encoding="jpeg")
    pack_images(config, lambda split, num_images: lambda num_done: None)
    return open_dataset(tmp_path / "packed")


class PromptRuntime:
    """A `Runtime` over CPU memory on which everything is done at once, in order."""

    class Stream:
        def record_event(self) -> "PromptRuntime.Stream":
            return self

        def wait_event(self, event: object) -> None:
            pass

        def synchronize(self) -> None:
            pass

    def new_stream(self) -> Stream:
        return self.Stream()

    def current_stream(self) -> Stream:
        return self.Stream()

    def on_stream(self, stream: Stream) -> AbstractContextManager[Stream]:
        return nullcontext(stream)

    def pin(self, tensor: Tensor) -> Tensor:
        return tensor

    def empty(self, *shape: int, dtype: torch.dtype) -> Tensor:
        return torch.full(shape, 99, dtype=dtype)

    def upload(self, tensor: Tensor) -> Tensor:
        return tensor.clone()


def list_boxes(dataset: PackedDataset, share: float) -> np.ndarray:
    sides = (dataset.train.sizes * share).astype(np.int32)
    return np.concatenate([(dataset.train.sizes - sides) // 2, sides], axis=1)


@pytest.mark.parametrize("max_pixels", [2**28, 5_000, 1])
def test_boxes_are_pillows_but_for_rounding(
    dataset: PackedDataset, decoder_name: str, max_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_decoder, "MAX_PIXELS", max_pixels)
    rows = np.random.default_rng(0).permutation(NUM_IMAGES)
    boxes = list_boxes(dataset, 0.8)[rows]
    out = torch.zeros((NUM_IMAGES, 24, 20, 3), dtype=torch.uint8)

    DeviceDecoder(dataset.train, CPU)(rows, boxes, out)

    for row, (top, left, height, width), found in zip(rows, boxes.tolist(), out, strict=True):
        stored, _ = dataset.train[row]
        part = Image.fromarray(stored).crop((left, top, left + width, top + height))
        expected = np.asarray(part.resize((20, 24), Image.Resampling.BILINEAR))
        difference = np.abs(found.numpy().astype(int) - expected)
        assert difference.max() <= 1, decoder_name
        assert difference.mean() < 0.2


def test_a_box_of_the_wanted_size_is_not_changed(dataset: PackedDataset, decoder_name: str) -> None:
    stored, _ = dataset.train[2]  # turned by EXIF, which is ignored
    file = torch.from_numpy(dataset.train.view_row(2).copy())

    (image,) = find_decode()([file], CPU)
    out = torch.empty((10, 12, 3), dtype=torch.uint8)
    scale_box(image, (3, 4, 10, 12), out)

    assert np.array_equal(out.numpy(), stored[3:13, 4:16])


def test_only_exif_segments_become_others() -> None:
    data = io.BytesIO()
    exif = Image.Exif()
    exif[ORIENTATION] = TURNED
    Image.new("RGB", (8, 8)).save(data, "JPEG", exif=exif, comment=b"Exif\0\0 in a comment")
    before = data.getvalue()

    after = hide_exif(torch.frombuffer(bytearray(before), dtype=torch.uint8)).numpy().tobytes()

    assert [i for i in range(len(before)) if before[i] != after[i]] == [before.index(b"Exif") - 3]
    assert ORIENTATION not in Image.open(io.BytesIO(after)).getexif()


def test_damage_is_named(dataset: PackedDataset, decoder_name: str) -> None:
    shard = next(dataset.folder.glob("train-*.jpeg.npy"))
    content = bytearray(shard.read_bytes())
    start = content.index(dataset.train.view_row(4).tobytes())
    content[start + 2 : start + 60] = bytes(58)
    dataset.train.view_row(5)  # stays as it is
    shard.write_bytes(content)
    damaged = open_dataset(dataset.folder).train
    out = torch.zeros((3, 24, 24, 3), dtype=torch.uint8)

    with pytest.raises(ShardError, match=r"train-00000\.jpeg\.npy: image 4 of split 'train' can.*"):
        DeviceDecoder(damaged, CPU)(np.array([3, 4, 5]), None, out)


def test_batches_of_the_staged_path_are_those_of_the_host(
    dataset: PackedDataset, decoder_name: str
) -> None:
    config = LoaderConfig(backend="torch", batch_size=5, size=24, seed=4)
    loader = open_loader(dataset, "train", config, dtype=torch.float32)
    expected = [keep(batch) for batch in loader.epoch(0)]
    state = open_loader(dataset, "train", config).state
    pixel_pass = PixelPass((24, 24, 3), loader.normalization, torch.float32)

    decoder = DeviceDecoder(dataset.train, CPU)
    source = PinnedSource(dataset.train, pixel_pass, CPU, PromptRuntime(), decoder)
    found = [keep(batch) for batch in source.batches(loader.plan, state, (24, 24))]

    step = 1.01 / 255 / min(loader.normalization.std)  # a level, normalized
    assert len(found) == len(expected) == 2
    for batch, other in zip(found, expected, strict=True):
        assert torch.equal(batch.ids, other.ids)
        assert torch.equal(batch.labels, other.labels)
        assert (batch.images - other.images).abs().max() <= step
