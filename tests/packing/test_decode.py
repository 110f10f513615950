"""Decoding: the pixels that Pillow gives, for every kind of image, or the reason why not."""

import contextlib
import io
import random
import sys
import warnings
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize

from tinyvgg.errors import DatasetError
from tinyvgg.packing.decode import (
    CORRUPT,
    FORMATS,
    decode_image,
    read_image_size,
)


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
    "4:4:1": encode(picture(), "JPEG", subsampling="4:4:4").replace(
        b"\x01\x11\x00\x02\x11\x01\x03", b"\x01\x14\x00\x02\x11\x01\x03"
    ),
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
    "AVIF": encode(picture(), "AVIF"),
    "AVIF RGBA": encode(picture().convert("RGBA").rotate(30), "AVIF"),
    "GIF": encode(PALETTE, "GIF"),
    "GIF animated": encode(PALETTE, "GIF", save_all=True, append_images=[picture(seed=1)]),
    "TIFF": encode(picture(), "TIFF"),
    "TIFF LZW": encode(picture(), "TIFF", compression="tiff_lzw"),
    "TIFF CMYK": encode(picture().convert("CMYK"), "TIFF"),
    "PPM": encode(picture(), "PPM"),
    "PGM": encode(picture().convert("L"), "PPM"),
    "PBM": encode(picture().convert("1"), "PPM"),
    "MPO": encode(picture(), "MPO", save_all=True, append_images=[picture(seed=1)]),
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

    A JPEG may be refused beyond that: for what libjpeg warns of, and Pillow does not look at.
    """
    expected = None
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
        if image.size == (64, 64):  # a damaged header may promise gigabytes
            expected = np.asarray(image.convert("RGB"))
    try:
        pixels = decode(data)
    except DatasetError as error:
        return expected is None or any(words in str(error) for words in CORRUPT)
    return expected is not None and np.array_equal(pixels, expected)


@ignores_warnings
@pytest.mark.parametrize("kind", ALL)
def test_an_image_cut_short_anywhere_is_refused_where_pillow_refuses_it(kind: str) -> None:
    data = ALL[kind]
    lengths = {*range(0, len(data), max(1, len(data) // 50)), *range(len(data) - 4, len(data))}

    assert [n for n in sorted(lengths) if not same_verdict_as_pillow(data[:n])] == []


@ignores_warnings
@pytest.mark.parametrize("kind", ALL)
def test_damaged_images_are_refused_or_decoded_as_pillow_does(kind: str) -> None:
    draws = random.Random(kind)
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


# what Pillow opens with a decoder that starts a program, reads other files or is hardly ever used
FOREIGN = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n",
    "DDS": encode(picture(), "DDS"),
    "ICO": encode(picture(), "ICO"),
    "TGA": encode(picture(), "TGA"),
    "PCX": encode(picture(), "PCX"),
    "ICNS": encode(picture(), "ICNS"),
    "SGI": encode(picture(), "SGI"),
    "PDF": encode(picture(), "PDF"),
    "PSD": b"8BPS\x00\x01" + bytes(6) + b"\x00\x03\x00\x00\x00\x40\x00\x00\x00\x40\x00\x08\x00\x03",
}


@pytest.mark.parametrize("kind", FOREIGN)
@pytest.mark.parametrize("resize", [False, True])
def test_no_other_decoder_is_reached(kind: str, resize: bool) -> None:
    for read in (lambda data: decode(data, resize=resize), read_image_size):
        with pytest.raises(DatasetError, match=r"bytes that are not an image$"):
            read(FOREIGN[kind])


def corrupt(data: bytes, num_bytes: int = 60) -> bytes:
    """Return a JPEG whose entropy-coded data are damaged."""
    damaged, draws = bytearray(data), random.Random(1)
    start = damaged.index(b"\xff\xda") + 20
    for position in draws.sample(range(start, len(damaged) - 2), num_bytes):
        damaged[position] = draws.randrange(255)
    return bytes(damaged)


@pytest.mark.parametrize("kind", ["4:2:0", "optimized", "grayscale", "RGB inside", "CMYK"])
@pytest.mark.parametrize("resize", [False, True])
def test_a_jpeg_with_damaged_pixels_is_refused_though_pillow_decodes_it(
    kind: str, resize: bool
) -> None:
    data = corrupt(JPEGS[kind])
    assert pillow_pixels(data).shape == (64, 64, 3)

    with pytest.raises(DatasetError, match=r"^cannot be decoded \(.*Corrupt JPEG data"):
        decode(data, resize=resize)


def test_a_jpeg_that_is_only_odd_is_no_damage() -> None:
    data = JPEGS["4:2:0"]
    version = data.index(b"JFIF\0") + 5
    odd = {
        "zeros behind its end": data + bytes(999),
        "of JFIF version 9": data[:version] + b"\x09" + data[version + 1 :],
        "another image behind its end": data + JPEGS["grayscale"],
    }

    for name, image in odd.items():
        assert np.array_equal(decode(image), decode(data)), name


@ignores_warnings
@pytest.mark.parametrize("kind", ALL)
def test_resize_of_every_kind_equals_torchvision(kind: str) -> None:
    data = ALL[kind]
    if kind == "4:4:1":  # its header alone is
        return

    found = decode(data, 48, 48, resize=True)

    transform = Compose([Resize(48), CenterCrop(48)])
    assert np.array_equal(found, np.asarray(transform(Image.fromarray(pillow_pixels(data)))))


@pytest.mark.parametrize("kind", ["4:2:0", "progressive", "PPM"])
@pytest.mark.parametrize(("width", "height"), [(65_000, 65_000), (10_000, 9_000), (9_500, 9_500)])
def test_a_header_that_claims_too_many_pixels_is_refused_before_memory_is_taken(
    kind: str, width: int, height: int
) -> None:
    before, after = (64).to_bytes(2) * 2, height.to_bytes(2) + width.to_bytes(2)
    data = ALL[kind].replace(before, after, 1).replace(b"64 64", b"%d %d" % (width, height), 1)

    with warnings.catch_warnings(action="ignore"):
        for read in (lambda: decode(data, resize=True), lambda: read_image_size(data)):
            with pytest.raises(DatasetError, match=r"(expected at most|over) 89,478,485"):
                read()


def test_a_strip_that_resize_would_make_endless_is_refused() -> None:
    data = encode(Image.new("RGB", (30_000, 1)), "PNG")

    with pytest.raises(DatasetError, match="scaled to 1920000x64 pixels, expected at most"):
        decode(data, resize=True)


HEADS = [*ALL.values(), *FOREIGN.values()]


@ignores_warnings
def test_2000_mutants_are_decoded_or_refused_and_nothing_else() -> None:
    assert mutate_and_decode(2000, seed=0) > 100


def mutate_and_decode(num_mutants: int, seed: int) -> int:
    """Decode damaged images; return how many passed. Anything but a `DatasetError` is raised."""
    draws = random.Random(seed)
    started: list[str] = []
    watching = [True]
    sys.addaudithook(
        lambda event, args: (
            started.append(event)
            if watching and event in ("subprocess.Popen", "os.posix_spawn", "os.exec", "os.fork")
            else None
        )
    )
    num_passed = 0
    for _ in range(num_mutants):
        data = bytearray(draws.choice(HEADS))
        for _ in range(draws.choice([0, 1, 1, 2, 5, 50])):
            last = min(len(data), draws.choice([40, 300, len(data)]))
            data[draws.randrange(last)] = draws.randrange(256)
        if draws.random() < 0.2:
            del data[draws.randrange(len(data)) :]
        with contextlib.suppress(DatasetError):
            decode(bytes(data), resize=draws.random() < 0.5)
            num_passed += 1
    watching.clear()  # a hook stays for the life of the process
    assert started == []
    return num_passed
