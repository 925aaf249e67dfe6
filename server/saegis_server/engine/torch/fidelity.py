"""Fidelity: what a start serves, compared with what Transformers' own code gives for the same tokens.

After the warm-up the served path reads the reference's text in chunks and goes on token by token, alone and
beside another text, steered and not. Where the two differ, nothing is served.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from saegis_server.engine.api import FidelityError, SamplingParams
from saegis_server.engine.torch.context import Mode
from saegis_server.engine.torch.reference import (
    DECODED,
    SHORT,
    PictureReference,
    Reference,
    Seen,
    masks_told,
)
from saegis_server.engine.torch.seeing import Sight
from saegis_server.engine.torch.step import SMALLEST, Extent, Step
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import add
from saegis_server.steering.site import Site

#: How far the root mean square of the difference may lie from zero, relative to the logits' deviation.
TOLERANCE = {torch.float32: 5e-4, torch.bfloat16: 1e-1, torch.float16: 2e-2}


@torch.inference_mode()
def compare(step: Step, reference: Reference) -> None:
    """Raise FidelityError, with both numbers, where the served path differs from the reference."""
    wanted, length = reference.logits, len(reference.tokens)
    first = length - DECODED - 1
    _load(step, 0, reference.tokens)
    middle = max(1, first // 2)
    step.prefill(0, reference.tokens[:middle], 0, _extent(middle), False)
    read = step.prefill(0, reference.tokens[middle:first], middle, _extent(first), False).logits
    one = step.prefill(0, reference.tokens[first : first + 1], first, _extent(first + 1), False).logits
    _require(step, "a prompt read in chunks", torch.cat((read, one)), wanted[:2])
    _require(step, "a text that goes on alone", _decode(step, reference, 1), wanted[2:])
    _load(step, 1, reference.tokens)
    step.prefill(1, reference.tokens[: SHORT // 2], 0, _extent(SHORT // 2), False)
    _require(step, "a text that goes on beside another", _decode(step, reference, 2), wanted[2:])
    if reference.programs:
        _compare_steered(step, reference)
    if reference.picture is not None:
        _compare_picture(step, reference.picture)
    for slot in (0, 1):
        step.slots.release(slot)
    for seen in reference.seen:
        _compare_masks(step, reference, seen)


def _decode(step: Step, reference: Reference, rows: int) -> Tensor:
    """Logits of slot 0 after each of the last tokens, read one by one, beside what `rows` - 1 others read."""
    length, found = len(reference.tokens), []
    step.slots.state.position[0] = length - DECODED
    for place in range(length - DECODED, length):
        step.slots.state.token[0] = reference.tokens[place]
        found.append(step.decode(Extent(SMALLEST, max(place + 1, SHORT)), rows, False).logits[:1])
    return torch.cat(found)


def _compare_steered(step: Step, reference: Reference) -> None:
    tokens, program = reference.tokens[:SHORT], {}
    for site, (probe, size) in reference.programs.items():
        program[site] = SiteProgram(edits=(add(probe, size),))
    slots = step.slots
    slots.load(0, tokens, SamplingParams(temperature=0.0), 0, (), slots.room.admit(program))
    prefill = step.prefill(0, tokens[:-1], 0, _extent(SHORT - 1), False).logits
    slots.state.token[0] = tokens[-1]
    decode = step.decode(_extent(SHORT), 1, False).logits[:1]
    _require(step, "a steered text", torch.cat((prefill, decode)), reference.steered)


def _compare_picture(step: Step, reference: PictureReference) -> None:
    """A text with a picture, read in chunks of which one begins within the picture, plain and steered."""
    program = {
        site: SiteProgram(edits=(add(probe, size),)) for site, (probe, size) in reference.programs.items()
    }
    _require(step, "a text with a picture", _read_picture(step, reference, {}), reference.logits)
    if program:
        found = _read_picture(step, reference, step.slots.room.admit(program))
        _require(step, "a steered text with a picture", found, reference.steered)


def _read_picture(step: Step, reference: PictureReference, program: Mapping[Site, AdmittedRows]) -> Tensor:
    """Logits after the last tokens of a text with a picture, the last of which are decoded."""
    tokens, placed = reference.probe.tokens, reference.probe.placed
    first, cut = len(tokens) - DECODED - 1, (placed.start + placed.end) // 2
    step.slots.load(0, tokens, SamplingParams(temperature=0.0), 0, (), program)
    sight, found = Sight(step.eyes, (placed,)), []
    for start, end in ((0, cut), (cut, first), (first, first + 1)):
        seen = sight.within(start, end)
        found.append(step.prefill(0, tokens[start:end], start, _extent(end), False, seen=seen).logits)
    for place in range(first + 1, len(tokens)):
        step.slots.state.token[0] = tokens[place]
        found.append(step.decode(_extent(place + 1), 1, False).logits[:1])
    return torch.cat(found[1:])


def _compare_masks(step: Step, reference: Reference, seen: Seen) -> None:
    """The masks that a step makes for the last token of a text, against those that Transformers made."""
    context, device = step.context, step.device
    positions = torch.tensor([[seen.length - 1]], device=device)
    context.mode, context.length, context.positions = Mode.DECODE, seen.length, positions
    try:
        found = masks_told(step.model, reference.tokens[0], step.seen)
    finally:
        context.mode, context.length, context.positions = Mode.IDLE, 0, None
    for layer, (ours, theirs) in enumerate(zip(found, seen.layers, strict=True)):
        if not torch.equal(ours, theirs):
            raise FidelityError(
                f"token {seen.length} of a text sees {int(ours.sum())} tokens in layer {layer}, "
                f"and with Transformers' own code {int(theirs.sum())}"
            )


def _load(step: Step, slot: int, tokens: list[int]) -> None:
    step.slots.load(slot, tokens, SamplingParams(temperature=0.0), 0, (), {})


def _extent(length: int) -> Extent:
    return Extent(SMALLEST, max(length, SMALLEST))


def _require(step: Step, what: str, found: Tensor, wanted: Tensor) -> None:
    """Logits [N, V] must be those wanted: after every token in float32; else, where a router's close choice
    may fall otherwise, after most."""
    found = found.float().cpu()
    off = (found - wanted).double().pow(2).mean(-1).sqrt() / wanted.double().std(-1)
    exact = step.model.dtype == torch.float32
    worst = off.max() if exact else off.median()
    if not float(worst) <= TOLERANCE[step.model.dtype]:
        row = int(torch.where(off.isnan(), torch.inf, off).argmax())
        token = int((found[row] - wanted[row]).abs().argmax())
        raise FidelityError(
            f"{what}: the logit of token {token} is {float(found[row, token]):.6g}, and with Transformers' "
            f"own code {float(wanted[row, token]):.6g} (off by {100 * float(worst):.3g} % of the deviation)"
        )
