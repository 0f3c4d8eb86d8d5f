"""The run-time type checker that tests apply to every annotated tensor function.

Shapes and dtypes in the signatures of layers, losses, adapters and objectives are checked at each
call, so a wrong annotation fails a test. While torch traces a program, sizes are symbols instead of
numbers, and nothing is checked.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from beartype import BeartypeConf, beartype

# An int is accepted where a float is annotated, as every static checker does (PEP 484).
_beartyped: Callable[..., Any] = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typechecked[**P, T](function: Callable[P, T]) -> Callable[P, T]:
    """Return the function with its arguments and result checked at each call."""
    checked: Callable[P, T] = _beartyped(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        tracing = torch.compiler.is_compiling()
        return function(*args, **kwargs) if tracing else checked(*args, **kwargs)

    return call
