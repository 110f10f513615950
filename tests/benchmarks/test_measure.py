import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import measure
from benchmarks.measure import Arm, Measurement, compare, describe_machine, measure_once
from tinyvgg.bench.machine import measure_busy_share

REPOSITORY = Path(__file__).parents[2]


def measurement(name: str, *rates: float) -> Measurement:
    return Measurement(Arm(name, "nowhere:nothing"), [[rate] * 3 for rate in rates])


def test_a_ratio_is_taken_within_each_repeat() -> None:
    ratio = compare(measurement("a", 2, 20, 200, 4, 8), measurement("b", 1, 10, 100, 2, 4))

    assert (ratio.median, ratio.low, ratio.high) == (2.0, 2.0, 2.0)
    assert ratio.is_difference


def test_noise_around_one_is_no_difference() -> None:
    ratio = compare(measurement("a", 1.1, 0.9, 1.05, 0.95, 1.0), measurement("b", 1, 1, 1, 1, 1))

    assert not ratio.is_difference


def test_one_repeat_has_quartiles_and_a_ratio() -> None:
    one = measurement("a", 3.0)

    assert one.quartiles == (3.0, 3.0)
    assert compare(one, measurement("b", 1.0)).median == 3.0


def test_a_machine_without_git_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("TINYVGG_COMMIT", raising=False)

    unknown = describe_machine()
    monkeypatch.setenv("TINYVGG_COMMIT", "0123456789abcdef")
    told = describe_machine()

    assert (unknown["commit"], unknown["is_dirty"]) == ("unknown", None)
    assert (told["commit"], told["is_dirty"]) == ("0123456789abcdef", None)
    assert told["num_cores"] >= 1


def test_a_core_that_works_is_seen() -> None:
    spinning = [sys.executable, "-c", "while True: pass"]
    num_cores = os.cpu_count() or 1
    processes = [subprocess.Popen(spinning) for _ in range(num_cores)]
    try:
        time.sleep(0.5)
        busy = measure_busy_share()
    finally:
        for process in processes:
            process.kill()
            process.wait()

    assert 0.5 < busy <= 1


def test_a_record_waits_for_an_idle_machine_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = iter([0.9, 0.5, 0.01, 0.9])
    monkeypatch.setattr(measure, "measure_busy_share", lambda: next(shares))
    monkeypatch.setattr(time, "sleep", lambda seconds: None)

    measure.wait_until_idle()
    measure.wait_until_idle(max_sec=0)

    assert list(shares) == []
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f"waiting: {share} % of the cores are busy" for share in (90, 50)]


def test_the_commit_of_a_checkout_around_a_plain_copy_is_not_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(
        ["git", *identity, "commit", "--quiet", "--allow-empty", "--message=x"],
        cwd=tmp_path, check=True,
    )  # fmt: skip
    (tmp_path / "copy").mkdir()

    monkeypatch.setattr(measure, "REPOSITORY", tmp_path)
    assert len(measure.describe_commit()["commit"]) == 40
    monkeypatch.setattr(measure, "REPOSITORY", tmp_path / "copy")
    assert measure.describe_commit()["commit"] == "unknown"


def test_an_arm_is_measured_in_a_process_of_its_own_and_returns_its_windows() -> None:
    arm = Arm("sleep", "tests.benchmarks.sleeping:ten_images", window_sec=0.01, num_windows=3)

    rates, cpu_sec_per_image = measure_once(arm)

    assert len(rates) == 3
    assert 0 < cpu_sec_per_image < 0.005  # it sleeps
    assert all(0 < rate < 10 / 0.005 for rate in rates)  # 10 images take at least 5 ms


@pytest.mark.parametrize("path", sorted((REPOSITORY / "benchmarks" / "records").glob("*.json")))
def test_a_record_says_how_it_was_made(path: Path) -> None:
    record = json.loads(path.read_text())

    assert record["schema"] == 1
    assert record["machine"]["commit"][:8] in path.name
    assert not record["machine"]["is_dirty"]
    for arm in record["arms"]:
        if "runs" in arm:  # training runs: a point for each epoch, operations only grow
            curves = [[point["pflop"] for point in run["curve"]] for run in arm["runs"]]
            assert all(curve and curve == sorted(curve) for curve in curves)
        elif "rows" in arm:  # of the GPU benchmark: what was not measured says why
            assert (arm["status"] == "measured") == (arm["reason"] is None)
            assert all(len(row["windows"]) >= 5 for row in arm["rows"] if "windows" in row)
        else:
            assert len(arm["windows"]) >= {"peers": 1, "scaling": 3}.get(record["name"], 5)


def test_readme_and_records_md_say_what_the_records_say() -> None:
    tool = REPOSITORY / "tools" / "render_records.py"

    done = subprocess.run([sys.executable, str(tool), "--check"], capture_output=True, text=True)

    assert done.returncode == 0, done.stdout
