import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
KERNEL = """
from tinyvgg.kernels import compile_kernel

@compile_kernel
def double(x):
    return 2 * x

@compile_kernel
def quadruple(x):
    return double(double(x))

if __name__ == "__main__":
    print(quadruple(3), sum(quadruple.stats.cache_hits.values()))
"""


def run_kernel(folder: Path, **environment: str) -> tuple[str, str]:
    """Compile and call a kernel in a process of its own; return stdout and stderr."""
    (folder / "kernel.py").write_text(KERNEL)
    done = subprocess.run(
        [sys.executable, "kernel.py"],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{REPOSITORY}", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_machine_code_is_kept_for_the_next_process(tmp_path: Path) -> None:
    kept = str(tmp_path / "cache")

    found = [run_kernel(tmp_path, NUMBA_CACHE_DIR=kept)[0] for _ in range(2)]

    assert found == ["12 0\n", "12 1\n"]


def test_without_a_folder_to_keep_it_in_a_kernel_is_compiled_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "__pycache__").touch()  # no folder: as good as read-only, for root too
    (tmp_path / "home").touch()
    home = str(tmp_path / "home")

    stdout, stderr = run_kernel(tmp_path, HOME=home, XDG_CACHE_HOME=home)

    assert stdout == "12 0\n"
    assert stderr.count("set NUMBA_CACHE_DIR to a folder that can") == 1


@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"\xff" * 100])
def test_a_damaged_cache_is_a_miss_and_is_replaced(
    tmp_path: Path, ending: str, damage: Callable[[bytes], bytes]
) -> None:
    kept = tmp_path / "cache"
    run_kernel(tmp_path, NUMBA_CACHE_DIR=str(kept))
    files = list(kept.rglob(f"*{ending}"))
    assert len(files) >= 1
    for file in files:
        file.write_bytes(damage(file.read_bytes()))

    found = [run_kernel(tmp_path, NUMBA_CACHE_DIR=str(kept))[0] for _ in range(2)]

    assert found == ["12 0\n", "12 1\n"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="NOT RUN: there is no /dev/full")
def test_a_full_disk_costs_only_the_cache(tmp_path: Path) -> None:
    code = "import os, uuid; os.replace = lambda *paths: open('/dev/full', 'wb', 0).write(b'x')\n"
    (tmp_path / "sitecustomize.py").write_text(code)  # numba moves what it wrote into place

    stdout, _ = run_kernel(tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))

    assert stdout == "12 0\n"
