"""JPEG: shards of JPEG files and of pixels, class folders and a zip, at 64 pixels and at 224.

    python -m benchmarks.jpeg SOURCE [--work DIR] [--repeats 5] [--ffcv PYTHON]

SOURCE is what `tinyvgg pack` takes, images of 64 x 64. Photographs of 200 to 500 pixels a side are
made of its first 37 classes: scaled up, with noise of sigma 4 to 8, at quality 90. Each row has
bytes an image, images/sec and CPU seconds an image. Ceilings: a, the decoder alone, and b, the pass
behind it alone, on the same threads; together they can at best do 1 / (1 / a + 1 / b).

Before the arms run, the first batch of both formats is compared bit for bit.
"""

import argparse
import io
import itertools
import math
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.measure import Arm, Measurement, make_bar, run_benchmark
from tinyvgg.bench.windows import Work
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.loading.batch import Normalization, PixelPass
from tinyvgg.loading.host_kernel import HostKernel
from tinyvgg.loading.resize_kernel import normalize_box
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.jpeg import decode_jpeg
from tinyvgg.shards.store import Split, open_dataset

SMALL_BATCH, LARGE_BATCH = 256, 64
LARGE = 224
NUM_CLASSES, TRAIN_PER_CLASS, VAL_PER_CLASS = 37, 48, 6
PART = 32  # images that a thread of a ceiling takes at once


def make_photographs(split: Split, folder: Path, per_class: int) -> None:
    """Write class folders of photographs made of stored images; the same ones every time."""
    for label in range(NUM_CLASSES):
        for number, row in enumerate(np.flatnonzero(split.labels == label)[:per_class].tolist()):
            generator = np.random.default_rng([7, row])
            height, width = generator.integers(200, 501, 2).tolist()
            image = Image.fromarray(split[row][0]).resize((width, height), Image.Resampling.BICUBIC)
            noise = generator.normal(0, generator.uniform(4, 8), (height, width, 3))
            pixels = np.clip(np.asarray(image) + noise, 0, 255).astype(np.uint8)
            path = folder / f"{label:03d}" / f"{number:03d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path, quality=90)


def write_files(split: Split, folder: Path) -> None:
    """Write the JPEG files of a split as class folders, for readers of files."""
    for row in range(split.num_images):
        path = folder / f"{split.labels[row]:03d}" / f"{row:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.view_row(row).tobytes())


def pack(source: Path, out: Path, **options: Any) -> None:
    """Pack a source, unless it is packed already."""
    if not out.exists():
        pack_images(PackConfig(source, out, **options), lambda split, num: lambda done: None)


def prepare(source: Path, work: Path) -> None:
    """Make every set that the arms read."""
    pack(source, work / "raw64")
    pack(source, work / "jpeg64", encoding="jpeg")
    dataset = open_dataset(work / "jpeg64")
    if not (work / "files64" / "train").exists():
        write_files(dataset.train, work / "files64" / "train")
    photographs = work / "photographs"
    if not photographs.exists():
        making = work / "photographs.partial"
        shutil.rmtree(making, ignore_errors=True)
        make_photographs(dataset.train, making / "train", TRAIN_PER_CLASS)
        make_photographs(dataset.val, making / "val", VAL_PER_CLASS)
        making.rename(photographs)
    pack(photographs, work / "jpeg224", encoding="jpeg")
    pack(photographs, work / "raw256", resize=256)


def check_same_pixels(work: Path) -> None:
    """Compare raw and JPEG shards, uint8, over the whole train split."""
    config = LoaderConfig(batch_size=SMALL_BATCH)
    loaders = [
        open_loader(work / name, "train", config, dtype=torch.uint8) for name in ("raw64", "jpeg64")
    ]
    for raw, jpeg in zip(*(loader.epoch(0) for loader in loaders), strict=True):
        assert torch.equal(raw.ids, jpeg.ids)
        assert torch.equal(raw.images, jpeg.images)


