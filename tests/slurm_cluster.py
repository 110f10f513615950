"""A SLURM cluster of two nodes on loopback, all of it in one folder; needs root and slurm-wlm."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol")
CONFIG = """
ClusterName=loopback
SlurmUser=root
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool.%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
KillWait=5
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port_1} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={node_port_2} CPUs=1
PartitionName=main Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def why_no_slurm() -> str | None:
    """Return why no cluster can be started here, or None."""
    if os.getuid() != 0:
        return "SLURM daemons need root"
    path = f"{os.environ.get('PATH', '')}:/usr/sbin"
    missing = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    if missing:
        return f"no {', '.join(missing)}; apt-get install slurm-wlm munge"
    return None


@contextmanager
def slurm_cluster() -> Iterator[dict[str, str]]:
    """Run a cluster for the length of a `with` block.

    Returns:
        A context manager that gives the environment for `srun` and its like.
    """
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        folder.chmod(0o755)
        (folder / "state").mkdir()
        ports = _find_ports(3)
        config = CONFIG.format(
            folder=folder,
            host=socket.gethostname(),
            port=ports[0],
            node_port_1=ports[1],
            node_port_2=ports[2],
        )
        (folder / "slurm.conf").write_text(config)
        environment = {key: value for key, value in os.environ.items() if "SLURM" not in key}
        environment |= {"SLURM_CONF": str(folder / "slurm.conf")}
        environment["PATH"] = f"{environment['PATH']}:/usr/sbin"
        munge = folder / "munge"
        munge.mkdir()
        (munge / "key").write_bytes(os.urandom(1024))
        (munge / "key").chmod(0o600)
        for path in (munge, munge / "key"):
            shutil.chown(path, "munge", "munge")
        places = [f"--{name}={munge}/{name.removesuffix('-file')}" for name in
                  ("key-file", "socket", "pid-file", "log-file", "seed-file")]  # fmt: skip
        commands = [
            ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups",
             "munged", "--foreground", *places],
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "n1"],
            ["slurmd", "-D", "-N", "n2"],
        ]  # fmt: skip
        for number, command in enumerate(commands):
            log = stack.enter_context((folder / f"daemon-{number}.log").open("wb"))
            daemon = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(_end, daemon)
            if "munged" in command:
                _wait_until(lambda: (munge / "socket").exists(), "munged makes its socket", folder)
        _wait_until(lambda: _count_idle(environment) == 2, "both nodes are idle", folder)
        stack.callback(_cancel_jobs, environment)  # before the daemons end, or they go on
        yield environment


def _cancel_jobs(environment: dict[str, str]) -> None:
    """End all jobs, and wait until their processes have ended."""
    end = time.monotonic() + 30
    while time.monotonic() < end:
        command = ["squeue", "--noheader", "--format=%A"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if not (jobs := done.stdout.split()):
            return
        subprocess.run(["scancel", "--signal=KILL", *jobs], env=environment, capture_output=True)
        subprocess.run(["scancel", *jobs], env=environment, capture_output=True)
        time.sleep(0.5)


def _count_idle(environment: dict[str, str]) -> int:
    command = ["sinfo", "--noheader", "--Node", "--format=%T"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.stdout.split().count("idle")


def _wait_until(is_true: object, what: str, folder: Path, limit_sec: float = 60) -> None:
    assert callable(is_true)
    end = time.monotonic() + limit_sec
    while not is_true():
        if time.monotonic() > end:
            logs = "\n".join(
                f"{path.name}: {path.read_text()[-800:]}" for path in folder.glob("*.log")
            )
            raise TimeoutError(f"waited {limit_sec} s until {what}\n{logs}")
        time.sleep(0.1)


def _find_ports(count: int) -> list[int]:
    """Return ports that nothing listens on."""
    with ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]


def _end(daemon: "subprocess.Popen[bytes]") -> None:
    daemon.terminate()
    try:
        daemon.wait(10)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
