"""Reading a run folder for its page: whatever is there, and what is not.

From: a folder that `train` wrote, finished, killed or copied in part.
To:   `page`. Every file is checked; a missing or damaged one is a sentence on the page.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from tinyvgg.errors import CheckpointError
from tinyvgg.regular import read_regular_file
from tinyvgg.runs.checkpoint import EpochRecord
from tinyvgg.runs.scored import Scored, read_scored

MAX_JSON_BYTES = 64 * 2**20

Read = TypeVar("Read")


@dataclass(frozen=True)
class ReportedRun:
    """What a run folder holds.

    Attributes:
        path: of the folder.
        config: config.json; empty if that is missing.
        history: scored epochs.
        scored: the last evaluation.
        missing: what is not there, one sentence each.
    """

    path: Path
    config: dict[str, Any]
    history: list[EpochRecord]
    scored: Scored | None
    missing: list[str]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.resolve().name

    def section(self, name: str) -> dict[str, Any]:
        """Return an object of config.json; empty where there is none."""
        found = self.config.get(name)
        return found if isinstance(found, dict) else {}

    @property
    def num_epochs(self) -> int | None:
        """Epochs of the recipe, where it can be read."""
        found = self.section("recipe").get("epochs")
        return found if isinstance(found, int) else None

    @property
    def best(self) -> EpochRecord | None:
        """The epoch with the best validation top-1, the first one of several."""
        return max(self.history, key=lambda record: record.val_top1, default=None)


def read_run(path: Path) -> ReportedRun:
    """Read a run folder.

    Raises:
        CheckpointError: it holds no run.
    """
    names = ("config.json", "metrics.jsonl", "scored.json")
    if not any((path / name).exists() for name in names):
        found = "holds no run" if path.is_dir() else "no such folder"
        raise CheckpointError(
            f"{path}: {found} ({', '.join(names)}: none is there); "
            "pass the --out of 'tinyvgg train'"
        )
    missing: list[str] = []

    def take(name: str, what: str, read: Callable[[Path], Read], instead: Read) -> Read:
        try:
            return read(path / name)
        except FileNotFoundError:
            missing.append(f"{name} is missing: {what}")
        except (OSError, ValueError, CheckpointError) as error:
            reason = " ".join(str(error).split())[:200]
            missing.append(f"{name} cannot be read ({reason}): {what}")
        return instead

    no_config: dict[str, Any] = {}
    no_history: list[EpochRecord] = []
    config = take("config.json", "no recipe and no environment are shown.", _read_config, no_config)
    history = take(
        "metrics.jsonl", "no epoch was scored, so there are no curves.", _read_history, no_history
    )
    scored = take(
        "scored.json",
        "the run was killed before its end, or is older than this page, so there is no confusion "
        "matrix, and no class or image is shown. 'tinyvgg train --resume' writes it at its end.",
        _read_scored,
        None,
    )
    run = ReportedRun(path, config, history, scored, missing)
    if run.num_epochs is not None and 0 < len(history) < run.num_epochs:
        missing.append(
            f"{len(history)} of {run.num_epochs} epochs are scored: the run was stopped, reached "
            "its target, or is still going on."
        )
    if history and scored is not None and scored.epoch != history[-1].epoch:
        missing.append(
            f"scored.json is of epoch {scored.epoch + 1}, and {len(history)} are scored: what it "
            "shows is older than the curves."
        )
    return run


def _read_config(path: Path) -> dict[str, Any]:
    document = json.loads(read_regular_file(path, MAX_JSON_BYTES))
    if not isinstance(document, dict):
        raise ValueError("not a JSON object")
    return document


def _read_history(path: Path) -> list[EpochRecord]:
    adapter = TypeAdapter(EpochRecord)
    lines = read_regular_file(path, MAX_JSON_BYTES).decode(errors="replace").splitlines()
    try:
        return [adapter.validate_json(line) for line in lines if line.strip()]
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from error


def _read_scored(path: Path) -> Scored | None:
    return read_scored(path)
