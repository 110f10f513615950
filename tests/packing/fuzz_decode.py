"""Fuzz `decode_image`: mutated images of every format, and heads of formats that are not decoded.

`python -m tests.packing.fuzz_decode NUM_MUTANTS [SEED]` prints one JSON object: how many mutants
were packed and refused, what else was raised, what was started, and how much memory was taken.
"""

import collections
import faulthandler
import io
import json
import random
import resource
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from tests.packing.odd_jpegs import ARITHMETIC, FOUR_FOUR_ONE, THREE_TO_ONE
from tinyvgg.errors import DatasetError
from tinyvgg.packing.decode import decode_image, read_image_size

STARTS = {"subprocess.Popen", "os.system", "os.fork", "os.posix_spawn", "os.exec", "os.startfile"}


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def make_seeds() -> list[bytes]:
    """Return undamaged images of every format, and heads of others, 64 x 64 pixels."""
    draws = np.random.default_rng(0)
    coarse = Image.fromarray(draws.integers(0, 256, (16, 16, 3), np.uint8))
    image = coarse.resize((64, 64), Image.Resampling.BICUBIC)
    palette, gray, alpha = image.quantize(16), image.convert("L"), image.convert("RGBA")
    frames = {"save_all": True, "append_images": [image.rotate(90)]}
    return [
        *(encode(image, "JPEG", subsampling=kind) for kind in ("4:2:0", "4:4:4")),
        encode(image, "JPEG", progressive=True),
        encode(image, "JPEG", restart_marker_blocks=3),
        encode(image.convert("CMYK"), "JPEG"),
        encode(image, "MPO", **frames),
        *(ARITHMETIC, FOUR_FOUR_ONE, THREE_TO_ONE),
        *(encode(kind, "PNG") for kind in (image, palette, gray, alpha, image.convert("1"))),
        encode(image, "PNG", **frames),
        *(encode(kind, "BMP") for kind in (image, palette, gray)),
        *(encode(image, "WEBP", lossless=lossless) for lossless in (True, False)),
        encode(alpha, "WEBP", **frames),
        *(encode(kind, "GIF") for kind in (palette, gray)),
        encode(palette, "GIF", **frames),
        *(encode(image, "TIFF", compression=kind) for kind in ("raw", "tiff_lzw", "jpeg")),
        encode(gray.convert("1"), "TIFF", compression="group4"),
        *(encode(kind, "AVIF") for kind in (image, alpha)),
        *(encode(kind, "PPM") for kind in (image, gray, gray.convert("1"))),
        b"P3 64 64 255 " + b"9 " * 12_288,
        *(encode(image, kind) for kind in ("EPS", "DDS", "ICO", "TGA", "PCX", "SGI", "PDF")),
        b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x40\0\0\0\x40\0\x08\0\3" + bytes(9_999),
    ]


def mutate(seeds: list[bytes], draws: random.Random) -> bytes:
    """Return a seed with one to three changes, most of them near its head."""
    data = bytearray(draws.choice(seeds))
    for _ in range(draws.choice([1, 1, 2, 3])):
        near = min(len(data), draws.choice([32, 200, 1000, len(data)]))
        start = draws.randrange(near) if near else 0
        part = slice(start, start + draws.choice([1, 2, 4, 8, 300]))
        match draws.randrange(7):
            case 0 | 1:
                data[start : start + 1] = bytes([draws.randrange(256)])
            case 2:
                data[part] = bytes(len(data[part]))
            case 3:
                data[part] = b"\xff" * len(data[part])
            case 4:
                data[part] = draws.randbytes(len(data[part]))
            case 5:
                del data[part]
            case 6:
                del data[draws.randrange(len(data) + 1) :]
    return bytes(data)


def read_peak_kib() -> int:
    """Return the most memory this process took; ru_maxrss would count its parent's, too."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def fuzz(num_mutants: int, seed: int = 0) -> dict[str, Any]:
    """Decode mutants, one in eight with `resize`; return what came of them."""
    seeds, draws = make_seeds(), random.Random(seed)
    started: list[str] = []
    sys.addaudithook(lambda event, args: started.append(event) if event in STARTS else None)
    pixels = np.empty((64, 64, 3), np.uint8)
    counts: collections.Counter[str] = collections.Counter()
    surprises: dict[str, str] = {}
    decode_image(seeds[0], pixels)
    before = read_peak_kib()
    for number in range(num_mutants):
        data = mutate(seeds, draws)
        try:
            if number % 8 == 7:
                read_image_size(data)
            decode_image(data, pixels, resize=number % 8 == 0)
            counts["packed"] += 1
        except DatasetError:
            counts["refused"] += 1
        except BaseException as error:
            counts["surprises"] += 1
            surprises[f"{type(error).__name__}: {error}"] = data[:2000].hex()
    taken_mib = (read_peak_kib() - before) // 1024
    return {**counts, "raised": surprises, "started": started, "taken_mib": taken_mib}


if __name__ == "__main__":
    faulthandler.enable()
    warnings.simplefilter("ignore")
    print(json.dumps(fuzz(*map(int, sys.argv[1:]))))
