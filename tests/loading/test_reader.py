"""The reader's memory: one huge file among small ones, and damage that nothing noticed before."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from tinyvgg.errors import ShardError
from tinyvgg.loading import LoaderConfig, open_loader
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images
from tinyvgg.shards.store import open_dataset

PACK = """
import sys
from pathlib import Path
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.pack import pack_images

config = PackConfig(Path(sys.argv[1]), Path(sys.argv[2]), encoding="jpeg", workers=8)
pack_images(config, lambda split, num_images: lambda num_done: None)
print(int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024)
"""
# peak memory above what importing and opening take, in MiB
READ = """
import sys
from pathlib import Path
import torch
from tinyvgg.loading import LoaderConfig, open_loader

def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024

torch.set_num_threads(8)
config = LoaderConfig(backend="torch", batch_size=8, size=32, shuffle=False)
warm = open_loader(sys.argv[1], "val", config)
list(warm)
before = peak()
list(open_loader(sys.argv[1], "train", config))
print(peak() - before)
"""


def pack(folder: Path, train: list[bytes], val: list[bytes]) -> Path:
    for split, files in (("train", train), ("val", val)):
        (folder / "source" / split / "a").mkdir(parents=True)
        for number, data in enumerate(files):
            (folder / "source" / split / "a" / f"{number:02d}.jpg").write_bytes(data)
    config = PackConfig(source=folder / "source", out=folder / "packed", encoding="jpeg")
    pack_images(config, lambda split, num_images: lambda num_done: None)
    return folder / "packed"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="VmHWM is Linux's")
def test_huge_files_among_small_ones_take_a_gib_at_most(tmp_path: Path) -> None:
    small = simplejpeg.encode_jpeg(np.zeros((40, 50, 3), np.uint8))
    huge = simplejpeg.encode_jpeg(np.zeros((7_000, 8_500, 3), np.uint8))  # 60 megapixels
    packed = pack(tmp_path, [small, huge] * 8, [small] * 8)

    done = subprocess.run(
        [sys.executable, "-c", READ, str(packed)], capture_output=True, text=True, check=True
    )

    # 8 of 179 MiB at once would be 1,400; 11 bytes a pixel let one be decoded at a time
    assert float(done.stdout) < 450
    done = subprocess.run(
        [sys.executable, "-c", PACK, str(tmp_path / "source"), str(tmp_path / "again")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 600  # imports included


def test_a_file_that_cannot_be_decoded_is_named_with_its_image(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    data = simplejpeg.encode_jpeg(pixels)
    packed = pack(tmp_path, [data] * 6, [data])
    path = packed / "train-00000.jpeg.npy"
    stored = bytearray(path.read_bytes())
    stored[-len(data) + 700 : -len(data) + 900] = bytes(200)
    path.write_bytes(stored)

    loader = open_loader(
        open_dataset(packed), "train", LoaderConfig(backend="torch", batch_size=3, size=16)
    )

    expected = r"train-00000\.jpeg\.npy: image 5 of split 'train' cannot be decoded .*'tinyvgg ver"
    with pytest.raises(ShardError, match=expected):
        list(loader)
