"""Compiling: a method of a step as a program of its own, which checks at each call what a step may change."""

import re
from collections.abc import Callable, Sequence
from types import FunctionType, MethodType
from typing import TypeVar, cast

import torch
from torch._dynamo.types import GuardFilterEntry

Result = TypeVar("Result")
#: The sources of what nobody changes once a step is made: its model, and what modules of Python hold.
_UNCHANGED = re.compile(r"(?:\w+\()*(?:self\.model\b|G\[)")


def as_program(method: Callable[..., Result]) -> Callable[..., Result]:
    """A bound method of a step, whose attribute `model` is its model, compiled whole at its first call.

    Dynamo keeps what it has compiled by the code of a function, and tells apart what it was compiled for by
    guards. So the method gets a code of its own: programs of other steps, whose models are not told apart by
    the guards that are left, are never among what is kept for it.
    """
    bound = cast(MethodType, method)
    function = cast(FunctionType, bound.__func__)
    code = function.__code__.replace(co_name=function.__code__.co_name)
    own = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    return torch.compile(
        MethodType(own, bound.__self__),
        fullgraph=True,
        dynamic=False,
        options={"guard_filter_fn": _checked},
    )


def _checked(guards: Sequence[GuardFilterEntry]) -> list[bool]:
    """Which of a program's assumptions are checked at each call: those that a step may break.

    For a Llama of eight layers that leaves 167 of 2,231; to check all took 0.75 ms, of a step of 5 to 8 ms.
    """
    return [_UNCHANGED.match(guard.name) is None for guard in guards]
