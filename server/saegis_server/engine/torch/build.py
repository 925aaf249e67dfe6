"""Building: a step of a model as its settings ask and this machine allows, then made ready to run."""

import logging
from collections.abc import Iterable, Mapping, Sequence

import torch

from saegis_server.amounts import Portion, in_units
from saegis_server.engine.api import Limits, Progress
from saegis_server.engine.torch.attention import refusing
from saegis_server.engine.torch.compile_cache import CompileCacheError, Kept, settle
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.memory import free_bytes, is_want_of_memory
from saegis_server.engine.torch.places import check_places
from saegis_server.engine.torch.reference import probe_of, record, record_picture
from saegis_server.engine.torch.rope import freeze_rope
from saegis_server.engine.torch.sizing import (
    FEWEST_SLOTS,
    SHARE_OF_CPU,
    SHARE_OF_GPU,
    USUAL_SLOTS,
    Size,
    Wishes,
    fit,
    needs_of,
)
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import Step
from saegis_server.engine.torch.support import survey
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.engine.torch.warmup import NotCompiledError, missing_compiler, warm_up
from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site, forward_order
from saegis_server.steering.table import Capacity

_LOG = logging.getLogger(__name__)


def compiles(choice: str, device: str, progress: Progress) -> bool:
    """Whether to compile, by a choice of auto, always or never. Raises ValueError if it must and cannot."""
    if choice == "never":
        return False
    reason = missing_compiler() if device == "cpu" else None
    if reason is None:
        return True
    if choice == "always":
        raise ValueError(f"compile is 'always', but {reason}")
    _tell_eager(reason, progress)
    return False


def build_step(
    loaded: LoadedModel,
    norms: Mapping[Site, frozenset[Norm]],
    wishes: Wishes,
    capacity: Capacity,
    compiled: bool,
    progress: Progress,
    keeps: Iterable[Site] = (),
    taken: int = 0,
    ranked: Mapping[Site, Sequence[RankedDictionary]] | None = None,
) -> Step:
    """A step with the slots that are wished for, or those that the memory has room for, which is told.

    norms: the normalisations that are used at each site, in any order. keeps: see Step. taken: how many bytes
    of what is free something else will take. ranked: the SAEs that decide by rank, on the model's device.
    Raises UnsupportedModelError for a model that the engine cannot
    run, SiteError for a site that the model does not have or that is not what its name says, and ValueError,
    before anything is allocated, for slots that it does not have or for which there is no memory.
    """
    survey(loaded.model)
    with refusing(loaded.model, "Transformers' own code"):
        check_places(loaded.model, norms)
    in_order = {site: norms[site] for site in sorted(norms, key=forward_order)}
    for each in (each for at_site in (ranked or {}).values() for each in at_site):
        taken += each.scratch(max(Limits().prefill_chunk, wishes.count or USUAL_SLOTS))
    size, told = _size(loaded, tuple(in_order), wishes, capacity, taken)
    progress(told, 0, 0)
    if (frozen := freeze_rope(loaded.model, size.length)) is not None:
        _LOG.warning("%s", frozen)
    eyes = loaded.eyes
    with refusing(loaded.model, "Transformers' own code"):
        reference = record(loaded.model, in_order, size.length)
        if eyes is not None and (probe := probe_of(eyes)).length > size.length:
            progress(
                f"pictures are refused: one takes {len(probe.placed.shown.tokens)} tokens of a prompt, and "
                f"the context has {size.length}",
                0,
                0,
            )
            eyes = None
        elif eyes is not None and reference is not None:
            reference = reference._replace(picture=record_picture(loaded.model, in_order, eyes, probe))
    try:
        slots = Slots(loaded.model, tuple(in_order), size.count, size.length, capacity, ranked=ranked)
    except Exception as error:
        if not is_want_of_memory(error):
            raise
        raise ValueError(f"{told}, but they are not to be had: lower kv_memory") from error
    return Step(loaded.model, in_order, slots, compiled, keeps, reference, eyes)


def _size(
    loaded: LoadedModel, sites: tuple[Site, ...], wishes: Wishes, capacity: Capacity, taken: int
) -> tuple[Size, str]:
    """The slots to make, and in a line what they take. Raises ValueError for what does not fit."""
    context, device = loaded.max_context, loaded.model.device
    if wishes.length is not None and wishes.length > context:
        raise ValueError(f"max_model_len is {wishes.length}; the model's context has {context} tokens")
    free = max(0, free_bytes(device) - taken)
    share = SHARE_OF_GPU if device.type == "cuda" else SHARE_OF_CPU
    budget = (wishes.memory or Portion(share=share)).of(free)
    if budget > free:
        raise ValueError(
            f"kv_memory is {in_units(budget)}, but after the weights {in_units(free)} are free on {device}"
        )
    needs = needs_of(loaded.model, sites, capacity)
    count = None if wishes.count is None else max(wishes.count, FEWEST_SLOTS)
    size = fit(needs, budget, context, count, wishes.length)
    takes = in_units(needs.of(size.count, size.length))
    told = f"memory for {size}: {takes} of the {in_units(free)} that are free after the weights"
    if wishes.length is None and size.length < context:
        told += f"; the model's whole context has {context} tokens, for which there is no room"
    return size, told


def make_ready(
    step: Step, progress: Progress, must_compile: bool, usage: UsageCounting | None = None
) -> None:
    """Compile the step, and what counts the use of features, and run its canary. One that cannot be compiled
    runs eagerly, which is told.

    Raises CanaryError, and NotCompiledError if it must be compiled.
    """
    try:
        _warm_up(step, progress, usage)
    except NotCompiledError as error:
        if must_compile:
            raise
        _LOG.debug("the step cannot be compiled", exc_info=error)
        _tell_eager(str(error), progress)
        step.run_eagerly()
        warm_up(step, progress, usage=usage)


def _warm_up(step: Step, progress: Progress, usage: UsageCounting | None) -> None:
    if not step.compiled:
        return warm_up(step, progress, usage=usage)
    try:
        kept = Kept(settle(), _kind(step))
    except CompileCacheError as error:
        raise NotCompiledError(str(error)) from error
    if not kept:
        progress(f"compiling, once on this machine, for some minutes; kept in {kept.folder}", 0, 0)
    warm_up(step, progress, bool(kept), usage)
    kept.note()
    return None


def _kind(step: Step) -> tuple[object, ...]:
    """What tells a step's compiled programs from those of others."""
    model, slots = step.model, step.slots
    sites = sorted(f"{site} {sorted(norm.name for norm in norms)}" for site, norms in step.norms.items())
    sizes = (slots.count, slots.max_length, slots.capacity, torch.get_num_threads())
    keeps = [f"keeps {site}" for site in step.keeps]
    ranked = [
        f"{site} ranks {each.kept} of {each.groups} of {each.features} {each.encoder.dtype} {each.norm.name}"
        for site, ranking in slots.rankings.items()
        for each in ranking.dictionaries
    ]
    sees = () if step.eyes is None else ("sees",)
    return (model.config.to_json_string(), model.dtype, model.device, *sites, *sizes, *keeps, *ranked, *sees)


def _tell_eager(reason: str, progress: Progress) -> None:
    progress(f"{reason}: the model runs eagerly", 0, 0)
    _LOG.warning("%s: the model runs eagerly, which is slower", reason)


def graphs_compiled() -> int:
    """How many graphs torch has compiled in this process, by its own count."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])
