"""Operations: what a site does as operations of torch, which vLLM's compiler takes without a look into them.

They are functional: what they give shares no memory with what they take, so that a compiler may reuse either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from vllm.forward_context import get_forward_context

from saegis_server.engine.vllm.places import SiteEdit

_LIBRARY = torch.library.Library("saegis", "FRAGMENT")  # type: ignore[no-untyped-call]
_DEFINED = (
    "steer(Tensor x, str site) -> Tensor",
    "steer_stream(Tensor added, Tensor stream, str site) -> (Tensor, Tensor)",
)


class Compilation(Protocol):
    """What vLLM knows of a forward pass that it compiles."""

    static_forward_context: dict[str, object]


class SiteOperation:
    """A site as code that is compiled sees it. It goes by a name, since what a compiled pass holds is text
    and numbers; each forward pass finds what has that name in its own model."""

    def __init__(self, inner: SiteEdit, name: str, compilation: Compilation) -> None:
        """inner: does the work."""
        self._name = f"saegis.{name}"
        compilation.static_forward_context[self._name] = inner

    def one(self, x: Tensor) -> Tensor:
        """See `SiteEdit`."""
        given: Tensor = torch.ops.saegis.steer(x, self._name)
        return given

    def pair(self, added: Tensor, stream: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """See `SiteEdit`."""
        if stream is None:
            return self.one(added), None
        given: tuple[Tensor, Tensor] = torch.ops.saegis.steer_stream(added, stream, self._name)
        return given


def _named(site: str) -> SiteEdit:
    found: SiteEdit = get_forward_context().no_compile_layers[site]
    return found


def _own(given: Tensor, *taken: Tensor) -> Tensor:
    """What is given, in memory of its own."""
    shared = {each.untyped_storage().data_ptr() for each in taken}
    return given.clone() if given.untyped_storage().data_ptr() in shared else given


def _steer(x: Tensor, site: str) -> Tensor:
    return _own(_named(site).one(x), x)


def _steer_stream(added: Tensor, stream: Tensor, site: str) -> tuple[Tensor, Tensor]:
    first, second = _named(site).pair(added, stream)
    if second is None:
        raise RuntimeError(f"{site}: the stream was lost")
    return _own(first, added, stream), _own(second, added, stream)


def _shape_of_steered(x: Tensor, site: str) -> Tensor:
    return torch.empty_like(x)


def _shapes_of_stream(added: Tensor, stream: Tensor, site: str) -> tuple[Tensor, Tensor]:
    return torch.empty_like(added), torch.empty_like(stream)


_SHAPES: tuple[Callable[..., object], ...] = (_shape_of_steered, _shapes_of_stream)
for _signature, _work, _shape in zip(_DEFINED, (_steer, _steer_stream), _SHAPES, strict=True):
    _name = _signature.partition("(")[0]
    _LIBRARY.define(_signature)  # type: ignore[no-untyped-call]
    _LIBRARY.impl(_name, _work, "CPU")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"saegis::{_name}", _shape, lib=_LIBRARY)