def photograph_loader(packed: str, backend: Any) -> Work:
    """Shuffled batches of random boxes at 224 pixels, flipped and normalized, float32."""
    config = LoaderConfig(
        backend=backend, batch_size=LARGE_BATCH, size=LARGE, view="resized-crop", reuse_buffers=True
    )
    batches = endless(open_loader(packed, "train", config))

    def work() -> int:
        num_valid: int = next(batches).num_valid
        return num_valid

    return work


def endless(loader: Any) -> Iterator[Any]:
    """Yield epoch after epoch."""
    while True:
        yield from loader


def on_threads(function: Any, num_images: int) -> Work:
    """Return work of one round: `function(rows)` for parts of all rows, on torch's threads."""
    threads = ThreadPoolExecutor(torch.get_num_threads())
    parts = [range(i, min(i + PART, num_images)) for i in range(0, num_images, PART)]
    groups = (
        itertools.cycle(itertools.batched(parts, 16))
        if hasattr(itertools, "batched")
        else (itertools.cycle([parts[i : i + 16] for i in range(0, len(parts), 16)]))
    )

    def work() -> int:
        group = next(groups)
        for _ in threads.map(function, group):
            pass
        return sum(map(len, group))

    return work


def decoder_alone(packed: str) -> Work:
    """Ceiling a: simplejpeg over the files of a split, into memory of each thread."""
    split = open_dataset(packed).train
    largest = int(split.sizes.astype(np.int64).prod(axis=1).max()) * 3

    def decode(rows: range) -> None:
        memory = np.empty(largest, np.uint8)
        for row in rows:
            height, width = split.sizes[row].tolist()
            pixels = memory[: 3 * height * width].reshape(height, width, 3)
            decode_jpeg(split.view_row(row).data, pixels)

    return on_threads(decode, split.num_images)


def pass_alone(packed: str, size: int | None) -> Work:
    """Ceiling b: what follows decoding, over pixels that were decoded before."""
    dataset = open_dataset(packed)
    split = dataset.train
    count = min(split.num_images, 4_096 if size is None else 512)
    decoded = [np.append(split[row][0].reshape(-1), np.uint8(0)) for row in range(count)]
    shape = (size, size, 3) if size else (*split.sizes[0].tolist(), 3)
    kernel = HostKernel(PixelPass(shape, Normalization((0.5,) * 3, (0.25,) * 3), torch.float32))
    config = LoaderConfig(batch_size=1, size=size, view="resized-crop")
    planned = open_loader(dataset, "train", config).plan
    boxes = planned.view.boxes(  # type: ignore[union-attr]
        np.random.default_rng(0).integers(0, 2**64, count, np.uint64), split.sizes[:count]
    ).tolist()
    widths = split.sizes[:count, 1].tolist()
    addresses = np.array([pixels.ctypes.data for pixels in decoded])
    generator = np.random.default_rng(1)
    dy, dx = generator.integers(-4, 5, (2, count)).astype(np.int32)
    flip = generator.integers(0, 2, count).astype(np.bool_)

    def transform(rows: range) -> None:
        out = kernel.empty(len(rows))
        chosen = slice(rows.start, rows.stop)
        if size is None:
            kernel.write(addresses[chosen], dy[chosen], dx[chosen], flip[chosen], out,
                         is_augmented=True)  # fmt: skip
            return
        lines = out.view(len(rows), size, 3 * size).numpy()
        for place, row in enumerate(rows):
            normalize_box(int(addresses[row]), widths[row], *boxes[row], lines[place],
                          flip[row], kernel.scale_row, kernel.shift_row)  # fmt: skip

    work = on_threads(transform, count)
    work.keep = decoded  # type: ignore[attr-defined]
    return work


