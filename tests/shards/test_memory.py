"""Memory: what may be taken at once, over threads and after a fork."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from tinyvgg.shards.memory import SMALL_PIXELS, MemoryBudget

LARGE = SMALL_PIXELS + 1


def test_who_wants_too_much_waits_to_be_alone() -> None:
    budget = MemoryBudget(10 * LARGE)

    def take_too_much() -> int:
        with budget.taken(LARGE, 99):
            return budget.free_bytes

    with ThreadPoolExecutor(1) as other:
        with budget.taken(LARGE, 9):
            waiting = other.submit(take_too_much)
            with pytest.raises(TimeoutError):
                waiting.result(timeout=0.2)
        assert waiting.result(timeout=10) == 0
    assert budget.free_bytes == budget.num_bytes


def test_small_images_wait_for_nobody() -> None:
    budget = MemoryBudget(LARGE)

    with budget.taken(LARGE, 1), budget.taken(SMALL_PIXELS, 100):
        assert budget.free_bytes == 0
    assert budget.free_bytes == LARGE


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_has_all_of_it() -> None:
    budget = MemoryBudget(LARGE)

    with budget.taken(LARGE, 1), budget.changed:  # as a thread of the parent may hold both
        child = os.fork()
        if child == 0:
            with budget.taken(LARGE, 1):
                os._exit(0 if budget.free_bytes == 0 else 1)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 0
