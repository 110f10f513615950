"""TensorBoard: the history of a run as event files. The package is an extra.

From: `training`, the metrics of all epochs so far.
To:   RUN/tensorboard, for `tensorboard --logdir`.

The files are written anew after each epoch, from the whole history, so a resumed run shows no
epoch twice.
"""

import importlib.util
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOT_DRAWN = ("epoch", "step")


def check_installed() -> None:
    """Raise a ValueError that says what to install, unless TensorBoard is there."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ValueError(
            "tensorboard must be installed for --tensorboard; run pip install tensorboard"
        )


def write_events(history: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write one scalar a metric and epoch, by step.

    Args:
        history: one dictionary an epoch, with step and numbers.
        folder: replaced.
    """
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder, ignore_errors=True)
    with SummaryWriter(str(folder)) as writer:
        for metrics in history:
            for name, value in metrics.items():
                if name not in NOT_DRAWN and value is not None:
                    writer.add_scalar(name.replace("_", "/", 1), value, metrics["step"])
