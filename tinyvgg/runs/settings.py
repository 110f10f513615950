"""Settings: where those of a run come from. No torch here.

From: a named recipe or a file of one, or the run that is resumed; then the flags over them.
To:   `fit`, as a `Recipe` and `RunOptions`. A run keeps them in its config.json:

    recipe     every field of the `Recipe`, resolved
    options    of the `RunOptions` those that a resumed run keeps
    resolved   what `auto` meant here, and the data set
    versions   of what trained it

Before version 0.2 `recipe` and `options` were one object, `config`; it is read as ever.
"""

import json
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import tyro
from pydantic import TypeAdapter, ValidationError

from tinyvgg.errors import CheckpointError
from tinyvgg.flags import parse_config
from tinyvgg.launched import is_first_rank
from tinyvgg.regular import read_regular_file
from tinyvgg.runs.config import RECIPE_PARTS, RunOptions, TrainFlags
from tinyvgg.training.config import RECIPES, Recipe

KEPT_OPTIONS = ("backend", "device", "log_every")
MAX_JSON_BYTES = 2**20  # a config.json has some 1,500


def parse_train_flags(argv: Sequence[str]) -> TrainFlags:
    """Parse the flags of `train` over the defaults of --recipe, or of the run under --resume.

    Raises:
        CheckpointError: there is no run to resume, or its settings cannot be read.
        OSError: the file that --recipe names cannot be read.
        ValueError: --recipe is none, or another than that of the run.
    """
    given, out = find_flag(argv, "--recipe"), find_flag(argv, "--out")
    recipe, changes = read_recipe(given or "fast")
    options = RunOptions()
    if "--resume" in argv and out is not None and _is_read_here(Path(out)):
        stored, options = read_settings(Path(out))
        if given is not None and recipe.name != stored.name:
            raise ValueError(
                f"recipe must stay {stored.name!r} within a run, got {given!r}; leave it out, or "
                "start over with another --out"
            )
        recipe = replace(stored, **changes)
    parts = {name: _part_of(recipe, part) for name, part in RECIPE_PARTS.items()}
    missing: Any = tyro.MISSING
    default = TrainFlags(missing, missing, name=recipe.name, run=options, **parts)
    return parse_config(TrainFlags, "train", argv, default)


def _is_read_here(run: Path) -> bool:
    """Return whether this rank reads a run's settings; others than the first may not see them."""
    return is_first_rank() or (run / "config.json").exists()


def _part_of(recipe: Recipe, part: type) -> Any:
    return part(**{field.name: getattr(recipe, field.name) for field in fields(part)})


def find_flag(argv: Sequence[str], flag: str) -> str | None:
    """Return the value of a flag before the flags are parsed, or None."""
    for position, word in enumerate(argv):
        if word == flag and position + 1 < len(argv):
            return argv[position + 1]
        if word.startswith(f"{flag}="):
            return word.removeprefix(f"{flag}=")
    return None


def read_recipe(given: str) -> tuple[Recipe, dict[str, Any]]:
    """Return a named recipe, or one from a file.

    Args:
        given: a name of `RECIPES`, or the path of a .json file: an object of fields of `Recipe`,
            the rest of which are those of the recipe it names; or the config.json of a run.

    Returns:
        The recipe, and of its fields those that a file sets.

    Raises:
        OSError: the file cannot be read.
        ValueError: there is no such name, or the file holds no recipe.
    """
    if not given.endswith(".json"):
        if given not in RECIPES:
            raise ValueError(
                f"recipe must be one of {', '.join(RECIPES)}, or a .json file, got {given!r}"
            )
        return Recipe.named(given), {}
    try:
        document = json.loads(read_regular_file(given, MAX_JSON_BYTES))
        stored = find_recipe(document)
        recipe = _validate(stored)
        return recipe, {name: getattr(recipe, name) for name in stored if name != "name"}
    except (ValueError, TypeError) as error:
        raise ValueError(f"{given}: holds no recipe ({_name_fault(error)})") from error


def find_recipe(document: Any) -> dict[str, Any]:
    """Return the fields of the recipe in a config.json, in one of before 0.2, or alone.

    Raises:
        TypeError: the document is no object.
        ValueError: it has fields that no recipe has.
    """
    if not isinstance(document, dict):
        raise TypeError("not a JSON object")
    ignored: tuple[str, ...] = ()
    if isinstance(document.get("recipe"), dict):
        stored = dict(document["recipe"])
    elif isinstance(document.get("config"), dict):
        stored, ignored = dict(document["config"]), KEPT_OPTIONS
    else:
        stored = dict(document)
    if "recipe" in stored:
        stored["name"] = stored.pop("recipe")
    stored = {name: value for name, value in stored.items() if name not in ignored}
    unknown = sorted(stored.keys() - {field.name for field in fields(Recipe)})
    if unknown:
        raise ValueError(f"{unknown[0]!r} is no field of a recipe")
    return stored


def _validate(stored: dict[str, Any]) -> Recipe:
    """Return the recipe of fields that nobody checked; the rest is as the recipe they name."""
    defaults = RECIPES.get(str(stored.get("name", "fast")), {})
    return TypeAdapter(Recipe).validate_python({**defaults, **stored})


def _name_fault(error: Exception) -> str:
    """Say in one line what of a document is wrong."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_context=False)[0]
    return ": ".join([*map(str, first["loc"]), first["msg"].removeprefix("Value error, ")])


def read_settings(folder: Path) -> tuple[Recipe, RunOptions]:
    """Return what a run was started with, for --resume; amp as it was resolved.

    Raises:
        CheckpointError: no run there, or its config.json is damaged.
    """
    path = folder / "config.json"
    try:
        document = json.loads(read_regular_file(path, MAX_JSON_BYTES))
        recipe = _validate({**find_recipe(document), "amp": document["resolved"]["amp"]})
        options = document["options"] if "options" in document else document["config"]
        kept = {name: options[name] for name in KEPT_OPTIONS if name in options}
        return recipe, TypeAdapter(RunOptions).validate_python(kept)
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder}: no run to resume; start one without --resume") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: damaged ({_name_fault(error)}); start over") from error
