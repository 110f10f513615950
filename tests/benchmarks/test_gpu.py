import argparse
import io
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import gpu, measure
from benchmarks.gpu_arms.card import CardSampler
from benchmarks.gpu_arms.plan import ARMS, Arm, Row, Setting, select_arms
from benchmarks.gpu_arms.supervise import Supervisor
from tests.conftest import known_images, write_packed
from tools.render_records import render_tables

REPOSITORY = Path(__file__).parents[2]
NOT_ON_A_CPU = {"ceiling-host-to-device", "peer-torchvision", "peer-dali-jpeg"}
COMMAND = [sys.executable, "-m", "benchmarks.gpu"]


def known_arm(name: str, limit_sec: float = 60.0) -> Arm:
    return Arm(name, name, f"tests.benchmarks.sleeping:arm_that_{name}", {}, limit_sec)


def supervise(names: str, *, seconds: float = 600.0, limit_sec: float = 60.0) -> dict[str, Any]:
    setting = Setting("nowhere", "cpu", is_tiny=True)
    arms = [known_arm(name, limit_sec) for name in names.split()]
    supervisor = Supervisor(setting, seconds, lambda arm, row: None)
    return {result["name"]: result for result in supervisor.measure(arms)}


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def packed_folder(tmp_path: Path) -> Path:
    """40 train images, 10 val images, 5 classes."""
    train, val = known_images(40), known_images(10)
    folder = tmp_path / "packed"
    return write_packed(folder, train, np.arange(40) % 5, val, np.arange(10) % 5)


