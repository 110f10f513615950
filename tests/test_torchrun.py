"""torchrun: ranks that are killed, stopped or cut off, for real, on one machine and on two."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import tinyvgg
from tests.conftest import NOT_RUN, known_images, write_packed
from tests.two_machines import Machine, two_machines, why_no_machines

SOURCE = Path(tinyvgg.__file__).parents[1]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
TRAIN = ["-m", "tinyvgg.cli", "train", "packed", "--out", "runs/run"]
FLAGS = ["--arch", "vgg11", "--sizes", "--size-shares", "--amp", "off", "--device", "cpu"]
FLAGS += ["--batch-size", "12", "--log-every", "1", "--optimizer", "sgd", "--lr", "0.001"]
START_SEC = 180  # a busy machine takes long to import torch in several processes

pytestmark = pytest.mark.long


class Launch:
    """A torchrun whose output is read while it runs."""

    def __init__(self, words: list[str], folder: Path, name: str, **variables: str) -> None:
        self.log = folder / f"{name}.log"
        variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE), **variables}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                words,
                cwd=folder,
                env={**os.environ, **variables},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, pattern: str, limit_sec: float = START_SEC, after: int = 0) -> int:
        """Wait until it has said something; return where that ends."""

        def find() -> int:
            found = re.compile(pattern, re.MULTILINE).search(self.said, after)
            return 0 if found is None else found.end()

        return wait_until(find, f"{pattern!r} in:\n{self.said[after:]}", limit_sec)

    def ranks(self) -> dict[int, int]:
        """Return the number of the process of each rank that runs, by rank."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
                variables = (path / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            known = dict(entry.partition(b"=")[::2] for entry in variables)
            if parent == self.process.pid and b"LOCAL_RANK" in known:
                found[int(known[b"RANK"])] = int(path.name)
        return found

    def end(self) -> None:
        """Kill it with all its processes."""
        ranks = self.ranks()
        self.process.kill()
        self.process.wait()
        for number in ranks.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)


def wait_until(ask: Callable[[], int], what: str, limit_sec: float) -> int:
    end = time.monotonic() + limit_sec
    while not (found := ask()):
        assert time.monotonic() < end, f"not within {limit_sec} s: {what}"
        time.sleep(0.05)
    return found


def is_alive(number: int) -> bool:
    try:
        status = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a packed set of 60 train and 24 val images of 32 pixels, 4 classes."""
    images = known_images(60, 32, 32)
    labels = np.arange(60) % 4
    write_packed(tmp_path / "packed", images, labels, images[:24], labels[:24])
    (tmp_path / "runs").mkdir()
    return tmp_path


@pytest.fixture
def launch(folder: Path) -> Iterator[Callable[..., Launch]]:
    """Return what starts a torchrun; it is killed at the end."""
    launched: list[Launch] = []

    def start(words: list[str], **variables: str) -> Launch:
        launched.append(Launch(words, folder, f"torchrun-{len(launched)}", **variables))
        return launched[-1]

    yield start
    for one in launched:
        one.end()


def check_lines(said: str, expected: dict[str, int]) -> None:
    """Expect so many lines of ours of each kind, and no traceback but torchrun's own."""
    ours = re.findall(r"^tinyvgg train: (.*)$", said, re.MULTILINE)
    for pattern, count in expected.items():
        assert len([line for line in ours if re.match(pattern, line)]) == count, said
    assert len(ours) == sum(expected.values()), said
    for traceback in re.findall(r"^.*Traceback[^\n]*\n.*\n", said, re.MULTILINE):
        assert "torch/distributed/run.py" in traceback or "<frozen runpy>" in traceback, said
    assert "/tinyvgg/" not in said, said


def test_a_killed_rank_ends_all_others_with_one_line_each(launch: Callable[..., Launch]) -> None:
    words = [*TORCHRUN, "--standalone", "--nproc-per-node=3", *TRAIN, *FLAGS, "--epochs=100"]
    job = launch(words)
    job.wait_for(r"^\[1, +3\]")
    ranks = job.ranks()
    assert sorted(ranks) == [0, 1, 2]

    killed_at = time.monotonic()
    os.kill(ranks[1], signal.SIGKILL)

    wait_until(lambda: not any(map(is_alive, ranks.values())), "all ranks end", 60)
    assert time.monotonic() - killed_at < 5
    assert job.process.wait(60) == 1
    check_lines(job.said, {r"rank [02]: another rank ended \(": 2})


def test_a_stopped_rank_ends_all_others_after_the_timeout(launch: Callable[..., Launch]) -> None:
    words = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--shutdown-timeout=3", *TRAIN]
    job = launch([*words, *FLAGS, "--epochs=100", "--dist-timeout=15"])
    job.wait_for(r"^\[1, +3\]")
    ranks = job.ranks()

    stopped_at = time.monotonic()
    os.kill(ranks[1], signal.SIGSTOP)

    wait_until(lambda: not is_alive(ranks[0]), "the other rank ends", 60)
    assert time.monotonic() - stopped_at < 15 + 10
    assert job.process.wait(60) == 1  # after --shutdown-timeout torchrun kills what is stopped
    assert not is_alive(ranks[1])
    check_lines(job.said, {"rank 0: another rank said nothing for 15 s, --dist-timeout": 1})


