"""Peers: JPEG files decoded on the device in every step, by torchvision and by DALI.

Both deliver normalized batches, as the loaders do, of the first 5,000 images of DATA.
"""

import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.gpu_arms.plan import NotMeasured, Row, Setting
from benchmarks.gpu_arms.rates import Unit, measure_unit
from benchmarks.gpu_arms.real import require_data
from benchmarks.gpu_arms.steps import TINY_BATCH, target_device
from tinyvgg.training.config import REFERENCE_MEAN, REFERENCE_STD

NUM_FILES = 5000
SUFFIXES = (".jpg", ".jpeg")


def read_files(setting: Setting) -> list[bytes]:
    """Return the first JPEG files of DATA, in the order of their paths."""
    data, count = Path(require_data(setting)), setting.scale(NUM_FILES, TINY_BATCH)
    if data.is_file():
        with zipfile.ZipFile(data) as archive:
            names = [name for name in archive.namelist() if name.lower().endswith(SUFFIXES)]
            files = [archive.read(name) for name in sorted(names)[:count]]
    else:
        paths = [path for path in data.rglob("*") if path.suffix.lower() in SUFFIXES]
        files = [path.read_bytes() for path in sorted(paths)[:count]]
    if len(files) < TINY_BATCH:
        raise NotMeasured(f"DATA has {len(files)} JPEG files, a batch is {TINY_BATCH}")
    return files


def time_torchvision(setting: Setting) -> Iterator[Row]:
    """Measure decode_jpeg of a list of files, then one normalizing pass."""
    from torchvision.io import ImageReadMode, decode_jpeg

    device = target_device(setting)
    files = [torch.from_numpy(np.frombuffer(file, np.uint8).copy()) for file in read_files(setting)]
    batch_size = min(setting.scale(512, TINY_BATCH), len(files))
    mean, std = (
        255 * torch.tensor(values, device=device).view(3, 1, 1)
        for values in (REFERENCE_MEAN, REFERENCE_STD)
    )
    position = 0

    def next_images() -> Tensor:
        nonlocal position
        position = (position + batch_size) % (len(files) - batch_size + 1)
        batch = files[position : position + batch_size]
        images = torch.stack(decode_jpeg(batch, mode=ImageReadMode.RGB, device=device))
        normalized = (images.float() - mean) / std
        return normalized.to(torch.bfloat16, memory_format=torch.channels_last)

    def unit(num_steps: int) -> int:
        return sum(len(next_images()) for _ in range(num_steps))

    yield from measure_peer(setting, "torchvision decode_jpeg, normalized", unit, batch_size)


def time_dali_files(setting: Setting) -> Iterator[Row]:
    """Measure DALI's own way: read files, decode on the device, flip, normalize."""
    try:
        from nvidia.dali import Pipeline, fn, types
    except ImportError:
        raise NotMeasured("nvidia-dali is not installed") from None
    is_cuda = setting.device == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        files = read_files(setting)
        batch_size = min(setting.scale(512, TINY_BATCH), len(files))
        for number, file in enumerate(files):
            (Path(folder) / f"{number:05}.jpg").write_bytes(file)

        names = [str(path) for path in sorted(Path(folder).iterdir())]
        pipeline = Pipeline(
            batch_size=batch_size,
            num_threads=setting.scale(8, 1),
            device_id=0 if is_cuda else None,
        )
        with pipeline:
            encoded, _ = fn.readers.file(files=names, random_shuffle=True)
            images = fn.crop_mirror_normalize(
                fn.decoders.image(encoded, device="mixed" if is_cuda else "cpu"),
                dtype=types.FLOAT16,
                output_layout="HWC",
                mean=[255 * mean for mean in REFERENCE_MEAN],
                std=[255 * std for std in REFERENCE_STD],
                mirror=fn.random.coin_flip(),
            )
            pipeline.set_outputs(images)
        pipeline.build()

        def unit(num_steps: int) -> int:
            for _ in range(num_steps):
                (decoded,) = pipeline.run()
                assert len(decoded) == batch_size
            return num_steps * batch_size

        yield from measure_peer(setting, "DALI from JPEG files, normalized", unit, batch_size)


def measure_peer(setting: Setting, name: str, unit: Unit, batch_size: int) -> Iterator[Row]:
    """Yield the rate of a peer that decodes on CUDA; a CPU runs it and has none to give."""
    row = measure_unit(setting, unit, batch_size, time.perf_counter())
    setting.require_cuda()
    yield {"name": name, **row}
