"""Ray: shard tasks done by a cluster, whose nodes all see the source and OUT under the same paths.

From: `partial`, with the tasks that are to be done.
To:   files in folders inside OUT.partial, one for each try, and a report of each shard, from the
      process that asked for it: it alone gives files their names and writes the journal, so a node
      that was given up and writes on disturbs nobody.

A task is one shard, one core, one decode thread. Ray does a task again whose worker or node died;
what it costs is that task's work, and Ray's time to notice (`RAY_health_check_*`).
"""

import logging
import os
import platform
import re
import secrets
import shutil
import signal
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from threading import Event, current_thread, main_thread
from typing import Any

from tinyvgg import __version__
from tinyvgg.errors import BackendUnavailable, DatasetError
from tinyvgg.packing.config import PackConfig
from tinyvgg.packing.encoders import Encoder, make_encoder
from tinyvgg.packing.folders import ImageSource
from tinyvgg.packing.tasks import ShardTask, WrittenShard
from tinyvgg.packing.threads import Advance, OpenBar, Report, Threads
from tinyvgg.packing.trees import open_tree
from tinyvgg.shards.manifest import AnyFormat

MAX_RETRIES = 5  # of a task whose worker dies: a node that is lost costs one
TASKS_A_CORE = 3  # handed to the cluster at once: one at work, the others on their way
WAIT_SEC = 0.2
PROBE_SEC = 10
STORE_BYTES = 100 * 2**20  # of a cluster of our own; a task is some 100 bytes an image


@dataclass(frozen=True)
class Job:
    """What all tasks of a pack have in common; it travels to the workers.

    Attributes:
        token: of this pack.
        config: its `source` is absolute.
        entered: the folder in the source that paths begin in.
        image: what images become.
        folder: in OUT.partial, where a folder for each try is made.
        version: of tinyvgg.
    """

    token: str
    config: PackConfig
    entered: str
    image: AnyFormat
    folder: Path
    version: str = __version__


@dataclass(frozen=True)
class RayTasks:
    """Does tasks with the cluster that this process is connected to."""

    job: Job

    def write_shards(
        self, tasks: Sequence[ShardTask], open_bar: OpenBar, report: Report, stop: Event
    ) -> None:
        """As `Threads.write_shards`; the bar advances by whole shards.

        Raises:
            BackendUnavailable: the cluster gave a task up, or is gone.
        """
        import ray

        job = ray.put(self.job)
        remote = ray.remote(num_cpus=1, max_retries=MAX_RETRIES)(write_shard)
        waiting = list(reversed(tasks))
        running: dict[Any, ShardTask] = {}
        bars: dict[str, Advance] = {}
        try:
            while (waiting or running) and not stop.is_set():
                limit = TASKS_A_CORE * max(1, int(ray.cluster_resources().get("CPU", 1)))
                while waiting and len(running) < limit:
                    task = waiting.pop()
                    if task.split not in bars:
                        bars[task.split] = open_bar(task.split)
                    running[remote.remote(job, task)] = task
                done, _ = ray.wait(list(running), timeout=WAIT_SEC)
                for reference in done:
                    result = ray.get(reference)
                    task = running.pop(reference)
                    if isinstance(result, Exception):
                        raise result
                    written, folder = result
                    report(task, written, folder)
                    shutil.rmtree(folder, ignore_errors=True)
                    bars[task.split](len(task.images))
        except ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            raise BackendUnavailable(
                f"engine 'ray': {lines[-1].strip() if lines else type(error).__name__}; "
                "look at the cluster and run the same command again"
            ) from error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


_opened: dict[str, tuple[ImageSource, Encoder]] = {}  # of a worker: by token, the last one alone


