"""Download: the public TinyImageNet zip, 248,100,043 bytes, to one checked file.

From: a web server, which may cut the connection or not know how to resume.
To:   `folders`, which reads the zip as it is; nothing needs to be unpacked.

    OUT.partial   the first bytes of the file; stays when a download stops, and is resumed
    OUT.lock      held while OUT.partial is written, so that two downloads never mix
    OUT           appears by one rename, after size and MD5 were checked and the disk has it

Promises: what stands under OUT after this has the right size and MD5; an OUT that was there
before is never changed; no byte is asked for twice if the server understands `Range`.

The needed size is a constant, not what the server announces. So a login page that answers 200
is refused by its length, before it touches OUT.partial, and every cut is seen.
"""

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPResponse, InvalidURL, responses
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from tinyvgg.durable import sync_folder
from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import TINY_IMAGENET_BYTES, TINY_IMAGENET_MD5, DownloadConfig
from tinyvgg.packing.locking import hold_lock

ARCHIVE_NAME = "tiny-imagenet-200.zip"
ATTEMPTS = 5  # with pauses of 1, 2, 4 and 8 s between them
TIMEOUT_SEC = 30  # without a single byte
BLOCK_BYTES = 2**20  # at most this much is read, and lost by a kill, at once
PASSING_STATUS = (408, 429, 500, 502, 503, 504)  # worth another attempt
MIRROR = "pass --url with a mirror of the same file"


def download_archive(
    config: DownloadConfig,
    *,
    num_bytes: int = TINY_IMAGENET_BYTES,
    md5: str = TINY_IMAGENET_MD5,
    pause_sec: float = 1.0,
) -> Path:
    """Fetch the zip, or what is missing of it, and return its path.

    Args:
        config: where from and where to.
        num_bytes: size of the right file.
        md5: of the right file, 32 lower-case hexadecimal digits.
        pause_sec: before the second attempt; it doubles with each further one.

    Returns:
        The file, which may have been there before.

    Raises:
        DatasetError: OUT holds something else, the URL does not lead to the right file, the
            disk is too small, or the connection was cut too often; says what to do.
        OSError: the disk cannot be written; OUT.partial stays.
    """
    out = config.out / ARCHIVE_NAME if config.out.is_dir() else config.out
    if out.exists():
        if fault := _find_fault(out, num_bytes, md5):
            raise DatasetError(f"{out}: {fault}; remove it or choose another name")
        return out
    if not re.match("https?://", config.url, re.IGNORECASE):  # urllib would open file: too
        raise DatasetError(f"url: {config.url!r}, needed http:// or https://; {MIRROR}")
    partial = out.with_name(out.name + ".partial")
    with hold_lock(out, "tinyvgg download"):
        if _count_bytes(partial) > num_bytes:
            partial.unlink()
        _check_space(partial, num_bytes)
        _fetch(config.url, partial, num_bytes, pause_sec)
        if fault := _find_fault(partial, num_bytes, md5):
            partial.unlink()  # nobody knows which byte is wrong: there is nothing to resume
            raise DatasetError(f"{config.url}: {fault}; run the same command again or {MIRROR}")
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
        partial.replace(out)
        sync_folder(out.parent)
    return out


def _find_fault(path: Path, num_bytes: int, md5: str) -> str:
    """Say what was found and what was needed; "" for the right file."""
    found_bytes = _count_bytes(path)
    if found_bytes != num_bytes:
        return f"{found_bytes:,} bytes, needed {num_bytes:,}"
    with path.open("rb") as file:
        # MD5 is what is published; it finds damage, not malice
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return "" if found == md5 else f"MD5 {found}, needed {md5}"


