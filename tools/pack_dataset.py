"""Pack a data set from a checkout: `python tools/pack_dataset.py SOURCE OUT`.

The same parser and the same code as `tinyvgg pack`.
"""

import sys

from tinyvgg.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["pack", *sys.argv[1:]]))
