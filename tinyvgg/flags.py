"""Flags: argv to the config of a command, by tyro. No heavy imports before there is a config.

From: `cli`. Each command has a config dataclass in its room; its flags are derived from it.
To:   that config; a usage error, or --help, ends the process.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tinyvgg.errors import naming, printable

if TYPE_CHECKING:
    from tinyvgg.training.config import TrainConfig

Config = TypeVar("Config")


def parse_config(
    config_class: type[Config], command: str, argv: Sequence[str], default: Config | None = None
) -> Config:
    """Parse a command's flags into its config; a usage error ends with status 2."""
    import tyro

    try:
        with naming("stdout"):  # it prints the help
            return tyro.cli(  # type: ignore[return-value]
                config_class,
                prog=f"tinyvgg {command}",
                args=list(argv),
                default=default,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except ValueError as error:
        sys.stderr.write(f"tinyvgg {command}: {printable(str(error))}\n")
        raise SystemExit(2) from error


def parse_train_config(argv: Sequence[str]) -> "TrainConfig":
    """Parse the flags of `train` over the defaults of --recipe, or of the run under --resume."""
    import tyro

    from tinyvgg.training.config import RECIPES, TrainConfig

    recipe = find_flag(argv, "--recipe")
    out = find_flag(argv, "--out")
    missing: Any = tyro.MISSING
    default = TrainConfig(missing, missing, **RECIPES.get(recipe or "fast", {}))
    if "--resume" in argv and out is not None:
        from tinyvgg.runs.folder import read_run_config

        default = replace(read_run_config(Path(out)), packed=missing, out=missing)
    return parse_config(TrainConfig, "train", argv, default)


def find_flag(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag before the flags are parsed, or None."""
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None
