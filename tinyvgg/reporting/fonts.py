"""Fonts: those of matplotlib for names in any script, as far as this machine has them.

matplotlib's own font has Latin, Greek, Cyrillic and more, and no Chinese, Japanese or Korean. For
what it lacks an installed font is taken that is known to have it.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache

from matplotlib import font_manager, ft2font

logger = logging.getLogger("tinyvgg")

FALLBACKS = (
    "Noto Sans CJK SC",
    "Noto Sans CJK JP",
    "Noto Sans SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "WenQuanYi Zen Hei",
    "Droid Sans Fallback",
    "Hiragino Sans",
    "PingFang SC",
    "Microsoft YaHei",
    "Yu Gothic",
    "MS Gothic",
    "Malgun Gothic",
    "Arial Unicode MS",
    "Noto Sans",
)
DEFAULT = "DejaVu Sans"
warned: set[str] = set()


def _list_installed() -> Iterator[tuple[str, str]]:
    """Yield family and path of matplotlib's own font, then of each installed one of `FALLBACKS`."""
    yield DEFAULT, font_manager.findfont(DEFAULT)
    yield from _list_fallbacks().items()


@cache
def _list_fallbacks() -> dict[str, str]:
    """Return the path of each installed font of `FALLBACKS`, in their order.

    matplotlib keeps its list in a file; fonts that were installed since are added to it here.
    """
    known = {font.fname for font in font_manager.fontManager.ttflist}
    for path in set(font_manager.findSystemFonts()) - known:
        with suppress(RuntimeError, OSError, ValueError):  # what is no font after all
            font_manager.fontManager.addfont(path)
    paths = {font.name: font.fname for font in font_manager.fontManager.ttflist}
    return {name: paths[name] for name in FALLBACKS if name in paths}


@cache
def _list_characters(path: str) -> frozenset[int]:
    return frozenset(ft2font.FT2Font(path).get_charmap())


def choose_fonts(names: Iterable[str]) -> list[str]:
    """Return the families in which texts are drawn; one line is logged for what none has."""
    missing = _list_letters(names)
    families = []
    for family, path in _list_installed():
        if family == DEFAULT or missing & _list_characters(path):
            families.append(family)
            missing -= _list_characters(path)
        if not missing:
            break
    _say_missing(missing)
    return families or [DEFAULT]


def find_font_file(names: Iterable[str]) -> str:
    """Return the path of the one font that has most of some texts; what it lacks is said."""
    wanted = _list_letters(names)
    paths = [path for _, path in _list_installed()]
    best = max(paths, key=lambda path: len(wanted & _list_characters(path)))
    _say_missing(wanted - _list_characters(best))
    return best


def _list_letters(names: Iterable[str]) -> set[int]:
    """Return the characters of some texts that a font has to draw."""
    return {ord(character) for name in names for character in name if character > " "}


def _say_missing(missing: set[int]) -> None:
    """Log a line of characters that no font has, once for each choice of them."""
    shown = "".join(sorted(map(chr, missing)))[:20]
    if shown and shown not in warned:
        warned.add(shown)
        logger.warning(
            "no installed font has %s: boxes stand for them in pictures; install one, "
            "fonts-noto-cjk for example",
            shown,
        )
