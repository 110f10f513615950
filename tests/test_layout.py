"""The layout: one arrow, read from the import statements; and what a command must not import.

    packing ─▶ shards ─▶ loading ─▶ training ─▶ inference ─▶ runs ─▶ reporting

A room imports itself and what stands before it. Packing hands over to shards, so it imports
shards, and shards never import packing.
"""

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tinyvgg

PACKAGE = Path(tinyvgg.__file__).parent
ROOMS = ("packing", "shards", "loading", "training", "inference", "runs", "reporting")
# "" is the package itself: docstring and version
FOR_ALL = {"", "errors", "durable", "launched", "options", "regular"}
ALLOWED = {
    "packing": {"packing", "shards"},
    "shards": {"shards"},
    "loading": {*ROOMS[:3], "kernels", "compiling", "ranks"},
    "training": {*ROOMS[:4], "model", "compiling", "ranks"},
    "inference": {*ROOMS[:5], "model", "ranks"},
    "runs": {*ROOMS[:6], "flags", "model", "ranks"},
    "reporting": {*ROOMS, "model", "endings"},
    "bench": {*ROOMS[:5], "bench", "model", "ranks"},
    "flags": set(),
    "completion": {*ROOMS, "bench"},
    "cli": {*ROOMS, "bench", "completion", "endings", "flags", "model", "cli", "ranks"},
    "model": {"model", "kernels"},
    "kernels": set(),
    "compiling": set(),
    "ranks": set(),
    "launched": {"errors"},
    "errors": set(),
    "endings": {"errors"},
    "durable": {"errors"},
    "": {"errors", "inference", "loading", "model", "runs", "shards", "training"},  # lazily
    "options": set(),
    "regular": set(),
}
HEAVY = {"torch", "torchvision", "numba", "matplotlib", "nvidia"}
FORBIDDEN_NAMES = {"utils", "helpers", "common", "misc", "core", "base", "manager", "handler"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room_of(file: Path) -> str:
    """Return the room of a file, the name of a file beside the rooms, or "" for the package."""
    return file.relative_to(PACKAGE).with_suffix("").parts[0].replace("__init__", "")


def import_statements(file: Path) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import of a file: inside functions and under TYPE_CHECKING, too."""
    for node in ast.walk(ast.parse(file.read_text("utf-8"), str(file))):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node


def imported_modules(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name); `from a import b` may mean module a.b, so it gives both."""
    for node in import_statements(file):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        else:
            yield node.lineno, node.module or ""
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def imported_rooms(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, room) for what a file imports from the package."""
    known = {room_of(other) for other in FILES}
    for line, module in imported_modules(file):
        package, *rest = module.split(".")
        if package == "tinyvgg":
            yield line, rest[0] if rest and rest[0] in known else ""


@pytest.mark.parametrize("room", ALLOWED)
def test_a_room_imports_only_what_stands_before_it(room: str) -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {imported or 'tinyvgg'}"
        for file in FILES
        if room_of(file) == room
        for line, imported in imported_rooms(file)
        if imported not in ALLOWED[room] | FOR_ALL
    ]

    assert wrong == []


def test_every_file_stands_in_a_known_room_or_beside_the_rooms() -> None:
    assert {room_of(file) for file in FILES} == set(ALLOWED)


def test_the_reader_of_imports_sees_a_wrong_arrow(tmp_path: Path) -> None:
    source = (
        "import torch\ndef f():\n    from tinyvgg.training import step\n    import tinyvgg.cli\n"
    )
    (tmp_path / "x.py").write_text(source)

    rooms = list(imported_rooms(tmp_path / "x.py"))

    assert rooms == [(3, "training"), (3, "training"), (4, "cli")]


def test_imports_are_absolute() -> None:
    relative = [
        f"{file.relative_to(PACKAGE)}:{node.lineno}"
        for file in FILES
        for node in import_statements(file)
        if isinstance(node, ast.ImportFrom) and node.level
    ]

    assert relative == []


@pytest.mark.parametrize("room", ["packing", "shards"])
def test_the_disk_half_names_no_torch(room: str) -> None:
    wrong = [
        f"{file.relative_to(PACKAGE)}:{line} imports {module}"
        for file in FILES
        if room_of(file) == room
        for line, module in imported_modules(file)
        if module.split(".")[0] in HEAVY
    ]

    assert wrong == []


@pytest.mark.parametrize("file", [f for f in FILES if f.name == "config.py"], ids=room_of)
def test_a_config_imports_nothing_heavy_and_no_more_than_other_configs(file: Path) -> None:
    modules = {module for _, module in imported_modules(file)}

    assert not {module.split(".")[0] for module in modules} & (HEAVY | {"numpy", "pydantic"})
    assert all(
        ".config" in module or "tinyvgg.options" in module
        for module in modules
        if module.startswith("tinyvgg")
    )


def test_no_file_has_a_name_that_says_nothing() -> None:
    names = {part for file in FILES for part in file.relative_to(PACKAGE).with_suffix("").parts}

    assert names & FORBIDDEN_NAMES == set()


def heavy_modules_after(code: str) -> set[str]:
    """Run code in a new interpreter and return which heavy packages it imported."""
    report = "import json, sys; print(json.dumps(list(sys.modules)), file=sys.stderr)"
    program = f"import atexit\natexit.register(lambda: exec({report!r}))\n{code}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    return HEAVY & {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}


@pytest.mark.parametrize(
    "command",
    [
        "",
        "pack",
        "verify",
        "inspect",
        "synth",
        "download",
        "train",
        "evaluate",
        "predict",
        "export",
    ],
)
def test_help_imports_no_torch_numba_or_matplotlib(command: str) -> None:
    argv = [*command.split(), "--help"]

    assert heavy_modules_after(f"from tinyvgg.cli import main\nmain({argv})") == set()


@pytest.mark.parametrize(
    "module",
    [
        "tinyvgg",
        "tinyvgg.cli",
        "tinyvgg.packing.pack",
        "tinyvgg.packing.synthetic",
        "tinyvgg.packing.download",
        "tinyvgg.shards",
        "tinyvgg.shards.store",
        "tinyvgg.loading",
        "tinyvgg.training.config",
        "tinyvgg.inference.config",
        "tinyvgg.runs.settings",
    ],
)
def test_these_modules_import_no_torch_numba_or_matplotlib(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == set()


def test_the_check_of_a_new_interpreter_sees_matplotlib() -> None:
    assert "matplotlib" in heavy_modules_after("import matplotlib")
