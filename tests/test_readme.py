"""The README and PYTHON.md: their examples run as they stand there; the README stays short."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tinyvgg.shards.store import PackedDataset

README = Path(__file__).parents[1] / "README.md"
PYTHON = README.parent / "tinyvgg" / "PYTHON.md"
EXAMPLES = [
    example
    for path in (README, PYTHON)
    for example in re.findall(
        r"^```python\n(.*?)^```", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
]
TITLES = ("fit and evaluate", "own loop", "own network", "own transform")


def test_there_are_these_examples_and_under_250_lines_of_readme() -> None:
    assert len(EXAMPLES) == len(TITLES)
    assert len(README.read_text("utf-8").splitlines()) < 250
    assert len([line for line in EXAMPLES[0].splitlines() if line]) <= 8


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=TITLES)
def test_an_example_runs_as_it_stands(
    example: str, pack_arrays: Callable[..., PackedDataset], tmp_path: Path
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (36, 64, 64, 3)).astype(np.uint8)
    labels = np.arange(36) % 3
    pack_arrays("packed", images, labels, images[:6], labels[:6])

    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )

    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed"]


@pytest.mark.parametrize(
    "path", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README.read_text("utf-8"))))
)
def test_what_the_readme_links_to_is_there(path: str) -> None:
    assert (README.parent / path).exists()
