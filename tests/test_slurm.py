"""SLURM: processes that srun started, on a real cluster of two nodes on loopback."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import tinyvgg
from tests.conftest import NOT_RUN, known_images, write_packed
from tests.slurm_cluster import slurm_cluster, why_no_slurm
from tinyvgg.errors import RankError
from tinyvgg.launched import adopt_slurm, find_first_host

SOURCE = Path(tinyvgg.__file__).parents[1]
STEP = {
    "SLURM_STEP_ID": "3",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_ID": "1234567",
    "MASTER_ADDR": "node7",
}


def test_a_task_of_a_step_is_a_rank() -> None:
    variables = dict(STEP)

    adopt_slurm(variables)

    port = int(variables["MASTER_PORT"])
    del variables["MASTER_PORT"]
    assert variables == {**STEP, "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    assert 10_000 <= port < 30_000
    other = {**STEP, "SLURM_STEP_ID": "4"}
    adopt_slurm(other)
    assert int(other["MASTER_PORT"]) != port


def test_what_is_set_stays() -> None:
    by_torchrun = {**STEP, "RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_PORT": "5"}
    with_port = {**STEP, "MASTER_PORT": "29500"}
    before = dict(by_torchrun)

    adopt_slurm(by_torchrun)
    adopt_slurm(with_port)

    assert by_torchrun == before
    assert (with_port["MASTER_PORT"], with_port["RANK"]) == ("29500", "5")


@pytest.mark.parametrize(
    "missing",
    [
        {"SLURM_STEP_ID": None},  # the shell of a job
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": None, "SLURM_NTASKS": None},
    ],
)
def test_a_command_outside_a_step_of_several_tasks_is_alone(missing: dict[str, str | None]) -> None:
    variables = {k: v for k, v in {**STEP, **missing}.items() if v is not None}
    before = dict(variables)

    adopt_slurm(variables)

    assert variables == before


def test_without_scontrol_the_address_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")

    with pytest.raises(RankError, match=r"^SLURM nodes 'n\[1-2\]': .*set MASTER_ADDR to the host"):
        find_first_host("n[1-2]")


@pytest.fixture
def cluster() -> Iterator[dict[str, str]]:
    """The environment of a running cluster, in which `tinyvgg` is this one."""
    if (reason := why_no_slurm()) is not None:
        pytest.skip(f"{NOT_RUN}{reason}")
    with slurm_cluster() as environment:
        environment |= {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
        # on loopback the nodes have no names that resolve
        yield environment | {"MASTER_ADDR": "127.0.0.1"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a packed set of 96 train and 24 val images of 32 pixels, 4 classes."""
    images = known_images(96, 32, 32)
    labels = np.arange(96) % 4
    write_packed(tmp_path / "packed", images, labels, images[:24], labels[:24])
    return tmp_path


FLAGS = "--arch vgg11 --sizes --size-shares --amp off --log-every 1"


@pytest.mark.long
def test_srun_starts_ranks_and_the_shell_of_a_job_does_not(
    cluster: dict[str, str], folder: Path
) -> None:
    train = f"tinyvgg train packed --batch-size 48 --epochs 1 {FLAGS} --json"
    (folder / "job.sh").write_text(
        f"#!/bin/bash\nsrun -l {train} --out together\n{train} --out alone\n"
        "srun tinyvgg evaluate together/last.pt packed\n"
    )
    command = ["sbatch", "--wait", "-N2", "-n2", "--output=out", "job.sh"]
    # the first host of the step is asked of SLURM itself
    hosts = ["srun", "-N2", "-n2", sys.executable, "-c", PRINT_HOST]
    bare = {k: v for k, v in cluster.items() if k != "MASTER_ADDR"}
    found = subprocess.run(hosts, env=bare, capture_output=True, text=True, timeout=120)

    done = subprocess.run(command, cwd=folder, env=cluster, timeout=400)

    assert found.stdout.split("\n")[:-1] == ["n1 2", "n1 2"], found.stderr
    out = (folder / "out").read_text()
    assert done.returncode == 0, out
    assert out.count('"run": "together"') == out.count('"run": "alone"') == 1
    assert set(re.findall(r"^(\d): ", out, re.MULTILINE)) >= {"0"}
    assert not re.search(r'^1: .*"history"', out, re.MULTILINE)  # rank 0 alone prints the result
    assert out.count("Accuracy average") == 1
    for run in ("together", "alone"):
        assert (folder / run / "last.pt").exists()


PRINT_HOST = (
    "import os; from tinyvgg.launched import adopt_slurm; adopt_slurm(); "
    "print(os.environ['MASTER_ADDR'], os.environ['WORLD_SIZE'])"
)


def read_example() -> str:
    """Return the batch script of the document for users."""
    text = (SOURCE / "tinyvgg" / "training" / "RANKS.md").read_text("utf-8")
    (example,) = re.findall(r"^```bash\n(#!/bin/bash\n.*?)^```", text, re.MULTILINE | re.DOTALL)
    return str(example)


@pytest.mark.long
def test_the_example_saves_at_the_signal_is_requeued_and_resumes(
    cluster: dict[str, str], folder: Path
) -> None:
    # as it stands, but for a set that takes less than 4 hours and a limit that ends it before
    (folder / "job.sh").write_text(
        read_example().replace("--batch-size 256", f"--batch-size 48 --epochs 40 {FLAGS}")
    )
    submit = ["sbatch", "--parsable", "--time=3", "--signal=USR1@110", "--output=out", "job.sh"]
    done = subprocess.run(submit, cwd=folder, env=cluster, capture_output=True, text=True)
    job = done.stdout.strip()
    assert job.isdecimal(), done.stderr
    end = time.monotonic() + 500

    def ask() -> str:
        show = ["scontrol", "show", "job", job]
        return subprocess.run(show, env=cluster, capture_output=True, text=True).stdout

    while not ("Restarts=1" in (shown := ask()) and "JobState=RUNNING" in shown):
        assert time.monotonic() < end, f"{shown}\n{(folder / 'out').read_text()}"
        if "Restarts=1" in shown and "PENDING" in shown:  # not to wait for two minutes
            subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], env=cluster)
        time.sleep(1)
    first = (folder / "out").read_text()
    assert "stopped at step" in first
    assert len(re.findall(r"^\[1, +1\]", first, re.MULTILINE)) == 1
    # the resumed one goes on behind it
    stopped = int(first.partition("stopped at step ")[2].partition(";")[0].replace(",", ""))
    next_line = f"[{stopped // 2 + 1}, {stopped % 2 + 1:5d}]"
    while next_line not in (out := (folder / "out").read_text()).partition("stopped at step")[2]:
        assert time.monotonic() < end, out
        time.sleep(1)
    subprocess.run(["scancel", job], env=cluster)
    assert len(re.findall(r"^\[1, +1\]", out, re.MULTILINE)) == 1  # it did not start over
