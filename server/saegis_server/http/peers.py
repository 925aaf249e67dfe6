"""Peers' names: steering as other servers' clients write it, as the contract's edits where it means the same.

`steering_vectors`, with `prefill_` or `decode_` before it or not, and `sae_clamp_specs` are those of the fork
of vLLM by RhizoNymph.
"""

import math
from collections.abc import Iterator

from saegis.v1 import steering_pb2 as pb
from saegis_server.engine.api import FieldError
from saegis_server.http import body
from saegis_server.http.shape import told

#: An edit, and where in the body it stands.
Placed = tuple[str, pb.Edit]
#: What the places of a block are called here; the others have no counterpart.
_PLACES = {"post_block": "resid_post"}
_PHASES = {"both": pb.PHASE_ALL, "prefill": pb.PHASE_PROMPT, "decode": pb.PHASE_COMPLETION}
#: The phase of each field of vectors.
VECTORS = {
    "steering_vectors": pb.PHASE_ALL,
    "prefill_steering_vectors": pb.PHASE_PROMPT,
    "decode_steering_vectors": pb.PHASE_COMPLETION,
}
CLAMPS = "sae_clamp_specs"


def vectors(path: str, value: object) -> Iterator[Placed]:
    """The edits of a field of vectors, {place: {layer: numbers or {vector, scale}}}. Raises FieldError."""
    for place, layer, entry, where in _by_site(path, value):
        scale = 1.0
        if isinstance(entry, dict):
            _known(where, entry, {"vector", "scale"})
            scale = body.number(f"{where}.scale", entry.get("scale", 1.0))
            where, entry = f"{where}.vector", entry.get("vector")
        values = [body.number(f"{where}[{at}]", each) for at, each in enumerate(body.listed(where, entry))]
        yield (
            where,
            pb.Edit(
                operation=pb.OPERATION_ADD,
                direction=pb.Direction(values=values),
                site=f"layers.{layer}.{place}",
                value=math.hypot(*values) * scale,
                phase=VECTORS[path],
            ),
        )


def clamps(value: object) -> Iterator[Placed]:
    """The edits of `sae_clamp_specs`. Raises FieldError."""
    for number, spec in enumerate(body.listed(CLAMPS, value)):
        path = f"{CLAMPS}[{number}]"
        entries = body.mapping(path, spec)
        _known(path, entries, {"module_name", "phase", "clamps"})
        sae = body.text(f"{path}.module_name", entries.get("module_name"))
        phase = _PHASES.get(body.text(f"{path}.phase", entries.get("phase", "both")))
        if phase is None:
            raise FieldError(f"{path}.phase", f"must be one of {', '.join(_PHASES)}")
        for place, layer, listed, where in _by_site(f"{path}.clamps", entries.get("clamps")):
            for at, clamp in enumerate(body.listed(where, listed)):
                edit = _clamp(f"{where}[{at}]", body.mapping(f"{where}[{at}]", clamp))
                edit.feature.sae, edit.site, edit.phase = sae, f"layers.{layer}.{place}", phase
                yield f"{where}[{at}]", edit


def _clamp(path: str, entry: dict[str, object]) -> pb.Edit:
    _known(path, entry, {"feature_idx", "kind", "value", "only_if_active"})
    gated = body.boolean(f"{path}.only_if_active", entry.get("only_if_active", False))
    match entry.get("kind"):
        case "absolute":
            operation = pb.OPERATION_CLAMP_IF_ACTIVE if gated else pb.OPERATION_CLAMP
        case "additive":
            if gated:
                raise FieldError(f"{path}.only_if_active", "has no counterpart here for an additive clamp")
            operation = pb.OPERATION_ADD
        case _:
            raise FieldError(f"{path}.kind", "must be absolute or additive")
    index = body.integer(f"{path}.feature_idx", entry.get("feature_idx"))
    if not 0 <= index < 2**32:
        raise FieldError(f"{path}.feature_idx", f"must be between 0 and {2**32 - 1}, not {index}")
    value = body.number(f"{path}.value", entry.get("value"))
    return pb.Edit(operation=operation, feature=pb.FeatureRef(index=index), value=value)


def _by_site(path: str, value: object) -> Iterator[tuple[str, int, object, str]]:
    """The place, the layer, the entry and its path of {place: {layer: entry}}."""
    for name, layers in body.mapping(path, value).items():
        place = _PLACES.get(name)
        if place is None:
            raise FieldError(f"{path}.{name}", f"must be one of {', '.join(_PLACES)}")
        for layer, entry in body.mapping(f"{path}.{name}", layers).items():
            where = f"{path}.{name}.{layer}"
            if not (layer.isascii() and layer.isdecimal() and len(layer) < 6):
                raise FieldError(where, "must be the number of a layer")
            if isinstance(entry, dict) and "data" in entry:
                raise FieldError(where, f"must be numbers in JSON, not packed ones ({told(entry)})")
            yield place, int(layer), entry, where


def _known(path: str, entry: dict[str, object], names: set[str]) -> None:
    for name in entry:
        if name not in names:
            raise FieldError(f"{path}.{name}", "has no counterpart here")
