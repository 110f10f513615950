"""Decoding: the pixels that Pillow gives, for every kind of image, or the reason why not."""

import contextlib
import io
import json
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from tests.packing.odd_jpegs import ARITHMETIC, FOUR_FOUR_ONE, THREE_TO_ONE
from tinyvgg.errors import DatasetError
from tinyvgg.packing import decode as decode_module
from tinyvgg.packing.decode import FORMATS, decode_image, read_image_size
from tinyvgg.packing.tiff_errors import IS_LISTENING
from tinyvgg.shards.jpeg import MAX_PIXELS
from tinyvgg.shards.memory import MemoryBudget


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """Return an RGB image with large and small structures."""
    draws = np.random.default_rng([width, height, seed])
    coarse = Image.fromarray(draws.integers(0, 256, (8, 8, 3), np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
    noise = draws.integers(-20, 21, smooth.shape)
    return Image.fromarray(np.clip(smooth + noise, 0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes, width: int = 64, height: int = 64, *, resize: bool = False) -> np.ndarray:
    pixels = np.full((height, width, 3), 77, np.uint8)
    decode_image(data, pixels, resize=resize)
    return pixels


def pillow_pixels(data: bytes) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def rotated() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: turn by 90 degrees
    return exif


JPEGS = {
    "4:2:0": encode(picture(), "JPEG", subsampling="4:2:0"),
    "4:2:2": encode(picture(), "JPEG", subsampling="4:2:2"),
    "4:4:4": encode(picture(), "JPEG", subsampling="4:4:4"),
    "quality 5": encode(picture(), "JPEG", quality=5),
    "quality 100": encode(picture(), "JPEG", quality=100),
    "progressive": encode(picture(), "JPEG", progressive=True),
    "optimized": encode(picture(), "JPEG", optimize=True),
    "restart markers": encode(picture(), "JPEG", restart_marker_blocks=3),
    "RGB inside": encode(picture(), "JPEG", keep_rgb=True),
    "grayscale": encode(picture().convert("L"), "JPEG"),
    "progressive grayscale": encode(picture().convert("L"), "JPEG", progressive=True),
    "CMYK": encode(picture().convert("CMYK"), "JPEG"),
    "EXIF-rotated": encode(picture(), "JPEG", exif=rotated()),
    "comment and profile": encode(picture(), "JPEG", comment=b"x" * 999, icc_profile=bytes(99)),
    "4:4:1": FOUR_FOUR_ONE,
    "3 to 1": THREE_TO_ONE,
    "arithmetic": ARITHMETIC,
    "two images": encode(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]),
    "zeros behind its end": encode(picture(), "JPEG") + bytes(999),
}
PALETTE = picture().quantize(16)
OTHERS = {
    "PNG": encode(picture(), "PNG"),
    "PNG RGBA": encode(picture().convert("RGBA").rotate(30), "PNG"),
    "PNG palette": encode(PALETTE, "PNG"),
    "PNG palette, one transparent": encode(PALETTE, "PNG", transparency=3),
    "PNG palette, half transparent": encode(PALETTE, "PNG", transparency=bytes(range(0, 256, 16))),
    "PNG 4-color palette": encode(picture().quantize(4), "PNG", bits=2),
    "PNG L": encode(picture().convert("L"), "PNG"),
    "PNG LA": encode(picture().convert("LA"), "PNG"),
    "PNG 1-bit": encode(picture().convert("1"), "PNG"),
    "PNG 16-bit": encode(
        Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64) * 16), "PNG"
    ),
    "PNG EXIF-rotated": encode(picture(), "PNG", exif=rotated()),
    "BMP": encode(picture(), "BMP"),
    "BMP palette": encode(PALETTE, "BMP"),
    "BMP 1-bit": encode(picture().convert("1"), "BMP"),
    "WebP": encode(picture(), "WEBP"),
    "WebP lossless": encode(picture(), "WEBP", lossless=True),
    "WebP RGBA": encode(picture().convert("RGBA").rotate(30), "WEBP"),
    "WebP of two frames": encode(
        picture(), "WEBP", save_all=True, append_images=[picture(seed=1)], lossless=True
    ),
    "AVIF": encode(picture(), "AVIF"),
    "AVIF RGBA": encode(picture().convert("RGBA").rotate(30), "AVIF"),
    "GIF": encode(picture().quantize(64), "GIF"),
    "GIF of two frames": encode(
        PALETTE, "GIF", save_all=True, append_images=[picture(seed=1).quantize(16)]
    ),
    "TIFF": encode(picture(), "TIFF"),
    "TIFF LZW": encode(picture(), "TIFF", compression="tiff_lzw"),
    "TIFF JPEG": encode(picture(), "TIFF", compression="jpeg"),
    "TIFF 16-bit": encode(picture().convert("L").convert("I;16"), "TIFF"),
    "PPM": encode(picture(), "PPM"),
    "PGM": encode(picture().convert("L"), "PPM"),
    "PBM": encode(picture().convert("1"), "PPM"),
    "PPM as text": b"P3 64 64 255 " + b"9 " * (64 * 64 * 3),
}
ALL = {**JPEGS, **OTHERS}
ignores_warnings = pytest.mark.filterwarnings("ignore")  # Pillow's; `pack` ignores them, too


