"""Launched: what torchrun or SLURM says of this process. No torch here.

From: environment variables.
To:   `ranks`, which joins the others; `cli`, which continues a run whose job was started again.

torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Where `srun` started
several tasks, `adopt_slurm` sets the same five from SLURM's variables, so that one thing is read
from there on. A command in the shell of an sbatch or salloc is no task of a step, and stays alone.
"""

import hashlib
import os
import platform
import subprocess
from collections.abc import MutableMapping
from pathlib import Path

from tinyvgg.errors import RankError

FIRST_PORT, NUM_PORTS = 10_000, 20_000  # under what Linux gives to connections by itself
UNNAMED_JOBS = ("", "none")  # what torchrun calls a job without --rdzv-id


def adopt_slurm(variables: MutableMapping[str, str] = os.environ) -> None:
    """Set torchrun's variables from SLURM's, if `srun` started several tasks of this command.

    Whoever set RANK or WORLD_SIZE has said it: torchrun within `srun`, for example. MASTER_ADDR and
    MASTER_PORT that are set stay as they are; else they are the first host of the step, and a port
    that differs from job to job and from step to step.

    Raises:
        RankError: SLURM cannot say which host is the first one.
    """
    if "RANK" in variables or "WORLD_SIZE" in variables:
        return
    step, rank = variables.get("SLURM_STEP_ID", ""), variables.get("SLURM_PROCID", "")
    num_tasks = variables.get("SLURM_STEP_NUM_TASKS", variables.get("SLURM_NTASKS", "1"))
    if not (step.isdecimal() and rank.isdecimal() and num_tasks.isdecimal()) or int(num_tasks) < 2:
        return
    if "MASTER_ADDR" not in variables:
        nodes = variables.get("SLURM_STEP_NODELIST", variables.get("SLURM_NODELIST", ""))
        variables["MASTER_ADDR"] = find_first_host(nodes)
    if "MASTER_PORT" not in variables:
        job = variables.get("SLURM_JOB_ID", "0")
        number = 31 * int(job if job.isdecimal() else 0) + int(step)
        variables["MASTER_PORT"] = str(FIRST_PORT + number % NUM_PORTS)
    variables["LOCAL_RANK"] = variables.get("SLURM_LOCALID", "0")
    variables["WORLD_SIZE"] = num_tasks
    variables["RANK"] = rank


def find_first_host(nodes: str) -> str:
    """Return the first host of a list of SLURM's, "n[1-4,7]" for example.

    Raises:
        RankError: `scontrol` is missing, or does not understand it.
    """
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.split()[0]
    except (OSError, subprocess.SubprocessError, IndexError) as error:
        raise RankError(
            f"SLURM nodes {nodes!r}: 'scontrol show hostnames' named no host "
            f"({type(error).__name__}); set MASTER_ADDR to the host of rank 0"
        ) from error


def is_first_rank() -> bool:
    """Return whether this process is rank 0, or alone; before it joined any other."""
    return os.environ.get("RANK", "0") == "0"


def count_restarts() -> int:
    """Return how often torchrun has started the processes of its only node again.

    Of several nodes each has a count of its own, and they need not agree: 0 there.
    """
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        return 0
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def keeps_old_addresses() -> bool:
    """Return whether torchrun may start processes on several nodes again, and keeps its store.

    Then a process may be given the address of one that has ended.
    """
    variables = os.environ
    return (
        variables.get("RANK") == "0"
        and variables.get("GROUP_WORLD_SIZE", "1") != "1"
        and variables.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        and variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    )


def name_job() -> str | None:
    """Return what stays the same where torchrun starts the processes of one job again.

    That is the --rdzv-id that it was given, or else the agent that started this process: it
    outlives the processes that it starts again.

    Returns:
        A name, or None without torchrun's agent.
    """
    run_id = os.environ.get("TORCHELASTIC_RUN_ID")
    if run_id is None:
        return None
    if run_id not in UNNAMED_JOBS:
        return f"torchrun --rdzv-id {run_id}"
    agent = f"{platform.node()} {os.getppid()} {_read_start_ticks(os.getppid())}"
    return f"torchrun {hashlib.sha256(agent.encode()).hexdigest()[:16]}"


def _read_start_ticks(process: int) -> str:
    """Return when a process started, so that a number that is given again names another one."""
    try:
        status = Path(f"/proc/{process}/stat").read_text()
    except OSError:  # no Linux: the number alone
        return ""
    return status.rpartition(")")[2].split()[19]
