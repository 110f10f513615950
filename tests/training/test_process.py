import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import tinyvgg
from tinyvgg.training.process import prepare_process

# as a console script does: the working directory is not on the path
CONSOLE = [sys.executable, "-P", "-c", "import sys; from tinyvgg.cli import main; sys.exit(main())"]
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="NOT RUN: not Linux")


def type_command(*words: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*CONSOLE, *words],
        capture_output=True,
        text=True,
        cwd=cwd,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done


@LINUX
@pytest.mark.parametrize("name", ["random.py", "queue.py", "types.py", "tinyvgg/__init__.py"])
def test_files_of_the_working_directory_are_not_imported(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("raise SystemExit('the user\\'s own file was imported')\n")

    assert "usage: tinyvgg bench" in type_command("bench", "--help", cwd=tmp_path).stdout


@LINUX
def test_a_package_that_is_run_from_the_working_directory_is_started_again_from_there(
    tmp_path: Path,
) -> None:
    shutil.copytree(Path(tinyvgg.__file__).parent, tmp_path / "tinyvgg")
    with (tmp_path / "tinyvgg" / "__init__.py").open("a") as file:
        file.write("print('this one')\n")

    done = subprocess.run(
        [sys.executable, "-m", "tinyvgg.cli", "train", "--help"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert "this one\nusage: tinyvgg train" in done.stdout


@LINUX
def test_names_are_utf_8_whatever_the_locale(class_folders: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        (class_folders / split / "bear").rename(class_folders / split / "naïve 猫")
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    type_command("pack", "images", "utf-8", cwd=tmp_path, PYTHONUTF8="1")
    done = type_command("pack", "images", "ascii", cwd=tmp_path, **ascii_only)
    inspected = type_command("inspect", "ascii", cwd=tmp_path, **ascii_only)

    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in ("utf-8", "ascii")]
    assert manifests[0] == manifests[1]
    assert done.stdout == "ascii: 12 train and 6 val images of 3 classes\n"
    assert r"na\xefve \u732b" in inspected.stdout  # stdout keeps the encoding of the locale


def test_a_user_without_a_passwd_entry_gets_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 987_654_321)

    prepare_process(["inspect"])

    assert os.environ.pop("USER") == "987654321"