@pytest.mark.parametrize("kind", JPEGS)
def test_jpeg_pixels_equal_those_of_pillow(kind: str) -> None:
    assert np.array_equal(decode(JPEGS[kind]), pillow_pixels(JPEGS[kind]))


@ignores_warnings
@pytest.mark.parametrize("kind", OTHERS)
def test_pixels_of_other_formats_equal_those_of_pillow(kind: str) -> None:
    assert np.array_equal(decode(OTHERS[kind]), pillow_pixels(OTHERS[kind]))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WebP lossless"])
def test_lossless_images_come_back_as_they_were(kind: str) -> None:
    assert np.array_equal(decode(OTHERS[kind]), np.asarray(picture()))


@settings(deadline=None, max_examples=60)
@given(
    width=st.integers(1, 70),
    height=st.integers(1, 70),
    quality=st.integers(1, 100),
    subsampling=st.sampled_from(["4:4:4", "4:2:2", "4:2:0"]),
    progressive=st.booleans(),
    gray=st.booleans(),
)
def test_jpegs_of_any_size_and_quality_equal_pillow(
    width: int, height: int, quality: int, subsampling: str, progressive: bool, gray: bool
) -> None:
    image = picture(width, height)
    data = encode(
        image.convert("L") if gray else image,
        "JPEG",
        quality=quality,
        subsampling=subsampling,
        progressive=progressive,
    )

    assert np.array_equal(decode(data, width, height), pillow_pixels(data))


def test_exif_rotation_is_ignored() -> None:
    assert np.array_equal(decode(JPEGS["EXIF-rotated"]), decode(encode(picture(), "JPEG")))


def test_the_4_4_1_image_is_one_that_simplejpeg_has_no_name_for() -> None:
    with pytest.raises(KeyError):
        simplejpeg.decode_jpeg_header(JPEGS["4:4:1"])


def test_the_3_to_1_image_is_one_that_simplejpeg_cannot_decode() -> None:
    with pytest.raises(ValueError, match=decode_module.UNNAMED_SUBSAMPLING):
        simplejpeg.decode_jpeg(JPEGS["3 to 1"], "RGB")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP"])
@pytest.mark.parametrize(("width", "height"), [(48, 64), (64, 48), (1, 1), (500, 375)])
def test_another_size_names_both_sizes(kind: str, width: int, height: int) -> None:
    with pytest.raises(DatasetError, match=f"^{width}x{height} pixels, expected 64x64; drop it"):
        decode(encode(picture(width, height), kind))


def test_the_expected_size_is_width_by_height() -> None:
    with pytest.raises(DatasetError, match=r"^64x64 pixels, expected 32x16; "):
        decode(JPEGS["4:2:0"], width=32, height=16)


@pytest.mark.parametrize("data", [b"hello", b"\xff\xd8", b"\x89PNG\r\n\x1a\n", bytes(5000)])
def test_bytes_that_are_no_image_are_counted(data: bytes) -> None:
    with pytest.raises(DatasetError, match=f"^{len(data):,} bytes that are not an image$"):
        decode(data)