def write_shard(job: Job, task: ShardTask) -> tuple[WrittenShard, Path] | Exception:
    """Write one shard into a folder of its own; runs in a worker.

    Returns:
        What there is to report; or what is wrong with the source or the machine, as a value: Ray
        would wrap what is raised.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            return _write_shard(job, task)
    except (DatasetError, OSError) as error:
        return error


def _write_shard(job: Job, task: ShardTask) -> tuple[WrittenShard, Path]:
    if job.token not in _opened:
        _opened.clear()
        _opened[job.token] = _open_source(job)
    _, encoder = _opened[job.token]
    folder = job.folder / secrets.token_hex(8)
    folder.mkdir()
    found: list[WrittenShard] = []

    def report(task: ShardTask, written: WrittenShard, folder: Path) -> None:
        found.append(written)

    threads = Threads(encoder, 1, folder)
    threads.write_shards([task], lambda split: lambda num_done: None, report, Event())
    return found[0], folder


def _open_source(job: Job) -> tuple[ImageSource, Encoder]:
    """Open the source as the process did that asked.

    Raises:
        DatasetError: this node does not see it, or has another tinyvgg.
    """
    node = f"node {platform.node()} of the cluster"
    if job.version != __version__:
        raise DatasetError(f"{node}: tinyvgg {__version__}, expected {job.version}; install it")
    if not job.folder.is_dir():
        raise DatasetError(
            f"{job.folder}: not seen by {node}; OUT must be on storage that all nodes share"
        )
    try:
        tree = open_tree(job.config.source)
    except DatasetError as error:
        raise DatasetError(f"{error} (on {node}; all nodes must see SOURCE)") from error
    if job.entered:
        tree.enter(job.entered)
    source = ImageSource(str(job.config.source), [], [], {}, tree, {})
    return source, make_encoder(job.config, source, job.image, 1)


def check_ray() -> None:
    """Check that Ray is installed.

    Raises:
        BackendUnavailable: it is not.
    """
    spec = find_spec("ray")
    if spec is None or spec.origin is None:  # a folder of that name is no package
        raise BackendUnavailable(
            "engine 'ray' needs ray, which is not installed; run pip install 'tinyvgg[ray]', or "
            "use --engine threads"
        )


@contextmanager
def open_ray(
    config: PackConfig, source: ImageSource, image: AnyFormat, folder: Path
) -> Iterator[RayTasks]:
    """Connect to the cluster, or start one on this machine, for the length of a `with` block.

    A process that is connected already stays as it is.

    Raises:
        BackendUnavailable: there is no such cluster.
    """
    import ray

    is_ours = not ray.is_initialized()
    if is_ours:
        with _handlers_kept(), warnings.catch_warnings(action="ignore"):
            _connect(config, ray)
    own = replace(config, source=Path(os.path.abspath(config.source)))  # noqa: PTH100 - no links
    try:
        yield RayTasks(Job(secrets.token_hex(8), own, source.tree.entered, image, folder))
    finally:
        if is_ours:
            ray.shutdown()


def _connect(config: PackConfig, ray: Any) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if config.address is None:
        own = {"num_cpus": config.workers or None, "object_store_memory": STORE_BYTES}
        options |= {"include_dashboard": False, **own}
    try:
        if found := re.fullmatch(r"(?:ray://)?(.+):([0-9]+)", config.address or ""):
            where = found[1].strip("[]"), int(found[2])
            socket.create_connection(where, PROBE_SEC).close()  # Ray itself tries for minutes
        ray.init(address=config.address or "local", **options)
    except (OSError, ValueError, RuntimeError) as error:
        what = getattr(error, "strerror", None) or str(error)
        text = what.strip().splitlines()
        raise BackendUnavailable(
            f"engine 'ray': {config.address or 'a local cluster'}: "
            f"{text[0] if text else type(error).__name__}; start it with 'ray start --head', or "
            "leave out --address"
        ) from error


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces."""
    if current_thread() is not main_thread():
        yield
        return
    kept: dict[int, Callable[..., Any] | int | None] = {
        number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in kept.items():
            if handler is not None:
                signal.signal(number, handler)