def test_torchrun_starts_again_and_the_run_goes_on_by_itself(
    launch: Callable[..., Launch], folder: Path
) -> None:
    words = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "--max-restarts=1", *TRAIN, *FLAGS]
    job = launch([*words, "--epochs=6"])
    job.wait_for(r"^epoch 2/6")
    wait_until(lambda: (folder / "runs/run/last.pt").exists(), "a checkpoint", 60)
    os.kill(job.ranks()[1], signal.SIGKILL)

    assert job.process.wait(START_SEC) == 0, job.said
    lines = (folder / "runs/run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6
    assert job.said.count("runs/run: this job was started again, so its run is resumed") == 1
    assert len(re.findall(r"^\[1, +1\]", job.said, re.MULTILINE)) == 1  # not from the start

    other = launch([*TORCHRUN, "--standalone", "--nproc-per-node=2", *TRAIN, *FLAGS])
    assert other.process.wait(START_SEC) == 1
    check_lines(other.said, {"runs/run: exists already; resume it with --resume": 2})

    score = ["-m", "tinyvgg.cli", "evaluate", "runs/run/last.pt", "packed", "--device=cpu"]
    scored = launch([*TORCHRUN, "--standalone", "--nproc-per-node=2", *score])
    assert scored.process.wait(START_SEC) == 0, scored.said
    assert scored.said.count("Accuracy average") == 1
    alone = subprocess.run(
        [sys.executable, *score],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert [line for line in alone.stdout.splitlines() if line not in scored.said] == []


@pytest.fixture
def machines() -> Iterator[tuple[Machine, Machine]]:
    if (reason := why_no_machines()) is not None:
        pytest.skip(f"{NOT_RUN}{reason}")
    with two_machines() as both:
        yield both


def join_words(machine: Machine, host: Machine, folder: Path, *flags: str) -> list[str]:
    """Return the command of one of two machines; RUN is seen on the host alone."""
    words = [
        *(*TORCHRUN, "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=cable"),
        *(f"--rdzv-endpoint={host.address}:29400", "--max-restarts=3"),
        *("--local-addr", machine.address, f"--rdzv-conf=is_host={int(machine is host)}"),
        *(*flags, *TRAIN, *FLAGS, "--checkpoint-minutes=0", "--dist-timeout=12"),
    ]
    return machine.command(words, None if machine is host else folder / "runs")


def variables_of(machine: Machine) -> dict[str, str]:
    return {
        "GLOO_SOCKET_IFNAME": machine.interface,
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
    }


def test_two_machines_survive_a_pulled_cable(
    machines: tuple[Machine, Machine], launch: Callable[..., Launch], folder: Path
) -> None:
    host, other = machines
    jobs = [
        launch(join_words(one, host, folder, "--nnodes=2"), **variables_of(one)) for one in machines
    ]
    at_host = jobs[0]
    before = at_host.wait_for(r"^\[1, +3\]")

    other.pull_cable()
    time.sleep(4)
    other.put_cable_back()
    before = at_host.wait_for(r"^\[\d+, +\d+\]", 30, after=at_host.wait_for("loss", after=before))
    assert "another rank" not in at_host.said  # shorter than --dist-timeout: it goes on

    pulled_at = time.monotonic()
    other.pull_cable()
    for job in jobs:
        job.wait_for(r"^tinyvgg train: rank \d: another rank said nothing for 12 s", 12 + 10)
    assert time.monotonic() - pulled_at < 12 + 10
    time.sleep(5)
    other.put_cable_back()

    again = at_host.wait_for("this job was started again, so its run is resumed", 120)
    at_host.wait_for(r"^\[\d+, +\d+\] loss", 60, after=again)
    assert len(re.findall(r"^\[1, +1\]", at_host.said, re.MULTILINE)) == 1
    for job in jobs:
        check_lines(job.said, {r"rank \d: another rank said nothing": 1})
    assert len(list((folder / "runs").iterdir())) == 1  # of the machine that has rank 0


def test_a_machine_that_dies_is_done_without_and_joins_again(
    machines: tuple[Machine, Machine], launch: Callable[..., Launch], folder: Path
) -> None:
    host, other = machines

    def start(machine: Machine) -> Launch:
        words = join_words(machine, host, folder, "--nnodes=1:2")
        return launch(words, **variables_of(machine))

    at_host, elsewhere = start(host), start(other)
    before = at_host.wait_for(r"^\[1, +3\]")
    wait_until(lambda: len(elsewhere.ranks()), "a rank on the other machine", START_SEC)

    elsewhere.end()
    before = at_host.wait_for("rank 0: another rank ended", 10, after=before)
    before = at_host.wait_for("this job was started again", 120, after=before)
    before = at_host.wait_for(r"^\[\d+, +\d+\] loss", 60, after=before)
    assert len(at_host.ranks()) == 1

    joining = start(other)
    before = at_host.wait_for("this job was started again", 120, after=before)
    before = at_host.wait_for(r"^\[\d+, +\d+\] loss", 60, after=before)
    assert sorted({**at_host.ranks(), **joining.ranks()}) == [0, 1]
    assert len(re.findall(r"^\[1, +1\]", at_host.said, re.MULTILINE)) == 1
