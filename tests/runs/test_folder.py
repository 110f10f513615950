import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from tinyvgg.cli import main
from tinyvgg.errors import CheckpointError
from tinyvgg.runs.folder import RunFolder
from tinyvgg.shards.store import PackedDataset
from tinyvgg.shards.verify import verify_dataset

HOLD_LOCK = """
import sys, time
from pathlib import Path
from tinyvgg.runs.folder import RunFolder
with RunFolder(Path(sys.argv[1])).writing():
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_run_has_one_writer_whatever_its_folder_is_called(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("run")

    with RunFolder(tmp_path / "run").writing():
        for name in ("run", "link"):
            message = f"{name}: another 'tinyvgg train' is writing it; wait for it, or pass another"
            with (
                pytest.raises(CheckpointError, match=message),
                RunFolder(tmp_path / name).writing(),
            ):
                pass
        (tmp_path / "run" / "config.json").touch()

    with RunFolder(tmp_path / "run").writing():  # free again
        pass
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["config.json"]


def test_a_killed_writer_leaves_the_run_free_and_as_good_as_new(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD_LOCK, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(CheckpointError, match="another 'tinyvgg train' is writing it"),
            RunFolder(tmp_path / "run").writing(),
        ):
            pass
        process.send_signal(signal.SIGKILL)

    RunFolder(tmp_path / "run").check_new()
    with RunFolder(tmp_path / "run").writing():
        pass


@pytest.mark.parametrize("is_made_before", [True, False])
def test_a_run_that_never_began_leaves_no_folder_that_was_not_there(
    tmp_path: Path, is_made_before: bool
) -> None:
    if is_made_before:
        (tmp_path / "run").mkdir()

    with pytest.raises(ValueError, match="no"), RunFolder(tmp_path / "run").writing():
        raise ValueError("no")

    assert (tmp_path / "run").exists() == is_made_before
    assert not is_made_before or list((tmp_path / "run").iterdir()) == []


def test_a_command_in_the_shell_of_a_slurm_job_of_several_tasks_is_alone(
    packed: PackedDataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {"NTASKS": "2", "PROCID": "0", "LOCALID": "0", "JOB_ID": "7"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run = tmp_path / "run"

    with RunFolder(run).writing():
        status = main(["train", str(packed.folder), "--out", str(run), "--device", "cpu"])

    assert status == 1
    assert capsys.readouterr().err == (
        f"tinyvgg train: {run}: another 'tinyvgg train' is writing it; wait for it, or pass "
        "another --out\n"
    )


def test_a_folder_that_holds_a_run_is_not_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()

    with pytest.raises(CheckpointError, match="exists already; resume it with --resume"):
        RunFolder(tmp_path).check_new()


@pytest.mark.slow
def test_a_set_and_a_run_made_before_open_verify_evaluate_and_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # commit f4002f8 trained it: vgg11_bn whose weights began at zero, so that they compress
    with tarfile.open(Path(__file__).with_name("run_before.tar.xz")) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)

    assert verify_dataset("packed") == []
    assert main(["evaluate", "run/last.pt", "packed", "--device", "cpu"]) == 0
    assert "Accuracy average: 50.00 %" in capsys.readouterr().out
    assert main(["train", "packed", "--out", "run", "--resume", "--device", "cpu"]) == 0
    assert torch.load("run/last.pt", weights_only=True)["step"] == 4
