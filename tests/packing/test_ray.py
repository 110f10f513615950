"""Ray: the same bytes from a cluster, also where a node or the process that packs is killed."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.packing.kills import write_jpegs
from tests.packing.sources import contents, pack
from tinyvgg.errors import BackendUnavailable

HAS_RAY = getattr(find_spec("ray"), "origin", None) is not None
needs_ray = pytest.mark.skipif(not HAS_RAY, reason="NOT RUN: ray is not installed")
REPOSITORY = Path(__file__).parents[2]


def isolate(*command: object, timeout: int) -> "subprocess.CompletedProcess[str]":
    """Run a command where there is no network but loopback; skip where that is not permitted."""
    if shutil.which("unshare") is None or shutil.which("ip") is None:
        pytest.skip("NOT RUN: no unshare or ip command")
    probe = subprocess.run(
        ["unshare", "--net", "true"], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        pytest.skip(f"NOT RUN: {probe.stderr.strip()}")
    words = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    return subprocess.run(
        [*words, *map(str, command)],
        capture_output=True, text=True, timeout=timeout, cwd=REPOSITORY, check=False,
    )  # fmt: skip


@pytest.mark.skipif(HAS_RAY, reason="NOT RUN: ray is installed")
def test_without_ray_one_line_says_what_to_install(
    source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ray").mkdir()  # no package
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(BackendUnavailable, match=r"engine 'ray' needs ray, which is not installed"):
        pack(source, out, engine="ray")

    assert list(out.parent.iterdir()) == []


@needs_ray
@pytest.mark.long
@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_a_cluster_of_its_own_gives_the_bytes_of_threads(
    tmp_path: Path, out: Path, encoding: str
) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=30, val=9)
    (source / "train/bee/002.jpg").write_bytes(b"\xff\xd8 no image")
    options: dict[str, Any] = {"shard_size": 4, "encoding": encoding, "on_bad": "skip"}
    pack(source, out.with_name("expected"), **options)

    words = ["--shard-size", 4, "--encoding", encoding, "--on-bad", "skip", "--engine", "ray"]
    command = [sys.executable, "-m", "tinyvgg.cli", "pack", source, out, *words, "--json"]
    done = isolate(*command, timeout=120)

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["manifest"]["splits"]["train"]["num_images"] == 59
    assert contents(out) == contents(out.with_name("expected"))
    assert sorted(path.name for path in out.parent.iterdir()) == ["expected", "packed"]


@needs_ray
@pytest.mark.long
def test_no_cluster_at_an_address_is_one_line(tmp_path: Path, source: Path, out: Path) -> None:
    words = ["--engine", "ray", "--address", "127.0.0.1:6398"]
    done = isolate(sys.executable, "-m", "tinyvgg.cli", "pack", source, out, *words, timeout=120)

    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("tinyvgg pack: engine 'ray': 127.0.0.1:6398: ")
    assert list(out.parent.iterdir()) == []


def kill_rounds(source: Path, out: Path, what: str, num_rounds: int) -> list[dict[str, Any]]:
    pack(source, out.with_name("packed.expected"), shard_size=4)
    words = ["-m", "tests.packing.ray_cluster", source, out, what, num_rounds]
    done = isolate(sys.executable, *words, timeout=60 + 60 * num_rounds)
    rounds = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(rounds) == num_rounds, done.stderr
    return rounds


@needs_ray
@pytest.mark.long
def test_a_node_that_is_killed_costs_its_work_and_no_more_than_half_a_minute(
    tmp_path: Path, out: Path
) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=150, val=30)

    for found in kill_rounds(source, out, "nodes", 3):
        assert (found["status"], found["is_same"], found["left"]) == (0, True, []), found
        assert found["kept"] > 0
        assert found["seconds"] < 30 + 10


@needs_ray
@pytest.mark.long
def test_twenty_packs_on_ray_killed_at_random_end_in_the_same_bytes(
    tmp_path: Path, out: Path
) -> None:
    source = write_jpegs(tmp_path / "jpegs", train=150, val=30)

    rounds = kill_rounds(source, out, "drivers", 20)

    assert [found for found in rounds if not found["is_same"] or found["left"]] == []
    assert min(found["kept"] for found in rounds) > 0