@pytest.mark.long
def test_every_arm_runs_on_a_cpu(packed_folder: Path, class_folders: Path, tmp_path: Path) -> None:
    lines = tmp_path / "results" / "lines.jsonl"
    before = sorted(measure.RECORDS.iterdir())

    done = subprocess.run(
        [*COMMAND, str(packed_folder), "--device", "cpu", "--tiny", "--lines", str(lines)],
        cwd=REPOSITORY, env={**os.environ, "DATA": str(class_folders)},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout + done.stderr
    ended = {line["arm"]: line for line in read_lines(lines) if line["what"] == "arm"}
    assert list(ended) == [arm.name for arm in ARMS]  # in their order
    not_measured = {name: line for name, line in ended.items() if line["status"] != "measured"}
    backends_missing = {name for name in not_measured if "dali" in name}  # without nvidia-dali
    assert set(not_measured) <= NOT_ON_A_CPU | backends_missing
    assert set(not_measured) >= NOT_ON_A_CPU
    assert not_measured["peer-torchvision"]["reason"] == "needs CUDA"
    with_rows = {line["arm"] for line in read_lines(lines) if line["what"] == "row"}
    assert with_rows == set(ended) - set(not_measured)
    assert sorted(measure.RECORDS.iterdir()) == before  # a tiny run writes no record


def test_one_arm_that_raises_or_hangs_or_dies_loses_only_itself() -> None:
    results = supervise("raises cannot hangs dies measures", limit_sec=2.0)

    assert [result["status"] for result in results.values()] == [
        "failed", "not measured", "failed", "failed", "measured"
    ]  # fmt: skip
    assert results["raises"]["reason"] == "RuntimeError: out of order"
    assert results["cannot"]["reason"] == "needs CUDA"
    assert results["hangs"]["reason"].startswith("stopped after 2.")
    assert results["dies"]["reason"] == "the worker died of SIGSEGV"
    for name in ("raises", "hangs", "dies"):  # what they had measured before stays
        assert results[name]["rows"] == [{"name": "first", "ms": 1.0}]


def test_no_arm_starts_after_the_seconds_and_none_lasts_longer() -> None:
    started = time.monotonic()

    results = supervise("hangs measures", seconds=12.0, limit_sec=600.0)

    assert 11.9 < time.monotonic() - started < 20
    assert results["hangs"]["status"] == "failed"
    assert results["measures"]["status"] == "not started"
    assert results["measures"]["reason"] == "the 12 seconds were over"


def test_lines_survive_a_kill_and_no_process_does(packed_folder: Path, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    process = subprocess.Popen(
        [*COMMAND, str(packed_folder), "--device", "cpu", "--tiny", "--lines", str(lines),
         "--arms", "ceiling-copy", "convolutions", "step-512-strong"],
        cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    wait_for(lambda: lines.exists() and lines.read_text().count("\n") >= 2)
    (worker,) = children_of(process.pid)

    process.kill()
    process.wait()

    first, second = read_lines(lines)[:2]
    assert (first["what"], first["arm"]) == ("row", "ceiling-copy")
    assert (second["what"], second["status"]) == ("arm", "measured")
    wait_for(lambda: not is_running(worker))


def wait_for(holds: Any, limit_sec: float = 90.0) -> None:
    deadline = time.monotonic() + limit_sec
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def children_of(process_id: int) -> list[int]:
    tasks = Path(f"/proc/{process_id}/task").glob("*/children")
    return [int(word) for path in tasks for word in path.read_text().split()]


def is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{process_id}/stat").read_text()
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_record_is_whole_after_each_arm_and_can_be_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RECORDS", tmp_path / "records")
    arms = [known_arm("measures"), known_arm("cannot"), known_arm("raises")]
    options = argparse.Namespace(tiny=False, device="cpu", arms=arms)
    lines = io.StringIO()
    report = gpu.Report(options, lines)
    supervisor = Supervisor(Setting("nowhere", "cpu", is_tiny=True), 600, report.add_row)

    for number, result in enumerate(supervisor.measure(arms), 1):
        report.add_result(result, supervisor.machine)
        assert report.record is not None
        assert len(json.loads(report.record.read_text())["arms"]) == number

    (path,) = (tmp_path / "records").iterdir()
    assert report.record == path
    table = render_tables([{**json.loads(path.read_text()), "path": path.name}])
    assert "| measures | 10 |" in table
    assert "| first | ms 1 |" in table
    assert "| cannot | not measured: needs CUDA |" in table
    assert "| raises | failed: RuntimeError: out of order |" in table
    whats = [json.loads(line)["what"] for line in lines.getvalue().splitlines()]
    assert whats == ["row", "arm", "arm", "row", "arm"]


def test_a_record_of_loops_and_kernels_is_drawn() -> None:
    rows: list[Row] = [
        {"name": "train", "images_per_sec": 52_345.6, "ms_per_step": 9.78, "mfu": 0.3617,
         "share_of_step": [0.991, 0.985, 0.996], "data_wait_share": 0.004, "windows": [1.0]},
        {"name": "kernel sm90_conv|x", "us_per_step": 1234.5, "calls_per_step": 2.0,
         "share": 0.25, "group": "convolutions"},
    ]  # fmt: skip
    arm = {"name": "train-dali", "what": "training", "status": "measured", "reason": None}
    machine: dict[str, Any] = {"num_cores": 16, "cpu": "a CPU", "cpu_family_model": "6/143",
               "cpu_flags": [], "torch": "2.11", "date": "2026-01-01", "commit": "unknown",
               "is_busy": False}  # fmt: skip
    bars = gpu.make_bars([{**arm, "rows": rows}])

    table = render_tables(
        [{"name": "gpu", "claim": "c", "path": "p", "machine": machine, "bars": bars,
          "arms": [{**arm, "rows": rows}]}]
    )  # fmt: skip

    assert "| training | 52,346 | 9.78 |  | 36.2 |  | 0.991 [0.985 to 0.996] | 0.4 |" in table
    assert "| `sm90_conv/x` | 1,234.5 | 2.0 | 25.0 |" in table
    assert "| train-dali over its step | 0.99 | 0.98 to 1.00 | 0.98: met |" in table


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--arms", "warp"], "no arm is called 'warp', or in part; --list prints their names"),
        (["--repeats", "0"], "--repeats must be at least 1, got 0"),
        (["--device", "cuda", "--arms", "pointwise"], "no CUDA device here, nothing was measured"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    packed_folder: Path, words: list[str], message: str
) -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}

    done = subprocess.run([*COMMAND, str(packed_folder), *words], cwd=REPOSITORY,
                          env=environment, capture_output=True, text=True)  # fmt: skip

    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_arms_are_listed_in_order_of_priority_without_torch() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *COMMAND[1:], "--list"],
        cwd=REPOSITORY, capture_output=True, text=True, check=True,
    )  # fmt: skip

    assert [line.split()[0] for line in done.stdout.splitlines()] == [arm.name for arm in ARMS]
    modules = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "torch" not in modules
    assert len({arm.name for arm in ARMS}) == len(ARMS)


def test_a_whole_name_selects_one_arm_and_a_part_of_it_all_that_have_it() -> None:
    names = [arm.name for arm in ARMS]

    assert [arm.name for arm in select_arms(["convolutions"])] == ["convolutions"]
    assert [arm.name for arm in select_arms(["optimizer"])] == [
        name for name in names if "optimizer" in name
    ]
    assert select_arms([]) == list(ARMS)


def test_the_card_is_sampled_around_an_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    tool.write_text(
        "#!/bin/sh\n"
        'case "$*" in *clocks_event*) exit 2;; esac\n'  # an old driver
        'case "$*" in *loop*) echo "650.5, 1700, 2600, 60, 0x4"; '
        'echo "690.5, 1500, 2600, [N/A], 0x40"; exec sleep 60;; esac\n'
    )
    tool.chmod(tool.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    with CardSampler() as card:
        wait_for(lambda: len(card.samples) == 2)
        summary = card.summary()

    assert summary == {
        "num_samples": 2, "median_power_watt": 670.5, "max_power_watt": 690.5, "min_sm_mhz": 1500,
        "median_sm_mhz": 1600, "median_memory_mhz": 2600, "max_celsius": 60,
        "throttle_reasons": "0x44",
    }  # fmt: skip


def test_without_nvidia_smi_nothing_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with CardSampler() as card:
        assert card.summary() is None
