"""Reading a file whole: a regular one, of at most so many bytes, and nothing else.

A FIFO under the name of an image would hang whoever opens it, a device would never end, and a
file of terabytes would take all memory. So a file is opened without waiting, looked at, and only
then read. `os.open` and one `os.read` take 5 µs where `open(path, "rb").read()` takes 8.
"""

import errno
import os
import stat

FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
# What says something of one file; any other errno (EIO, ESTALE, EMFILE, ENOMEM, …) is the
# machine's, and whatever file it was met at may be as good as any.
OF_THE_FILE = frozenset(
    {
        errno.EACCES,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENXIO,
        errno.EPERM,
    }
)


def read_regular_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    """Return the bytes of a file; as `read_with_status`."""
    return read_with_status(path, max_bytes)[0]


def read_with_status(path: str | os.PathLike[str], max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return the bytes of a file, and what the system said of it right before.

    Args:
        path: of it; links are followed.
        max_bytes: above which nothing is read.

    Raises:
        OSError: with the path; EINVAL if it is a FIFO, a socket or a device, EFBIG if it is larger
            than `max_bytes`, and whatever the system says. `is_of_the_file` tells which.
    """
    descriptor = os.open(path, FLAGS)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            code = errno.EISDIR if stat.S_ISDIR(status.st_mode) else errno.EINVAL
            what = "a folder" if code == errno.EISDIR else "a FIFO, a socket or a device"
            raise OSError(code, f"{what}, expected a file", os.fspath(path))
        size = status.st_size
        if size > max_bytes:
            text = f"{size:,} bytes, expected at most {max_bytes:,}"
            raise OSError(errno.EFBIG, text, os.fspath(path))
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more  # a read gives 2 GiB at most, and less from some network file systems
        return data, status
    except OSError as error:
        error.filename = os.fspath(path)
        raise
    finally:
        os.close(descriptor)


def is_of_the_file(error: OSError) -> bool:
    """Tell whether reading failed for what a file is, and not for a fault of the machine."""
    return error.errno in OF_THE_FILE
