"""A Ray cluster on this machine: a head without cores and two nodes of one core each.

    unshare --net sh -c 'ip link set lo up; python -m tests.packing.ray_cluster SOURCE OUT WHAT N'

Each node has a process namespace, so that it dies as a whole, and a mount namespace in which Ray's
folder is its own. WHAT is "drivers", to kill the process that packs, or "nodes", to kill a node and
start another, N times, at random moments; the same command then ends in OUT. Prints a JSON line a
round. OUT.expected is what it must be, of shards of 4.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.packing.kills import File, identify, list_finished
from tests.packing.sources import contents

ADDRESS = "127.0.0.1:6399"
SHARD_SIZE = 4


class Cluster:
    """A head and its nodes."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self.environment = {
            **os.environ,
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_AUTH_MODE": "disabled",  # nobody else is in this network
            "PYTHONPATH": str(Path.cwd()),
            "TMPDIR": str(scratch),
        }
        port = ADDRESS.rpartition(":")[2]
        head = f"--head --port={port} --num-cpus=0 --include-dashboard=false --temp-dir={scratch}/r"
        self.processes = [self._start("head", head)]
        time.sleep(4)
        self.processes += [self.add_node(), self.add_node()]

    def _start(self, kind: str, words: str) -> "subprocess.Popen[bytes]":
        ray = Path(sys.executable).with_name("ray")
        start = f"exec {ray} start --block --node-ip-address=127.0.0.1 {words}"
        private = f"mount -t tmpfs tmpfs {self.scratch} && " if kind == "node" else ""
        return subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c",
             private + start],
            env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def add_node(self) -> "subprocess.Popen[bytes]":
        """Start a node of one core."""
        memory = "--object-store-memory=80000000"
        return self._start("node", f"--address={ADDRESS} --num-cpus=1 {memory}")

    def wait_for(self, num_nodes: int) -> None:
        """Wait until so many nodes have cores."""
        code = (
            "import ray, time\n"
            f"ray.init('{ADDRESS}', logging_level='ERROR', log_to_driver=False)\n"
            f"while ray.cluster_resources().get('CPU', 0) != {num_nodes}: time.sleep(0.1)"
        )
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code],
            env=self.environment,
            timeout=60,
            check=True,
        )

    def close(self) -> None:
        """Kill all of it."""
        for process in self.processes:
            process.kill()
            process.communicate()


def start_pack(source: Path, out: Path) -> "subprocess.Popen[bytes]":
    """Start a pack on the cluster."""
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    words = ["--shard-size", str(SHARD_SIZE), "--engine", "ray", "--address", ADDRESS]
    command = [sys.executable, "-m", "tinyvgg.cli", "pack", str(source), str(out), *words]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def await_shards(partial: Path, num_shards: int, process: "subprocess.Popen[bytes]") -> None:
    while process.poll() is None:
        with suppress(OSError):  # it is renamed meanwhile
            if len(list_finished(partial)) >= num_shards:
                return
        time.sleep(0.005)


def describe(
    process: "subprocess.Popen[bytes]", errors: bytes, kept: dict[str, File], out: Path
) -> dict[str, Any]:
    """Return how a pack ended; "kept" is how many shards it found finished, -1 if it redid one."""
    is_kept = process.returncode == 0 and {name: identify(out / name) for name in kept} == kept
    return {
        "status": process.returncode,
        "kept": len(kept) if is_kept else -1,
        "errors": errors.decode()[-500:] if process.returncode else "",
    }


def kill_driver(source: Path, out: Path, num_shards: int) -> dict[str, Any]:
    partial = out.with_name(f"{out.name}.partial")
    process = start_pack(source, out)
    await_shards(partial, num_shards, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = list_finished(partial) if partial.exists() else {}
    process = start_pack(source, out)
    _, errors = process.communicate(timeout=300)
    return describe(process, errors, kept, out)


def kill_node(cluster: Cluster, source: Path, out: Path, num_shards: int) -> dict[str, Any]:
    cluster.wait_for(2)
    process = start_pack(source, out)
    partial = out.with_name(f"{out.name}.partial")
    await_shards(partial, num_shards, process)
    kept = list_finished(partial) if partial.exists() else {}
    node = cluster.processes.pop()
    killed = time.monotonic()
    node.kill()
    node.communicate()
    _, errors = process.communicate(timeout=300)
    seconds = time.monotonic() - killed
    cluster.processes.append(cluster.add_node())
    return {**describe(process, errors, kept, out), "seconds": seconds}


def main(source: Path, out: Path, what: str, num_rounds: int) -> None:
    """Kill again and again, and print what came of it."""
    draws = random.Random(0)
    expected = contents(out.with_name(f"{out.name}.expected"))
    num_shards = sum(name.endswith(".labels.npy") for name in expected)
    with tempfile.TemporaryDirectory(prefix="r-", dir="/tmp") as scratch:
        cluster = Cluster(Path(scratch))
        try:
            cluster.wait_for(2)
            for _ in range(num_rounds):
                number = draws.randrange(1, num_shards)
                if what == "drivers":
                    found = kill_driver(source, out, number)
                else:
                    found = kill_node(cluster, source, out, number)
                names = sorted(path.name for path in out.parent.glob(f"{out.name}*"))
                found["is_same"] = out.exists() and contents(out) == expected
                found["left"] = [n for n in names if n not in (out.name, f"{out.name}.expected")]
                print(json.dumps(found), flush=True)  # noqa: T201
                shutil.rmtree(out, ignore_errors=True)
        finally:
            cluster.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