def image_folder(folders: str, num_workers: int, size: int | None) -> Work:
    """ImageFolder and DataLoader, as PyTorch's examples have them; flip and normalize, too."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    transform = transforms.Compose(
        [
            *([transforms.RandomResizedCrop(size)] if size else []),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize([0.4802, 0.4481, 0.3975], [0.2302, 0.2265, 0.2262]),
        ]
    )
    batches = endless(
        torch.utils.data.DataLoader(
            ImageFolder(str(Path(folders) / "train"), transform),
            batch_size=LARGE_BATCH if size else SMALL_BATCH,
            shuffle=True,
            num_workers=num_workers,
            drop_last=True,
            persistent_workers=num_workers > 0,
        )
    )

    def work() -> int:
        images, _ = next(batches)
        return len(images)

    return work


def dali_files(folders: str, packed: str) -> Work:
    """DALI's own file reader with the operators of the `dali` backend: box, resize, normalize."""
    from nvidia.dali import Pipeline, fn, types

    split = open_dataset(packed).train
    config = LoaderConfig(batch_size=LARGE_BATCH, size=LARGE, view="resized-crop")
    view = open_loader(packed, "train", config).plan.view
    assert view is not None
    words = np.random.default_rng(0).integers(0, 2**64, split.num_images, np.uint64)
    boxes = view.boxes(words, split.sizes)
    files = sorted(map(str, (Path(folders) / "train").glob("*/*.jpg")))
    rows = itertools.cycle(range(split.num_images // LARGE_BATCH))

    def feed() -> Iterator[Any]:
        for number in rows:
            part = boxes[number * LARGE_BATCH : (number + 1) * LARGE_BATCH]
            yield (
                np.ascontiguousarray(part[:, :2]),
                np.ascontiguousarray(part[:, 2:]),
                np.arange(LARGE_BATCH, dtype=np.int32) % 2,
            )

    count = split.num_images // LARGE_BATCH * LARGE_BATCH
    pipeline = Pipeline(LARGE_BATCH, torch.get_num_threads(), None, prefetch_queue_depth=2)
    with pipeline:
        data, _ = fn.readers.file(files=files[:count], name="files")
        first, extent, flip = fn.external_source(
            feed(), num_outputs=3, batch=True, dtype=[types.INT32] * 3, ndim=[1, 1, 0]
        )
        images = fn.decoders.image_slice(
            data, first, extent, axes=[0, 1], device="cpu", output_type=types.RGB,
            adjust_orientation=False, jpeg_fancy_upsampling=True, hw_decoder_load=0.0,
        )  # fmt: skip
        images = fn.resize(
            images, resize_x=LARGE, resize_y=LARGE, interp_type=types.INTERP_LINEAR, antialias=True
        )
        images = fn.crop_mirror_normalize(
            images, dtype=types.FLOAT, output_layout="HWC", mirror=flip,
            mean=[122.0, 114.0, 101.0], std=[70.0, 68.0, 71.0],
        )  # fmt: skip
        pipeline.set_outputs(images)
    pipeline.build()

    def work() -> int:
        (output,) = pipeline.run()
        return len(output)

    return work


def zip_loop(zip_path: str) -> Work:
    """A zip read and decoded in a loop, nothing else; the train images in a drawn order."""
    import zipfile

    archive = zipfile.ZipFile(zip_path)
    names = [name for name in archive.namelist() if name.endswith((".jpg", ".JPEG", ".jpeg"))]
    order = itertools.cycle(np.random.default_rng(0).permutation(len(names)).tolist())

    def work() -> int:
        for _ in range(SMALL_BATCH):
            Image.open(io.BytesIO(archive.read(names[next(order)]))).convert("RGB")
        return SMALL_BATCH

    return work


def ffcv_loader(beton: str, size: int | None) -> Work:
    """FFCV's JPEG mode: it re-encoded the images at quality 90, and decodes with the fast DCT."""
    from ffcv.fields.decoders import (
        IntDecoder,
        RandomResizedCropRGBImageDecoder,
        SimpleRGBImageDecoder,
    )
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    decoder = RandomResizedCropRGBImageDecoder((size, size)) if size else SimpleRGBImageDecoder()
    mean, std = np.array([122.0, 114.0, 101.0]), np.array([70.0, 68.0, 71.0])
    image = [decoder, RandomHorizontalFlip(), NormalizeImage(mean, std, np.float32)]
    image += [ToTensor(), ToTorchImage(convert_back_int16=False)]
    loader = Loader(
        beton,
        batch_size=LARGE_BATCH if size else SMALL_BATCH,
        num_workers=2,
        order=OrderOption.RANDOM,
        os_cache=True,
        drop_last=True,
        seed=0,
        pipelines={"image": image, "label": [IntDecoder(), ToTensor()]},
    )
    batches = endless(loader)

    def work() -> int:
        return len(next(batches)[0])

    return work


def write_ffcv(folders: Path, beton: Path, python: str) -> None:
    """Write FFCV's file of the train images, by FFCV's own interpreter."""
    import subprocess

    code = (
        "import sys\n"
        "from torchvision.datasets import ImageFolder\n"
        "from ffcv.fields import IntField, RGBImageField\n"
        "from ffcv.writer import DatasetWriter\n"
        "image = RGBImageField(write_mode='jpg', jpeg_quality=90)\n"
        "fields = {'image': image, 'label': IntField()}\n"
        "DatasetWriter(sys.argv[2], fields, num_workers=2).from_indexed_dataset(\n"
        "    ImageFolder(sys.argv[1]), chunksize=100)\n"
    )
    if not beton.exists():
        subprocess.run([python, "-c", code, str(folders / "train"), str(beton)], check=True)


def bytes_of(split: Split) -> float:
    """Return the bytes that an image takes on disk."""
    return sum(shard.record.image_bytes for shard in split.shards) / split.num_images


def list_arms(work: Path, source: Path, ffcv: str | None) -> list[Arm]:
    """Return all arms."""
    module, loaders = "benchmarks.jpeg", "benchmarks.loaders:tinyvgg_loader"
    small: dict[str, Any] = {"dtype": "float32", "augment": True, "batch_size": SMALL_BATCH}
    size_of = {
        name: bytes_of(open_dataset(work / name).train)
        for name in ("raw64", "jpeg64", "jpeg224", "raw256")
    }

    def arm(name: str, target: str, sizes: str | None = None, **options: Any) -> Arm:
        is_slow = "ImageFolder" in name or "zip" in name
        return Arm(
            name,
            target,
            options,
            num_windows=3 if is_slow else 5,
            max_warm_sec=4,
            bytes_per_image=size_of[sizes] if sizes else None,
        )

    arms = [
        arm("torch, raw, 64", loaders, "raw64", packed=f"{work}/raw64", backend="torch", **small),
        arm("torch, JPEG, 64", loaders, "jpeg64", packed=f"{work}/jpeg64", backend="torch",
            **small),
        arm("dali, JPEG, 64", loaders, "jpeg64", packed=f"{work}/jpeg64", backend="dali", **small),
        arm("decoder alone, 64", f"{module}:decoder_alone", "jpeg64", packed=f"{work}/jpeg64"),
        arm("pass alone, 64", f"{module}:pass_alone", "raw64", packed=f"{work}/raw64", size=None),
        arm("zip, decoded by Pillow in a loop, 64", f"{module}:zip_loop", "jpeg64",
            zip_path=str(source)) if source.suffix == ".zip" else None,
        *(arm(f"ImageFolder, {workers} workers, 64", f"{module}:image_folder", "jpeg64",
              folders=f"{work}/files64", num_workers=workers, size=None) for workers in (0, 2, 4)),
        arm("torch, JPEG, 224", f"{module}:photograph_loader", "jpeg224",
            packed=f"{work}/jpeg224", backend="torch"),
        arm("torch, raw at 256, 224", f"{module}:photograph_loader", "raw256",
            packed=f"{work}/raw256", backend="torch"),
        arm("dali, JPEG, 224", f"{module}:photograph_loader", "jpeg224",
            packed=f"{work}/jpeg224", backend="dali"),
        arm("dali, its file reader, 224", f"{module}:dali_files", "jpeg224",
            folders=f"{work}/photographs", packed=f"{work}/jpeg224"),
        arm("decoder alone, 224", f"{module}:decoder_alone", "jpeg224", packed=f"{work}/jpeg224"),
        arm("pass alone, 224", f"{module}:pass_alone", None, packed=f"{work}/jpeg224", size=LARGE),
        *(arm(f"ImageFolder, {workers} workers, 224", f"{module}:image_folder", "jpeg224",
              folders=f"{work}/photographs", num_workers=workers, size=LARGE)
          for workers in (0, 2, 4)),
    ]  # fmt: skip
    if ffcv is not None:
        for name, folders, size in (("64", "files64", None), ("224", "photographs", LARGE)):
            beton = work / f"{name}.beton"
            write_ffcv(work / folders, beton, ffcv)
            arms.append(
                Arm(
                    f"FFCV, JPEG mode, {name}",
                    f"{module}:ffcv_loader",
                    {"beton": str(beton), "size": size},
                    max_warm_sec=4,
                    python=ffcv,
                    bytes_per_image=beton.stat().st_size / (50_000 if size is None else 1_776),
                )
            )
    return [arm for arm in arms if arm is not None]


def judge(measured: dict[str, Measurement]) -> list[dict[str, Any]]:
    """Return the bars: against ceilings, DALI's own reader, ImageFolder and FFCV."""
    bars = []
    for name, of_decoder in (("64", None), ("224", 0.5)):
        ours, decoder = measured[f"torch, JPEG, {name}"], measured[f"decoder alone, {name}"]
        both = combine(f"decoder and pass, {name}", decoder, measured[f"pass alone, {name}"])
        what = f"torch over JPEG shards, {name}, over 1 / (1 / a + 1 / b)"
        bars.append(make_bar(ours, both, what, 0.9))
        if of_decoder is not None:
            bars.append(make_bar(ours, decoder, f"the same over the decoder, {name}", of_decoder))
        folders = max(
            (measured[key] for key in measured if key[:6] == "ImageF" and key.endswith(name)),
            key=lambda arm: arm.images_per_sec,
        )
        bars.append(make_bar(ours, folders, f"the same over the best ImageFolder, {name}", 3))
        if (ffcv := measured.get(f"FFCV, JPEG mode, {name}")) is not None:
            bars.append(make_bar(ours, ffcv, f"the same over FFCV's JPEG mode, {name}",
                                 1 if name == "64" else 1.3))  # fmt: skip
    ours, reader = measured["dali, JPEG, 224"], measured["dali, its file reader, 224"]
    bars.append(make_bar(ours, reader, "dali over JPEG shards over its own file reader", 0.95))
    return bars


def combine(name: str, first: Measurement, second: Measurement) -> Measurement:
    """Return the rate of one after the other on the same threads, window by window."""
    windows = [
        [1 / (1 / math.fsum(a) * len(a) + 1 / math.fsum(b) * len(b))]
        for a, b in zip(first.windows, second.windows, strict=True)
    ]
    return Measurement(Arm(name, ""), windows)


def main() -> None:
    """Prepare the sets, measure all arms and write a record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=os.path.abspath)
    parser.add_argument("--work", type=os.path.abspath, default="demo/jpeg", help="0.9 GB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--ffcv", help="interpreter that has ffcv")
    options = parser.parse_args()
    work, source = Path(options.work), Path(options.source)
    work.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    prepare(source, work)
    check_same_pixels(work)
    print(f"sets are made and equal after {time.monotonic() - started:.0f} s")
    claim = (
        f"JPEG and raw shards on a CPU device, float32: {SMALL_BATCH} images of 64 x 64 a batch, "
        f"cropped and flipped, or {LARGE_BATCH} boxes of photographs of 200 to 500 pixels "
        f"(made of the small ones: scaled up, noise of sigma 4 to 8, quality 90), scaled to {LARGE}"
        "; page cache warm"
    )
    arms = list_arms(work, source, options.ffcv)
    run_benchmark("jpeg", claim, arms, judge, options.repeats)


if __name__ == "__main__":
    main()
