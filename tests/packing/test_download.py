"""Downloads from a real server on 127.0.0.1, which can behave badly in seven ways."""

import hashlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from filelock import FileLock

from tinyvgg.errors import DatasetError
from tinyvgg.packing.config import DownloadConfig
from tinyvgg.packing.download import download_archive

BODY = random.Random(0).randbytes(200_000)
MD5 = hashlib.md5(BODY).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Serves `server.body`, whole or from where `Range` says."""

    server: "Server"

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers["Range"]
        server.ranges.append(asked)
        status = server.statuses.pop(0) if server.statuses else 200
        if status != 200:
            self.send_error(status)
            return
        start = 0
        if asked and server.knows_ranges:
            start = max(0, int(asked.removeprefix("bytes=").removesuffix("-")) + server.range_shift)
            self.send_response(206)
            last = len(server.body) - 1
            self.send_header("Content-Range", f"bytes {start}-{last}/{len(server.body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        num_sent = server.cuts.pop(0) if server.cuts else len(server.body)
        self.write_slowly(server.body[start : start + num_sent])

    def write_slowly(self, body: bytes) -> None:
        try:
            for first in range(0, len(body), 4096):
                self.wfile.write(body[first : first + 4096])
                time.sleep(self.server.pause_sec)
        except ConnectionError:  # the client was killed
            self.close_connection = True

    def log_message(self, *args: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    """What it serves, how badly, and which `Range` each request had."""

    daemon_threads = False  # closing the server waits for its answers

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/some.zip"
        self.body = BODY
        self.ranges: list[str | None] = []
        self.statuses: list[int] = []  # of the next answers
        self.cuts: list[int] = []  # bytes after which the next answers end
        self.knows_ranges = True
        self.range_shift = 0  # bytes between the start that was asked for and what is served
        self.pause_sec = 0.0  # after each 4,096 bytes


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data" / "images.zip"


@pytest.fixture
def partial(out: Path) -> Path:
    out.parent.mkdir()
    return out.with_name("images.zip.partial")


def fetch(url: str, out: Path, *, num_bytes: int = len(BODY)) -> Path:
    return download_archive(DownloadConfig(out, url), num_bytes=num_bytes, md5=MD5, pause_sec=0.001)


def test_whole_file_arrives_and_nothing_else_is_left(server: Server, out: Path) -> None:
    path = fetch(server.url, out)

    assert path == out
    assert out.read_bytes() == BODY
    assert list(out.parent.iterdir()) == [out]
    assert server.ranges == [None]


def test_folder_means_the_published_name_inside_it(server: Server, tmp_path: Path) -> None:
    path = fetch(server.url, tmp_path)

    assert path == tmp_path / "tiny-imagenet-200.zip"
    assert path.read_bytes() == BODY


def test_progress_goes_to_stderr_alone(
    server: Server, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch(server.url, out)

    captured = capsys.readouterr()
    assert captured.out == ""
    assert "200.0/200.0 kB" in captured.err


def test_cut_connection_is_resumed_with_the_missing_bytes_alone(server: Server, out: Path) -> None:
    server.cuts = [70_000, 50_000]

    fetch(server.url, out)

    assert out.read_bytes() == BODY
    assert server.ranges == [None, "bytes=70000-", "bytes=120000-"]


def test_passing_server_trouble_is_waited_out(server: Server, out: Path) -> None:
    server.statuses = [503, 429]

    fetch(server.url, out)

    assert out.read_bytes() == BODY


def test_too_many_cuts_give_one_line_and_the_same_call_resumes(server: Server, out: Path) -> None:
    server.cuts = [1_000] * 5
    text = (
        "images.zip.partial: 5,000 bytes after 5 attempts (connection cut), needed 200,000; "
        "run the same command again to resume"
    )

    with pytest.raises(DatasetError, match=re.escape(text)):
        fetch(server.url, out)

    assert [path.name for path in out.parent.iterdir()] == ["images.zip.partial"]
    fetch(server.url, out)
    assert out.read_bytes() == BODY
    assert server.ranges[5:] == ["bytes=5000-"]


def test_leftover_partial_is_resumed(server: Server, out: Path, partial: Path) -> None:
    partial.write_bytes(BODY[:123_456])

    fetch(server.url, out)

    assert out.read_bytes() == BODY
    assert server.ranges == ["bytes=123456-"]
    assert list(out.parent.iterdir()) == [out]


def test_complete_partial_needs_no_request(server: Server, out: Path, partial: Path) -> None:
    partial.write_bytes(BODY)

    fetch(server.url, out)

    assert out.read_bytes() == BODY
    assert server.ranges == []


def test_partial_that_is_too_large_is_dropped(server: Server, out: Path, partial: Path) -> None:
    partial.write_bytes(bytes(len(BODY) + 1))

    fetch(server.url, out)

    assert out.read_bytes() == BODY
    assert server.ranges == [None]


def test_server_that_ignores_ranges_gives_the_right_bytes(
    server: Server, out: Path, partial: Path
) -> None:
    partial.write_bytes(BODY[:1_000])
    server.knows_ranges = False
    server.cuts = [5_000]

    fetch(server.url, out)

    assert out.read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", "bytes=5000-"]


def test_refused_range_starts_over(server: Server, out: Path, partial: Path) -> None:
    partial.write_bytes(bytes(1_000))
    server.statuses = [416]

    fetch(server.url, out)

    assert out.read_bytes() == BODY
    assert server.ranges == ["bytes=1000-", None]


@pytest.mark.parametrize("shift", [-1_000, -1, 1])
def test_answer_to_another_range_starts_over(
    server: Server, out: Path, partial: Path, shift: int
) -> None:
    partial.write_bytes(BODY[:1_000])
    server.range_shift = shift

    fetch(server.url, out)

    assert out.read_bytes() == BODY


def test_wrong_md5_leaves_no_file(server: Server, out: Path) -> None:
    server.body = BODY[:-1] + bytes([BODY[-1] ^ 1])
    found = hashlib.md5(server.body).hexdigest()
    text = f"{server.url}: MD5 {found}, needed {MD5}; run the same command again or pass --url"

    with pytest.raises(DatasetError, match=re.escape(text)):
        fetch(server.url, out)

    assert list(out.parent.iterdir()) == []


def test_another_length_is_refused_and_the_partial_kept(
    server: Server, out: Path, partial: Path
) -> None:
    partial.write_bytes(BODY[:1_000])
    server.body = b"<html>please log in</html>"
    server.knows_ranges = False

    with pytest.raises(DatasetError, match=re.escape("some.zip: 26 bytes, needed 200,000; pass")):
        fetch(server.url, out)

    assert partial.read_bytes() == BODY[:1_000]


def test_right_file_is_not_fetched_again(server: Server, out: Path) -> None:
    fetch(server.url, out)
    server.ranges.clear()

    path = fetch(server.url, out)

    assert path == out
    assert server.ranges == []


@pytest.mark.parametrize("content", [b"mine", bytes(len(BODY))], ids=["size", "MD5"])
def test_wrong_file_is_refused_and_kept(server: Server, tmp_path: Path, content: bytes) -> None:
    out = tmp_path / "images.zip"
    out.write_bytes(content)

    with pytest.raises(DatasetError, match=r"images\.zip: .*, needed .*; remove it or choose"):
        fetch(server.url, out)

    assert out.read_bytes() == content
    assert server.ranges == []


def test_missing_page_is_one_line(server: Server, out: Path) -> None:
    server.statuses = [404]
    text = f"{server.url}: HTTP 404 Not Found, needed HTTP 200 OK; pass --url with a mirror"

    with pytest.raises(DatasetError, match=re.escape(text)):
        fetch(server.url, out)

    assert server.ranges == [None]
    assert list(out.parent.iterdir()) == []


def test_refused_connection_is_one_line(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(DatasetError, match=r"refused, needed a server; check the network or pass"):
        fetch(f"http://127.0.0.1:{port}/some.zip", out)

    assert capsys.readouterr().err.strip() == ""  # no bar without a byte


@pytest.mark.parametrize(
    "url",
    ["file:///etc/hosts", "ftp://host/a.zip", "a.zip", "http://[", "http://h:x/", "http://a b/"],
)
def test_only_web_addresses_are_opened(out: Path, url: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(f"url: {url!r}, needed ")):
        fetch(url, out)


def test_full_disk_is_found_before_the_first_request(server: Server, out: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"data: [\d,]+ bytes free, needed 1,000,000,000,000,000"
    ):
        fetch(server.url, out, num_bytes=10**18)

    assert server.ranges == []


def test_two_downloads_do_not_mix(server: Server, out: Path) -> None:
    out.parent.mkdir()

    with FileLock(out.with_name("images.zip.lock")), pytest.raises(DatasetError, match="another"):
        fetch(server.url, out)

    assert server.ranges == []


@pytest.mark.skipif(os.name != "posix", reason="kills a process with SIGKILL")
def test_killed_process_is_resumed_to_the_same_bytes(
    server: Server, out: Path, partial: Path
) -> None:
    server.pause_sec = 0.02
    code = (
        "import sys; from pathlib import Path\n"
        "from tinyvgg.packing.config import DownloadConfig\n"
        "from tinyvgg.packing.download import download_archive\n"
        "config = DownloadConfig(Path(sys.argv[1]), sys.argv[2])\n"
        "download_archive(config, num_bytes=int(sys.argv[3]), md5=sys.argv[4])\n"
    )
    command = [sys.executable, "-c", code, str(out), server.url, str(len(BODY)), MD5]

    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as child:
        while not partial.exists() or partial.stat().st_size < 50_000:
            assert child.poll() is None
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    server.pause_sec = 0.0
    left_bytes = partial.stat().st_size
    fetch(server.url, out)

    assert child.returncode == -signal.SIGKILL
    assert left_bytes < len(BODY)
    assert out.read_bytes() == BODY
    assert server.ranges == [None, f"bytes={left_bytes}-"]
    assert list(out.parent.iterdir()) == [out]
