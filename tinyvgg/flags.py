"""Flags: argv to the config of a command, by tyro. No heavy imports before there is a config.

From: `cli`. Each command has a config dataclass in its room; its flags are derived from it.
To:   that config; a usage error, or --help, ends the process.
"""

import sys
from collections.abc import Sequence
from typing import TypeVar

from tinyvgg.errors import naming, printable

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
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except ValueError as error:
        sys.stderr.write(f"tinyvgg {command}: {printable(str(error))}\n")
        raise SystemExit(2) from error
