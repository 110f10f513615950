"""Install: an environment for each lock in locks/, beside the project's packages.

    python -m benchmarks.peers.install FOLDER [NAME ...]

FOLDER/NAME gets exactly the versions of locks/NAME.txt, and sees the packages of the interpreter
that runs this (torch, numpy) where the lock has none. A peer that cannot be installed leaves its
reason in FOLDER/NAME.failed; the others go on. What is installed from the same lock is left alone.
FFCV is compiled: it needs pkg-config, OpenCV's and libturbojpeg's headers (Debian: libopencv-dev,
libturbojpeg0-dev).
"""

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

LOCKS = Path(__file__).with_name("locks")
BUILD = ("setuptools==80.9.0", "wheel==0.45.1")  # for what is compiled: FFCV's setup wants them


def install(folder: Path, name: str) -> str | None:
    """Make one environment; return why it cannot be, or None."""
    lock = LOCKS / f"{name}.txt"
    place, stamp, failed = folder / name, folder / name / "lock.txt", folder / f"{name}.failed"
    if stamp.exists() and stamp.read_text() == lock.read_text():
        return None
    venv.EnvBuilder(clear=True, with_pip=True).create(place)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    shared = place / "lib" / version / "site-packages" / "project.pth"
    shared.write_text(sysconfig.get_path("purelib") + "\n")
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-compile"]
    words = ["--no-deps", "--no-build-isolation", "-r", str(lock)]
    for given in (list(BUILD), words) if name == "ffcv" else (words,):
        done = subprocess.run([*pip, *given], capture_output=True, text=True, errors="replace")
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "rror" in line]
            reason = (lines or done.stderr.splitlines() or ["pip failed"])[0].strip()[:200]
            failed.write_text(reason + "\n")
            return reason
    failed.unlink(missing_ok=True)
    stamp.write_text(lock.read_text())
    return None


def main() -> int:
    """Install all, or those that are named; say what could not be."""
    folder, names = Path(sys.argv[1]).absolute(), sys.argv[2:]
    folder.mkdir(parents=True, exist_ok=True)
    for name in names or sorted(lock.stem for lock in LOCKS.glob("*.txt")):
        reason = install(folder, name)
        print(f"{name}: {'ready' if reason is None else f'not installed: {reason}'}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
