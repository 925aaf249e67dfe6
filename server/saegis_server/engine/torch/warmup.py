"""The warm-up: compile every program, then prove with a canary that steering does what the algebra says."""

import shutil
from collections.abc import Callable
from textwrap import shorten

import torch
from torch import Tensor

from saegis_server.engine.api import CanaryError, Progress, SamplingParams
from saegis_server.engine.torch.attention import refusing
from saegis_server.engine.torch.fidelity import compare
from saegis_server.engine.torch.seeing import Seen
from saegis_server.engine.torch.site_reading import edited
from saegis_server.engine.torch.step import SMALLEST, Extent, Step
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Probe, add
from saegis_server.steering.site import Site

#: How far the canary's readings and logits may lie from the reference, relative to their size.
TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2, torch.float16: 1e-2}

#: How many characters of a compiler's message are told.
_BRIEF = 200


class NotCompiledError(RuntimeError):
    """The step cannot be compiled; the message is one sentence, without the compiler's own pages."""


def missing_compiler() -> str | None:
    """Why nothing can be compiled on this machine's CPU, or None if it can."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        compiler = get_cpp_compiler()
    except (InvalidCxxCompiler, RuntimeError):
        return "no C++ compiler was found (g++ or clang++)"
    return None if shutil.which(compiler) else f"the C++ compiler {compiler} does not exist"


def warm_up(step: Step, progress: Progress, kept: bool = False, usage: UsageCounting | None = None) -> None:
    """Compile the three programs, and that which counts the use of features, if any does; then run the canary
    at every site.

    kept: whether they were compiled before, so that they are but traced again and taken from the compiler's
    cache; the first time takes minutes on two cores. Raises NotCompiledError whatever it is that fails in
    compiling, and CanaryError.
    """
    verb = "running" if not step.compiled else "loading compiled" if kept else "compiling"
    known = step.reference
    stages: list[tuple[str, Callable[[], object]]] = [
        (f"{verb} prefill", lambda: step.prefill(0, [0, 1, 2], 0, Extent(SMALLEST, 3), False)),
        *(() if step.eyes is None else ((f"{verb} prefill with pictures", lambda: _see(step)),)),
        (f"{verb} decode", lambda: step.decode(Extent(SMALLEST, 4), 1, False)),
        (f"{verb} the sampler", lambda: step.decode(Extent(SMALLEST, 5), 1, True)),
        *(() if usage is None else ((f"{verb} the count of features", usage.warm_up),)),
        *(() if known is None else (("comparing with Transformers", lambda: compare(step, known)),)),
        *((f"canary at {site}", lambda site=site: _canary(step, site)) for site in step.sites),
    ]
    if usage is not None:
        usage.make(step.compiled)
    for done, (name, run) in enumerate(stages):
        progress(name, done, len(stages))
        try:
            if step.compiled:
                run()
            else:
                with refusing(step.model, name):
                    run()
        except Exception as error:
            if not step.compiled or isinstance(error, CanaryError):
                raise
            raise NotCompiledError(f"the step cannot be compiled ({_in_brief(error)})") from error
    progress("ready", len(stages), len(stages))


def _see(step: Step) -> None:
    """A chunk of a prompt that shows something of a picture: nothing of it, as it happens."""
    width = step.model.config.get_text_config().hidden_size
    vectors = torch.zeros(4, width, dtype=step.model.dtype, device=step.device)
    taken = torch.full((3,), -1, device=step.device)
    step.prefill(0, [0, 1, 2], 0, Extent(SMALLEST, 3), False, seen=Seen(vectors, taken))


def _in_brief(error: Exception) -> str:
    """The first line of what a compiler says, which may be pages."""
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return shorten(first or type(error).__name__, _BRIEF, placeholder=" ...")


@torch.inference_mode()
def _canary(step: Step, site: Site) -> None:
    """Add along a direction at one site, and compare with a plain hook on the model.

    The reading must move by exactly what was added, or not at all where it is written elsewhere, in prefill
    and in decode, and the logits must be those
    of the same model with the same vector added by a forward hook, and not those of the unsteered model.
    """
    slots, width = step.slots, step.slots.room.widths.at(site)
    tokens = [token % slots.vocabulary for token in (3, 1, 4, 1, 5, 9, 2, 6)]
    clean = step.capture(tokens)[site]
    strength = float(clean.float().norm(dim=-1).mean())
    probe = Probe.direction(torch.randn(width, generator=torch.Generator().manual_seed(0)))
    program = slots.room.admit({site: SiteProgram(edits=(add(probe, strength),), watches=(probe,))})
    outputs: list[Tensor] = []
    for steering in ({}, program):
        slots.load(0, tokens, SamplingParams(temperature=0.0), 0, (), steering)
        prefill = step.prefill(0, tokens[:-1], 0, Extent(SMALLEST, len(tokens)), False)
        slots.state.token[0] = tokens[-1]
        decode = step.decode(Extent(SMALLEST, len(tokens)), 1, False)
        outputs.append(torch.cat((prefill.logits[:1], decode.logits[:1])))
        if steering:
            row = step.sites.index(site)
            moved = [
                output.watched[row, 0, -1, 0, 1] - output.watched[row, 0, -1, 0, 0]
                for output in (prefill, decode)
            ]
            wanted = strength if site.written_at == site else 0.0
            _require_close(site, "the reading moved by", torch.stack(moved), wanted, strength, step)
    slots.release(0)
    expected = _with_hook(step, site.written_at, tokens, strength * probe.write.to(step.device))
    spread = float(expected.std())
    _require_close(site, "the steered logits differ by", outputs[1] - expected, 0.0, spread, step)
    if float((outputs[1] - outputs[0]).abs().max()) <= 1e-6 * spread:
        raise CanaryError(f"{site}: an edit of strength {strength:.3g} did not change the logits")


def _require_close(site: Site, what: str, values: Tensor, wanted: float, size: float, step: Step) -> None:
    worst = float((values - wanted).abs().max())
    if not worst <= TOLERANCE[step.model.dtype] * max(size, 1.0):
        raise CanaryError(
            f"{site}: {what} {float(values.flatten()[0]):.6g} instead of {wanted:.6g} (off by {worst:.3g})"
        )


def _with_hook(step: Step, site: Site, tokens: list[int], vector: Tensor) -> Tensor:
    """Float32 logits [2, V] after the last two tokens, `vector` added at the site by a plain hook."""

    def shift(x: Tensor) -> Tensor:
        return (x.float() + vector).to(x.dtype)

    with edited(step.model, site, shift):
        ids = torch.tensor([tokens], device=step.device)
        logits: Tensor = step.model(input_ids=ids, use_cache=False, logits_to_keep=2).logits
        return logits[0].to(torch.float32)
