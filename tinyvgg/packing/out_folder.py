"""OUT: what `pack` may put in its place, and the renames that do it.

From: `pack`, before any work, and once everything is written to OUT.partial beside it.
To:   a folder that appears by one rename, complete, or not at all.

Nothing that is not ours is ever replaced: an empty folder is, a packed one if the user says so.
"""

import errno
import os
import shutil
from pathlib import Path

from tinyvgg.durable import sync_folder
from tinyvgg.errors import DatasetError
from tinyvgg.packing.journal import JOURNAL
from tinyvgg.packing.locking import name_locks
from tinyvgg.regular import read_regular_file
from tinyvgg.shards.manifest import MANIFEST_NAME, SHARD_NAME, is_manifest
from tinyvgg.shards.store import MANIFEST_MAX_BYTES


def resolve_out(given: Path) -> Path:
    """Return where OUT really is: a link stays, what it names is replaced.

    Raises:
        DatasetError: it is the root of a file system, below a file, or a link that leads nowhere.
    """
    out = Path(os.path.realpath(given))
    if not out.name:
        raise DatasetError(f"{given}: the root of a file system; name a folder inside it")
    if out.is_symlink():
        raise DatasetError(f"{given}: a symbolic link that leads to itself; remove it")
    above = next(folder for folder in out.parents if folder.exists())
    if not above.is_dir():
        raise DatasetError(f"{given}: {above} is a file; name a folder elsewhere")
    return out


def check_beside(given: Path, out: Path) -> None:
    """Refuse a folder beside which OUT.partial cannot be written, such as that of a container.

    Args:
        given: OUT as the user names it, for errors.
        out: the same, resolved.

    Raises:
        DatasetError: it is such a folder, and no packed one.
    """
    is_other = out.is_dir() and not (out / MANIFEST_NAME).exists()
    if is_other and not os.access(out.parent, os.W_OK):
        raise DatasetError(
            f"{given}: nothing can be written beside it, in {out.parent}, as it must be; "
            f"name a folder inside it: {given / 'packed'}"
        )


def check_out(given: Path, out: Path, *, overwrite: bool) -> None:
    """Mend what an interrupted `--overwrite` left; refuse an OUT that must not be replaced.

    Raises:
        DatasetError: OUT holds something that is not ours, or that nobody said to replace.
    """
    replaced = _name_replaced(out)
    if replaced.exists():
        if out.exists():
            shutil.rmtree(replaced)
        else:
            replaced.rename(out)
    _mend_journal(out)
    if not out.exists():
        return
    if out.is_dir() and not any(out.iterdir()):
        _check_empty(given, out)
        return
    if not (out / MANIFEST_NAME).is_file():
        remedy = f"remove it, or name a folder inside it: {given / 'packed'}"
        raise DatasetError(
            f"{given}: not a packed folder, so it is not replaced; "
            + (remedy if out.is_dir() else "remove it")
        )
    if not overwrite:
        raise DatasetError(f"{given}: exists already; pass --overwrite to replace it")
    read_packed = "it is not replaced; remove it, or name another folder"
    try:
        is_packed = is_manifest(read_regular_file(out / MANIFEST_NAME, MANIFEST_MAX_BYTES))
    except OSError as error:
        raise DatasetError(f"{out / MANIFEST_NAME}: {error.strerror}; {read_packed}") from error
    if not is_packed:
        raise DatasetError(f"{given}: its {MANIFEST_NAME} is none of pack's; {read_packed}")
    others = sorted(path.name for path in out.iterdir() if not _is_ours(path))
    if others:
        raise DatasetError(
            f"{given}: also holds {others[0]!r}, which pack did not write; move it elsewhere"
        )


def _is_ours(path: Path) -> bool:
    """Tell whether pack wrote a file of a packed folder."""
    is_name = path.name == MANIFEST_NAME or SHARD_NAME.fullmatch(path.name)
    return bool(is_name) and path.is_file() and not path.is_symlink()


def _check_empty(given: Path, out: Path) -> None:
    """Refuse an empty OUT that no other folder can take the place of.

    That of a mount shows only when it is renamed: a bind mount looks like any folder. Whoever
    stands in a folder stays in the old one, and would never see the new one.
    """
    if out == Path.cwd():
        raise DatasetError(
            f"{given}: the working directory, which is not replaced; name a folder inside it, "
            f"say {given / 'packed'}"
        )
    try:
        out.rename(_name_replaced(out))
        _name_replaced(out).rename(out)
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.EXDEV, errno.EACCES, errno.EPERM):
            raise
        raise DatasetError(
            f"{given}: an empty folder that cannot be replaced, as a mount point cannot "
            f"({error.strerror}); name a folder inside it: {given / 'packed'}"
        ) from error


def _mend_journal(out: Path) -> None:
    """Put back the journal of an OUT.partial that was not renamed, or remove that of one that was.

    It stands beside OUT.partial for the moment in which that becomes OUT.
    """
    kept, partial = _name_kept_journal(out), name_partial(out)
    if kept.exists() and partial.exists() and not (partial / JOURNAL).exists():
        kept.rename(partial / JOURNAL)
    elif kept.exists():
        shutil.rmtree(kept)


def publish(partial: Path, out: Path) -> None:
    """Give the finished folder its name, without its journal; an old OUT goes away only now."""
    replaced, kept = _name_replaced(out), _name_kept_journal(out)
    (partial / JOURNAL).rename(kept)
    if out.exists():
        out.rename(replaced)
    partial.rename(out)
    sync_folder(out.parent)
    if replaced.exists():
        shutil.rmtree(replaced)
    shutil.rmtree(kept)


def name_written(out: Path) -> list[Path]:
    """Name all that is written for OUT: itself, its lock, and what it is before and after."""
    beside = name_partial(out), _name_replaced(out), _name_kept_journal(out)
    return [out, *name_locks(out), *beside]


def name_partial(out: Path) -> Path:
    """Name the folder that becomes OUT."""
    return out.with_name(out.name + ".partial")


def _name_kept_journal(out: Path) -> Path:
    """Name the journal while OUT.partial becomes OUT."""
    return out.with_name(out.name + ".partial-journal")


def _name_replaced(out: Path) -> Path:
    """Name the old OUT between two renames; nobody keeps a backup under such a name."""
    return out.with_name(out.name + ".replaced-by-pack")
