"""The names at `tinyvgg`, which stay; and what importing them costs."""

import importlib.metadata
import subprocess
import sys

import pytest

import tinyvgg

NAMES = [
    "BackendUnavailable",
    "Callback",
    "CheckpointError",
    "DatasetError",
    "DivergedError",
    "LoaderConfig",
    "RankError",
    "Recipe",
    "RunOptions",
    "ShardError",
    "TinyvggError",
    "VGG_Net",
    "evaluate",
    "fit",
    "load",
    "open_dataset",
    "open_loader",
]


def test_the_public_names_are_these() -> None:
    assert tinyvgg.__all__ == NAMES
    assert dir(tinyvgg) == sorted([*NAMES, "__version__"])


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(tinyvgg, name).__doc__
    assert getattr(tinyvgg, name) is getattr(tinyvgg, name)


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'tinyvgg' has no attribute 'train'"):
        tinyvgg.train  # noqa: B018


def test_importing_tinyvgg_imports_no_dependency() -> None:
    program = "import sys, tinyvgg; dir(tinyvgg); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    packages = {name.partition(".")[0] for name in done.stdout.split()}
    heavy = {"torch", "numpy", "numba", "tyro", "rich", "pydantic", "PIL", "matplotlib"}
    assert packages & heavy == set()


def test_the_version_is_that_of_the_package() -> None:
    assert importlib.metadata.version("tinyvgg") == tinyvgg.__version__