def _count_bytes(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _check_space(partial: Path, num_bytes: int) -> None:
    missing_bytes = num_bytes - _count_bytes(partial)
    free_bytes = shutil.disk_usage(partial.parent).free
    if free_bytes < missing_bytes:
        found = f"{free_bytes:,} bytes free, needed {missing_bytes:,}"
        raise DatasetError(f"{partial.parent}: {found}; free some or choose another folder")


def _fetch(url: str, partial: Path, num_bytes: int, pause_sec: float) -> None:
    """Complete OUT.partial, in several attempts if need be, under a bar on stderr."""
    from rich import progress
    from rich.console import Console

    bar = progress.Progress(
        progress.BarColumn(),
        progress.DownloadColumn(),
        progress.TransferSpeedColumn(),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    # hidden until bytes come: an error before that needs no empty bar above it
    task = bar.add_task("", total=num_bytes, completed=_count_bytes(partial), visible=False)

    def show(there_bytes: int) -> None:
        bar.update(task, completed=there_bytes, visible=True)

    reason = ""
    with bar:
        for attempt in range(ATTEMPTS):
            if _count_bytes(partial) == num_bytes:
                return
            if attempt:
                time.sleep(pause_sec * 2 ** (attempt - 1))
            reason = _fetch_rest(url, partial, num_bytes, show)
    found_bytes = _count_bytes(partial)
    if found_bytes < num_bytes:
        found = f"{found_bytes:,} bytes after {ATTEMPTS} attempts ({reason}), needed {num_bytes:,}"
        raise DatasetError(f"{partial}: {found}; run the same command again to resume")


def _fetch_rest(url: str, partial: Path, num_bytes: int, show: Callable[[int], None]) -> str:
    """Ask once for the missing bytes and append what comes; return why no more came."""
    size = _count_bytes(partial)
    headers = {"User-Agent": "tinyvgg"} | ({"Range": f"bytes={size}-"} if size else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT_SEC)
    except HTTPError as error:
        error.close()
        status = f"HTTP {error.code} {responses.get(error.code, '')}"
        if error.code == 416 and size:
            partial.unlink()  # the next attempt asks for all of it
        elif error.code not in PASSING_STATUS:
            raise DatasetError(f"{url}: {status}, needed HTTP 200 OK; {MIRROR}") from error
        return status
    except (ValueError, OverflowError, InvalidURL) as error:
        raise DatasetError(f"url: {url!r}, needed a URL ({error}); {MIRROR}") from error
    except (OSError, HTTPException) as error:
        cause = error.reason if isinstance(error, URLError) else error
        reason = str(getattr(cause, "strerror", None) or cause)  # without "[Errno 111]"
        if isinstance(error, URLError) and not size:  # a wrong name or no network: do not wait
            text = f"{url}: {reason}, needed a server; check the network or {MIRROR}"
            raise DatasetError(text) from error
        return reason
    with response:
        return _append(response, url, partial, num_bytes, show)


def _append(
    response: HTTPResponse, url: str, partial: Path, num_bytes: int, show: Callable[[int], None]
) -> str:
    """Write an answer where it belongs, or start over; return why no more came."""
    start, total = _read_extent(response)
    if total not in (None, num_bytes):
        raise DatasetError(f"{url}: {total:,} bytes, needed {num_bytes:,}; {MIRROR}")
    if start not in (0, _count_bytes(partial)):
        partial.unlink(missing_ok=True)  # the next attempt asks for all of it
        return "answer to another range"
    with partial.open("ab" if start else "wb") as file:
        while file.tell() < num_bytes:
            block = b""
            with contextlib.suppress(OSError, HTTPException):  # servers differ in how they cut
                block = response.read1(min(BLOCK_BYTES, num_bytes - file.tell()))
            if not block:
                return "connection cut"
            file.write(block)
            show(file.tell())
    return ""


def _read_extent(response: HTTPResponse) -> tuple[int | None, int | None]:
    """Return the first byte of an answer and the size of the whole file, None if not said."""
    if response.status == 206:
        content_range = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", content_range)
        start, total = match.groups() if match else (None, "")
    else:
        start, total = "0", response.headers.get("Content-Length", "")
    return int(start) if start else None, int(total) if total.isdecimal() else None
