"""Compiling: torch.compile with a cache of its own for each object that is compiled.

From: `loading` (the pixel pass), `training` (the step, the update).
To:   the same, as one graph.

Dynamo keeps its graphs with the code of a function, at most 8 of them, whoever compiled it. A
process that opens a ninth loader or run of other shapes would then fall back to eager mode in
silence, or raise under `fullgraph`. A copy of the code is another function to it.
"""

import itertools
import types
from collections.abc import Callable
from typing import Any, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])
_numbers = itertools.count(1)


def compile_apart(function: Function, *, fullgraph: bool = True, mode: str = "default") -> Function:
    """Return `torch.compile(function, dynamic=False)` that shares no cache with other callers.

    Args:
        function: a Python function or a bound method.
        fullgraph: whether a graph break is an error.
        mode: of torch.compile.
    """
    plain: Any = getattr(function, "__func__", function)
    number = next(_numbers)
    copy = types.FunctionType(
        plain.__code__.replace(co_name=f"{plain.__name__}_{number}"),
        plain.__globals__,
        plain.__name__,
        plain.__defaults__,
        plain.__closure__,
    )
    copy.__kwdefaults__ = plain.__kwdefaults__
    compiled: Any = torch.compile(
        copy, fullgraph=fullgraph, dynamic=False, mode=None if mode == "default" else mode
    )
    owner = getattr(function, "__self__", None)
    return compiled if owner is None else types.MethodType(compiled, owner)  # type: ignore[return-value]
