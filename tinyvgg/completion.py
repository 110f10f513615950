"""Completion: a script for a shell that completes commands, flags and their choices, by tyro.

From: the config of every command; no torch.
To:   stdout, for `eval "$(tinyvgg --completion bash)"`.
"""

import functools
import operator
from typing import Annotated, Any

import tyro

from tinyvgg.bench.config import BenchConfig
from tinyvgg.inference.config import EvaluateConfig, ExportConfig, PredictConfig
from tinyvgg.packing.config import DownloadConfig, PackConfig, SynthConfig
from tinyvgg.reporting.config import ReportConfig
from tinyvgg.runs.config import TrainFlags
from tinyvgg.shards.config import InspectConfig, VerifyConfig

SHELLS = ("bash", "zsh", "fish")
CONFIGS: dict[str, Any] = {
    "synth": SynthConfig,
    "download": DownloadConfig,
    "pack": PackConfig,
    "verify": VerifyConfig,
    "inspect": InspectConfig,
    "train": TrainFlags,
    "evaluate": EvaluateConfig,
    "predict": PredictConfig,
    "export": ExportConfig,
    "report": ReportConfig,
    "bench": BenchConfig,
}


def print_completion(shell: str) -> None:
    """Print the script for a shell.

    Raises:
        ValueError: it is none of `SHELLS`.
    """
    if shell not in SHELLS:
        raise ValueError(f"completion must be for one of {', '.join(SHELLS)}, got {shell!r}")
    commands: Any = functools.reduce(
        operator.or_,
        (Annotated[config, tyro.conf.subcommand(name)] for name, config in CONFIGS.items()),
    )
    arguments = ["--tyro-print-completion", shell]
    try:
        tyro.cli(commands, prog="tinyvgg", args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    except SystemExit:  # tyro ends the process once it has printed
        return
