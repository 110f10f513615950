"""Worker: one process with the device, which measures the arms it is told to, one after another.

From: `supervise`, a JSON line on stdin: the setting, then an arm at a time.
To:   `supervise`, JSON lines: the machine, then rows of each arm and how it ended.

Whatever a library prints on stdout goes to stderr, so that the answers stay alone.
"""

import gc
import importlib
import json
import os
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, TextIO

import torch

from benchmarks.gpu_arms.plan import Arm, NotMeasured, Setting
from benchmarks.measure import describe_machine

MAX_TRACE = 4000  # characters: torch.compile lists every frame that it has seen


def read_orders(orders: "queue.Queue[dict[str, Any]]") -> None:
    """Pass on what the supervisor asks for; end with it, even in the middle of an arm."""
    for line in sys.stdin:
        orders.put(json.loads(line))
    os._exit(0)


def measure_arm(
    arm: Arm, setting: Setting, send: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Send an arm's rows, and return how it ended."""
    started = time.perf_counter()
    ended: dict[str, Any] = {"status": "measured", "reason": None}
    try:
        module, _, function = arm.target.partition(":")
        for row in getattr(importlib.import_module(module), function)(setting, **arm.options):
            send({"row": row})
    except NotMeasured as error:
        ended = {"status": "not measured", "reason": str(error)}
    except Exception as error:
        print(traceback.format_exc()[:MAX_TRACE], file=sys.stderr)
        first = (str(error).strip() or "no message").splitlines()[0]
        ended = {"status": "failed", "reason": f"{type(error).__name__}: {first}"[:500]}
    return {"end": {**ended, "seconds": time.perf_counter() - started}}


def reset_compiler() -> None:
    """Forget what was compiled; a compiled function that goes in the middle of a reset breaks it.

    A thread of a loader may hold the last reference to one: collecting first is not enough.
    """
    for _ in range(3):
        gc.collect()
        try:
            torch.compiler.reset()
        except RuntimeError as error:
            if "changed size during iteration" not in str(error):
                raise
        else:
            return
    torch.compiler.reset()


def clear_device(setting: Setting) -> bool:
    """Give back what an arm held; return whether this process can go on."""
    try:
        reset_compiler()
        if setting.device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            torch.ones(1, device="cuda").item()
    except Exception as error:  # an illegal access, say, stays for the life of the process
        print(f"this worker cannot go on: {error}", file=sys.stderr)
        return False
    return True


def main() -> None:
    """Answer until stdin ends or the device is lost."""
    answers: TextIO = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=answers, flush=True)

    orders: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=read_orders, args=(orders,), daemon=True).start()
    setting = Setting(**orders.get())
    if setting.is_tiny:  # compiling the step takes a minute of two busy cores
        torch.compiler.set_stance("force_eager")
    send({"machine": describe_machine()})
    while True:
        arm = Arm(**orders.get())
        ended = measure_arm(arm, setting, send)
        is_sound = clear_device(setting)
        send({**ended, "is_last": not is_sound})
        if not is_sound:
            os._exit(1)


if __name__ == "__main__":
    main()
