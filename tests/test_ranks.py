"""Ranks that lose each other: real processes on a CPU."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed
from torch import nn

from tests.rank_processes import SERVER, find_port, run_ranks
from tinyvgg.errors import CheckpointError, RankError
from tinyvgg.ranks import ask_first_rank, joined_world
from tinyvgg.runs.signals import StopRequest, stop_request


def add_up(stop: StopRequest) -> None:
    torch.distributed.all_reduce(torch.ones(3))


def take_gradients(stop: StopRequest) -> None:
    model = nn.parallel.DistributedDataParallel(nn.Linear(2, 2))
    for _ in range(3):
        model(torch.ones(1, 2)).sum().backward()


def ask_for_a_stop(stop: StopRequest) -> None:
    stop.ask()


def leave_at_once(stop: StopRequest) -> None:
    pass  # and meet the other rank in the barrier at the end


def be_killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def be_stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fail() -> None:
    raise ValueError("the other rank's own error")


def be_rank(
    rank: int, port: int, work: Callable[[StopRequest], None], end: Callable[[], None], out: Path
) -> None:
    """Work in a world of two until rank 1 ends; write down what rank 0 says of it."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    try:
        with joined_world(torch.device("cpu"), 5), stop_request(5) as stop:
            torch.distributed.barrier()
            if rank == 1:
                out.with_name("ended").write_text(str(time.time()))
                end()
            work(stop)
    except RankError as error:
        out.write_text(f"{time.time()} {error}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "end"),
    [
        (add_up, be_killed),
        (take_gradients, be_killed),
        (ask_for_a_stop, be_killed),
        (leave_at_once, be_killed),
        (add_up, fail),
    ],
    ids=lambda function: function.__name__,
)
def test_a_rank_says_in_one_line_that_another_ended(
    tmp_path: Path, work: Callable[[StopRequest], None], end: Callable[[], None]
) -> None:
    port, out = find_port(), tmp_path / "said"

    ranks = [SERVER.Process(target=be_rank, args=(rank, port, work, end, out)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)

    assert ranks[0].exitcode == 0
    assert ranks[1].exitcode == (-signal.SIGKILL if end is be_killed else 1)
    said = r"rank 0: another rank ended \([^/\n]+\); see its own last line, then continue with "
    when, _, text = out.read_text().partition(" ")
    assert re.fullmatch(f"{said}--resume", text)
    assert float(when) - float((tmp_path / "ended").read_text()) < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    "work", [add_up, take_gradients, ask_for_a_stop, leave_at_once], ids=lambda f: f.__name__
)
def test_a_silent_rank_is_given_up_after_the_timeout(
    tmp_path: Path, work: Callable[[StopRequest], None]
) -> None:
    port, out = find_port(), tmp_path / "said"

    ranks = [
        SERVER.Process(target=be_rank, args=(rank, port, work, be_stopped, out)) for rank in (0, 1)
    ]
    for process in ranks:
        process.start()
    ranks[0].join(60)
    ranks[1].kill()
    ranks[1].join()

    assert ranks[0].exitcode == 0
    said = r"rank 0: another rank said nothing for 5 s, --dist-timeout \([^/\n]+\); see whether .*"
    when, _, text = out.read_text().partition(" ")
    assert re.fullmatch(said, text)
    assert float(when) - float((tmp_path / "ended").read_text()) < 15


def test_an_error_of_this_rank_stays_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    port = find_port()
    for name, value in {"WORLD_SIZE": "1", "RANK": "0", "MASTER_PORT": str(port)}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")

    with pytest.raises(RuntimeError, match="size of tensor"), joined_world(torch.device("cpu")):
        torch.ones(2) + torch.ones(3)


def test_ranks_that_do_not_come_are_waited_for_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tinyvgg.ranks.JOIN_SEC", 1)
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": str(find_port())}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "localhost")

    missing = r"^rank 0: not all 2 ranks met at localhost:\d+ within 1 s \(.*\); see whether each"
    with pytest.raises(RankError, match=missing), joined_world(torch.device("cpu"), 1):
        pass


def test_what_the_first_rank_finds_or_raises_is_everybodys(tmp_path: Path) -> None:
    first, second = run_ranks(2, ask_and_note, str(tmp_path), out=tmp_path / "returned")

    assert first == second == ["asked 0", "no such run"]


def ask_and_note(folder: str) -> list[str]:
    def raise_error() -> str:
        raise CheckpointError("no such run")

    answer = ask_first_rank(lambda: f"asked {os.environ['RANK']}")
    with pytest.raises(CheckpointError) as caught:
        ask_first_rank(raise_error)
    return [answer, str(caught.value)]