def test_an_empty_file_is_named_so() -> None:
    with pytest.raises(DatasetError, match=r"^0 bytes, expected an image$"):
        decode(b"")


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "grayscale", "CMYK", "PNG", "BMP"])
def test_an_image_cut_in_half_cannot_be_decoded(kind: str) -> None:
    data = ALL[kind]

    with pytest.raises(DatasetError, match=r"^cannot be decoded "):
        decode(data[: len(data) // 2])


def same_verdict_as_pillow(data: bytes) -> bool:
    """Tell whether an image is refused where Pillow refuses it, and equal where it does not.

    A JPEG or TIFF may be refused where Pillow overlooks what libjpeg or libtiff says of it.
    """
    expected = None
    with (
        contextlib.suppress(Exception),
        Image.open(io.BytesIO(data), formats=FORMATS) as image,
    ):
        if image.size == (64, 64):  # a damaged header may promise gigabytes
            expected = np.asarray(image.convert("RGB"))
    try:
        pixels = decode(data)
    except DatasetError as error:
        return expected is None or is_warning(data, str(error)) or data[:2] in (b"II", b"MM")
    return expected is not None and np.array_equal(pixels, expected)


def is_warning(data: bytes, reason: str) -> bool:
    return data.startswith(b"\xff\xd8") and any(
        text in reason
        for text in ("Corrupt JPEG data", "Premature end", "Invalid SOS", "unknown JFIF", "rogress")
    )


@ignores_warnings
@pytest.mark.parametrize("kind", ALL)
def test_an_image_cut_short_anywhere_is_refused_where_pillow_refuses_it(kind: str) -> None:
    data = ALL[kind]
    lengths = {*range(0, len(data), max(1, len(data) // 50)), *range(len(data) - 4, len(data))}

    assert [n for n in sorted(lengths) if not same_verdict_as_pillow(data[:n])] == []


@ignores_warnings
@pytest.mark.parametrize("kind", ALL)
def test_damaged_images_are_refused_or_decoded_as_pillow_does(kind: str) -> None:
    draws = Random(kind)
    wrong = []

    for number in range(100):
        data = bytearray(ALL[kind])
        for _ in range(draws.choice([1, 1, 3])):
            last = min(len(data), draws.choice([200, len(data)]))  # headers are short
            data[draws.randrange(last)] = draws.randrange(256)
        if not same_verdict_as_pillow(bytes(data)):
            wrong.append(number)

    assert wrong == []


def test_the_size_comes_from_the_header_as_height_and_width() -> None:
    data = encode(picture(50, 30), "JPEG")

    assert read_image_size(data) == (30, 50)
    assert read_image_size(data[:-200]) == (30, 50)


def test_the_size_of_no_image_is_an_error() -> None:
    with pytest.raises(DatasetError, match=r"^5 bytes that are not an image$"):
        read_image_size(b"hello")


def torchvision_pixels(data: bytes, side: int) -> np.ndarray:
    transform = Compose([Resize(side), CenterCrop(side)])
    return np.asarray(transform(Image.open(io.BytesIO(data)).convert("RGB")))


@pytest.mark.parametrize(
    ("width", "height"),
    [(500, 375), (375, 500), (64, 64), (65, 64), (63, 64), (64, 200), (31, 17), (1, 1), (7, 100)],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_resize_equals_torchvision_resize_and_center_crop(
    width: int, height: int, kind: str
) -> None:
    data = encode(picture(width, height), kind)

    assert np.array_equal(decode(data, resize=True), torchvision_pixels(data, 64))


@pytest.mark.parametrize(("short", "long"), [(3, 15), (3, 27), (3, 51), (15, 75), (27, 81)])
def test_resize_rounds_the_long_side_as_torchvision_does(short: int, long: int) -> None:
    for size in ((short, long), (long, short)):
        data = encode(picture(*size), "PNG")

        assert np.array_equal(decode(data, 49, 49, resize=True), torchvision_pixels(data, 49))


@settings(deadline=None, max_examples=100)
@given(width=st.integers(1, 150), height=st.integers(1, 150), side=st.integers(1, 100))
def test_resize_equals_torchvision_for_any_size(width: int, height: int, side: int) -> None:
    data = encode(picture(width, height), "BMP")

    assert np.array_equal(decode(data, side, side, resize=True), torchvision_pixels(data, side))


def test_resize_of_a_damaged_image_is_an_error() -> None:
    data = encode(picture(100, 80), "JPEG")

    with pytest.raises(DatasetError, match=r"^cannot be decoded "):
        decode(data[: len(data) // 2], resize=True)


SCAN = b"\xff\xda"


def spoil_scan(data: bytes, seed: int = 1) -> bytes:
    """Change 60 bytes of the last scan of a JPEG; libjpeg still finds its end."""
    spoilt, start = bytearray(data), data.rindex(SCAN) + 20
    draws = Random(seed)
    for position in draws.sample(range(start, len(data) - 2), min(60, len(data) - start - 2)):
        if 0xFF not in data[position - 1 : position + 1]:  # markers stay as they are
            spoilt[position] = draws.randrange(255)
    return bytes(spoilt)


DAMAGES = {
    "a spoilt scan": spoil_scan(JPEGS["4:4:4"]),
    "a spoilt scan of a grayscale image": spoil_scan(JPEGS["grayscale"]),
    "a spoilt scan of a CMYK image": spoil_scan(JPEGS["CMYK"]),
    "a spoilt scan of an RGB image": spoil_scan(JPEGS["RGB inside"]),
    "a spoilt scan of a 4:4:1 image": spoil_scan(JPEGS["4:4:1"]),
    "no mark of the end": JPEGS["optimized"][:-2],
    "bytes between two segments": JPEGS["4:2:0"].replace(b"\xff\xdb", b"\x07\x07\xff\xdb", 1),
    "a lost restart": JPEGS["restart markers"].replace(b"\xff\xd1", b"\x12\x34", 1),
    "4:4:4 said to be 4:4:1": JPEGS["4:4:4"].replace(
        b"\x01\x11\x00\x02\x11\x01\x03", b"\x01\x14\x00\x02\x11\x01\x03"
    ),
}


@pytest.mark.parametrize("resize", [False, True])
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_libjpeg_warns_of_is_damage_though_pillow_overlooks_it(
    damage: str, resize: bool
) -> None:
    data = DAMAGES[damage]
    if damage != "no mark of the end":
        pillow_pixels(data)

    with pytest.raises(DatasetError, match=r"^cannot be decoded \(Corrupt|^cannot be .*Premature"):
        decode(data, resize=resize)


def test_a_damaged_jpeg_to_be_resized_from_another_size_is_refused() -> None:
    data = spoil_scan(encode(picture(100, 80), "JPEG"))
    pillow_pixels(data)

    with pytest.raises(DatasetError, match=r"^cannot be decoded \(Corrupt JPEG data"):
        decode(data, resize=True)


TIFFS = {
    "LZW": {"compression": "tiff_lzw"},
    "deflate": {"compression": "tiff_adobe_deflate"},
    "JPEG": {"compression": "jpeg"},
    "fax": {"compression": "group4"},
}


@ignores_warnings
@pytest.mark.skipif(not IS_LISTENING, reason="NOT RUN: this Pillow does not show libtiff")
@pytest.mark.parametrize("kind", TIFFS)
def test_what_libtiff_calls_an_error_is_damage_and_is_not_printed(
    kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    image = picture().convert("1") if kind == "fax" else picture()
    good, draws, num_refused, num_forgiven = encode(image, "TIFF", **TIFFS[kind]), Random(0), 0, 0
    assert np.array_equal(decode(good), pillow_pixels(good))

    for _ in range(100):
        data = bytearray(good)
        data[draws.randrange(8, len(good) * 9 // 10)] ^= 1 << draws.randrange(8)
        try:
            decode(bytes(data))
        except DatasetError:
            num_refused += 1
            with contextlib.suppress(Exception):
                num_forgiven += len(pillow_pixels(bytes(data))) == 64

    assert num_refused > 2
    assert num_forgiven > 50 or kind != "fax"
    assert capfd.readouterr().err == ""
    assert np.array_equal(decode(good), pillow_pixels(good))


NOT_DECODED = {
    "EPS": encode(picture(), "EPS"),
    "PDF": encode(picture(), "PDF"),
    "DDS": encode(picture(), "DDS"),
    "ICO": encode(picture(), "ICO"),
    "TGA": encode(picture(), "TGA"),
    "PSD": b"8BPS\0\1" + bytes(6) + b"\0\3\0\0\0\x40\0\0\0\x40\0\x08\0\3" + bytes(9_999),
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"/>',
}


@pytest.mark.parametrize("kind", NOT_DECODED)
def test_formats_that_are_not_on_the_list_are_no_images(kind: str) -> None:
    data = NOT_DECODED[kind]

    with pytest.raises(DatasetError, match=f"^{len(data):,} bytes that are not an image$"):
        decode(data)


def test_a_postscript_image_starts_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))

    for resize in (False, True):
        with pytest.raises(DatasetError, match="not an image"):
            decode(NOT_DECODED["EPS"], resize=resize)

    assert not (tmp_path / "started").exists()


@ignores_warnings
def test_a_damaged_avif_for_which_pillow_raises_no_oserror_is_a_bad_image() -> None:
    good, raised = OTHERS["AVIF"], set()

    for start in range(150, len(good), 7):
        data = good[:start] + bytes(len(good) - start)
        try:
            pillow_pixels(data)
        except Exception as error:
            raised.add(type(error))
            with pytest.raises(DatasetError):
                decode(data)

    assert not all(issubclass(kind, OSError | ValueError | SyntaxError) for kind in raised)


def png_header(width: int, height: int) -> bytes:
    """Return a PNG of 45 bytes that declares a size, and holds no pixel."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    end = struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13)
    return start + body + struct.pack(">I", zlib.crc32(body)) + end


def declare(data: bytes, width: int, height: int) -> bytes:
    """Change the size in the frame header of a baseline JPEG."""
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


HUGE = {
    "PNG": png_header(2**20, 2**20),
    "PNG of one row": png_header(2**26, 1),
    "JPEG": declare(JPEGS["4:2:0"], 65_500, 65_500),
    "BMP": OTHERS["BMP"][:18] + struct.pack("<ii", 30_000, 30_000) + OTHERS["BMP"][26:],
    "PPM": b"P6 20000 20000 255 " + bytes(99),
    "GIF": OTHERS["GIF"][:6] + struct.pack("<HH", 60_000, 60_000) + OTHERS["GIF"][10:],
    "WebP": OTHERS["WebP RGBA"][:24] + b"\xff\x3f\0\xff\x3f\0" + OTHERS["WebP RGBA"][30:],
}


@ignores_warnings
@pytest.mark.parametrize("kind", HUGE)
def test_a_size_beyond_the_cap_is_refused_by_its_header(kind: str) -> None:
    for act in (lambda data: decode(data, resize=True), read_image_size):
        with pytest.raises(DatasetError, match=r"^[\w ,]+ pixels, expected 1 to 89,478,485, "):
            act(HUGE[kind])


def tiled_tiff(side: int) -> bytes:
    """Return a TIFF of 64 x 64 gray pixels, LZW, that declares one tile of `side` x `side`."""
    body = b"\x80\x00" * 50
    tags: tuple[tuple[int, int], ...] = (
        (256, 64),
        (257, 64),
        (258, 8),
        (259, 5),
        (262, 1),
        (277, 1),
        (322, side),
        (323, side),
    )
    tags += ((324, 8), (325, len(body)))
    fields = b"".join(struct.pack("<HHII", number, 4, 1, value) for number, value in tags)
    start = b"II*\0" + struct.pack("<I", 8 + len(body)) + body
    return start + struct.pack("<H", len(tags)) + fields + bytes(4)


@pytest.mark.parametrize("side", [9_460, 20_000, 65_520])
def test_a_small_image_cannot_declare_large_tiles(side: int) -> None:
    for act in (decode, read_image_size):
        with pytest.raises(DatasetError, match=rf"^tiles of {side * side:,} pixels, expected 1 to"):
            act(tiled_tiff(side))


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), MemoryError()])
def test_a_fault_of_the_machine_is_no_bad_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def convert(image: Image.Image, mode: str) -> Image.Image:
        raise error

    monkeypatch.setattr(Image.Image, "convert", convert)

    with pytest.raises(type(error)) as caught:
        decode(OTHERS["BMP"])

    assert caught.value is error


def test_large_images_are_decoded_at_once_only_as_far_as_memory_is_meant_for_them() -> None:
    budget = MemoryBudget(100 * 2**20)
    most, now, lock = 0, 0, threading.Lock()

    def take() -> None:
        nonlocal most, now
        for _ in range(50):
            with budget.taken(2 * 2**20, 20):  # 40 MiB: two at once
                with lock:
                    now += 1
                    most = max(most, now)
                with lock:
                    now -= 1
        with budget.taken(MAX_PIXELS, 20):  # more than there is: alone
            assert budget.free_bytes == 0

    threads = [threading.Thread(target=take) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert most <= 2
    assert budget.free_bytes == 100 * 2**20


def test_2000_mutants_are_packed_or_refused_start_nothing_and_take_little_memory() -> None:
    command = [sys.executable, "-m", "tests.packing.fuzz_decode", "2000"]

    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)

    found = json.loads(done.stdout)
    assert found["raised"] == {}
    assert found["started"] == []
    assert found["packed"] + found["refused"] == 2000
    assert min(found["packed"], found["refused"]) > 200
    assert done.stderr == ""
    assert found["taken_mib"] < 1024


def test_a_strip_that_resize_would_make_endless_is_refused() -> None:
    data = encode(Image.new("RGB", (30_000, 1)), "PNG")

    with pytest.raises(DatasetError, match="scaled to 1,920,000x64 pixels, expected at most"):
        decode(data, resize=True)
