"""Supervise: arms in a worker process, each under a time limit; a new worker if one is lost.

From: `benchmarks.gpu`, with arms in order of priority.
To:   `worker`, one arm at a time; `benchmarks.gpu` gets each arm's result when it has ended.

The supervisor loads no torch and touches no device, so that nothing an arm does can stop it. An
arm that raises loses only itself. One that hangs or dies takes its worker along, and rows that it
had measured stay; the next arm gets a new worker.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.gpu_arms.card import CardSampler
from benchmarks.gpu_arms.plan import Arm, Row, Setting

REPOSITORY = Path(__file__).parents[2]
START_SEC = 120.0  # for a worker to import torch and say what machine it is on
MAX_FAILED_STARTS = 2  # in a row, after which no arm can be measured
# two threads that wait for each other on two busy cores are 20 times slower than one
TINY_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


class WorkerLost(Exception):  # noqa: N818 - what happened, said in the result
    """The worker died, or did not answer in time."""


class Worker:
    """A worker process and its answers.

    Args:
        setting: for all its arms.
        limit_sec: for its start.
    """

    def __init__(self, setting: Setting, limit_sec: float) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.gpu_arms.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **(TINY_ENVIRONMENT if setting.is_tiny else {})},
            start_new_session=True,  # a group of its own: compilers and loaders end with it
        )
        self.answers: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        try:
            self.order(asdict(setting))
            self.machine: dict[str, Any] = self.answer(time.monotonic() + limit_sec)["machine"]
        except BaseException:
            self.kill()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # killed in the middle of a line
            for line in self.process.stdout:
                self.answers.put(json.loads(line))
        self.answers.put(None)

    def order(self, message: dict[str, Any]) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except OSError as error:
            raise WorkerLost(self._describe_end()) from error

    def answer(self, deadline: float) -> dict[str, Any]:
        """Return the next answer.

        Args:
            deadline: of `time.monotonic()`.

        Raises:
            WorkerLost: there is none.
        """
        try:
            message = self.answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            raise TimeoutError from None
        if message is None:
            raise WorkerLost(self._describe_end())
        return message

    def _describe_end(self) -> str:
        status = self.process.wait()
        if status < 0:
            return f"the worker died of {signal.Signals(-status).name}"
        return f"the worker ended with status {status}"

    def kill(self) -> None:
        """End the process and whatever it has started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.reader.join(timeout=5)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):  # what was not read any more
                stream.close()


class Supervisor:
    """Runs arms, and knows the machine once a worker has started.

    Args:
        setting: for all arms.
        seconds: after which no arm starts, from now; an arm gets at most what is left of them.
        observe: called with the arm and each row as it comes.
    """

    def __init__(
        self, setting: Setting, seconds: float, observe: Callable[[Arm, Row], None]
    ) -> None:
        self.setting = setting
        self.seconds = seconds
        self.deadline = time.monotonic() + seconds
        self.observe = observe
        self.machine: dict[str, Any] | None = None
        self.worker: Worker | None = None
        self.num_failed_starts = 0

    def measure(self, arms: Sequence[Arm]) -> Iterator[dict[str, Any]]:
        """Yield each arm's result: the arm's fields, status, reason, seconds, rows and card."""
        try:
            with CardSampler() as card:
                for arm in arms:
                    card.begin()
                    rows: list[Row] = []
                    ended = self._measure_arm(arm, rows)
                    yield {**asdict(arm), **ended, "rows": rows, "card": card.summary()}
        finally:
            if self.worker is not None:
                self.worker.kill()

    def _measure_arm(self, arm: Arm, rows: list[Row]) -> dict[str, Any]:
        if time.monotonic() >= self.deadline:
            reason = f"the {self.seconds:g} seconds were over"
            return {"status": "not started", "reason": reason, "seconds": 0.0}
        if self.num_failed_starts >= MAX_FAILED_STARTS:
            reason = f"{self.num_failed_starts} workers in a row did not start"
            return {"status": "not started", "reason": reason, "seconds": 0.0}
        started = time.monotonic()
        try:
            worker = self._start_worker()
            started = time.monotonic()
            limit_sec = min(arm.limit_sec, self.deadline - started)
            worker.order(asdict(arm))
            while True:
                answer = worker.answer(started + limit_sec)
                if "end" in answer:
                    break
                rows.append(answer["row"])
                self.observe(arm, answer["row"])
        except (WorkerLost, TimeoutError) as error:
            self._drop_worker()
            seconds = time.monotonic() - started
            reason = str(error) or f"stopped after {seconds:.1f} s"
            return {"status": "failed", "reason": reason, "seconds": seconds}
        if answer["is_last"]:
            self._drop_worker()
        ended: dict[str, Any] = answer["end"]
        return ended

    def _start_worker(self) -> Worker:
        if self.worker is None:
            self.num_failed_starts += 1
            left_sec = self.deadline - time.monotonic()
            self.worker = Worker(self.setting, min(START_SEC, left_sec))
            self.machine = self.machine or self.worker.machine
            if self.setting.device == "cuda" and self.machine["gpu"] is None:
                raise SystemExit(
                    "benchmarks.gpu: no CUDA device here, nothing was measured; "
                    "--device cpu --tiny executes every arm's code"
                )
            self.num_failed_starts = 0
        return self.worker

    def _drop_worker(self) -> None:
        if self.worker is not None:
            self.worker.kill()
        self.worker = None
