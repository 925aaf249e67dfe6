"""Loading: everything that a configuration names, read, checked, and put together into an engine."""

import logging
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from saegis_server.engine.load import Limits
from saegis_server.engine.sites import Site, forward_order, site_module
from saegis_server.engine.torch.compile_cache import CompileCacheError, Kept, settle
from saegis_server.engine.torch.engine import Engine
from saegis_server.engine.torch.first_token import FirstToken
from saegis_server.engine.torch.loading import LoadedModel, load_model
from saegis_server.engine.torch.memory import is_want_of_memory
from saegis_server.engine.torch.site_reading import show_sites
from saegis_server.engine.torch.slots import Slots
from saegis_server.engine.torch.step import SMALLEST, Step
from saegis_server.engine.torch.warmup import NotCompiledError, missing_compiler, warm_up
from saegis_server.policy.decide.world import World
from saegis_server.rpc.auth.governing import govern
from saegis_server.rpc.auth.identities import callers_of
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.premises import Premises
from saegis_server.rpc.server.sae_sources import PlacedSAE, Survey, check_sae, read_sae
from saegis_server.rpc.services.shared import ModelFacts, Services
from saegis_server.rpc.wire.prompts import PromptReader
from saegis_server.rpc.wire.targets import Targets
from saegis_server.sae.catalog import Catalog, LoadedSAE
from saegis_server.sae.labels import LABELS_FILE
from saegis_server.steering.rows import Norm
from saegis_server.steering.table import Capacity

log = logging.getLogger("saegis.rpc")
#: Told how far a stage of the start has come: its name, what is done, out of how much (0: not known).
Progress = Callable[[str, int, int], None]


def load_services(config: ServerConfig, premises: Premises, progress: Progress) -> Services:
    """Load the model and its SAEs, check them, and make an engine, which is not started yet.

    Raises ModelLoadError, SAEFileError, SAEMismatch, SiteError for a site that the model does not have,
    what `govern` raises for policies that cannot come in force, and ValueError for settings that
    do not fit the model or this machine.
    """
    compiled = _compiles(config, progress)
    progress("loading the model", 0, 0)
    loaded = load_model(config.model, config.dtype, config.device)
    width = loaded.model.config.get_text_config().hidden_size
    placed = []
    for count, source in enumerate(config.saes):
        progress("loading SAEs", count, len(config.saes))
        placed.append(read_sae(source, width))
        if not placed[-1].loaded.labels:
            log.warning("%s: there is no %s, so no feature has a label", source.path, LABELS_FILE)
    step = _step(config, loaded, placed, compiled)
    prompts = PromptReader(loaded.tokenizer, step.slots.vocabulary)
    checked = []
    for count, each in enumerate(placed):
        progress("checking SAEs", count, len(placed))
        capture, length = _capture_at(step, each.site), step.slots.max_length
        checked.append(check_sae(each, prompts.text, capture, _survey(step), length, prompts.special))
    return services(config, premises, loaded, step, prompts, checked)


def services(
    config: ServerConfig,
    premises: Premises,
    loaded: LoadedModel,
    step: Step,
    prompts: PromptReader,
    saes: Sequence[LoadedSAE],
) -> Services:
    """An engine on `step`, and what the servicers need beside it. Raises as `govern` does."""
    limits = Limits(queue=config.queue_limit)
    first = FirstToken(loaded.bos_token_id, moved=config.steer_first_token, read=config.read_first_token)
    engine = Engine(step, loaded.tokenizer, loaded.eos_token_ids, config.max_num_seqs, limits, first)
    facts = _facts(config, loaded)
    targets = Targets(tuple(str(site) for site in step.sites), Catalog(saes), facts.hidden_size)
    metrics = premises.metrics
    metrics.observe_load(engine.stats)
    world = World(
        model=facts.name,
        sites=targets.sites,
        width=facts.hidden_size,
        catalog=targets.catalog,
        capacity=engine.capacity,
        activations=loaded.model.dtype,
        callers=callers_of(config.identities),
    )
    governor = govern(config, premises, world)
    made = Services(
        engine,
        facts,
        prompts,
        targets,
        metrics,
        governor,
        config.max_message_bytes,
        limiter=premises.limiter,
    )
    for entry in saes:
        # Makes the index now: the first request would wait for it on the event loop.
        entry.labels.by_label("")
    governor.in_thread = made.before_running
    metrics.observe_work(made.work)
    return made


def warm_up_engine(made: Services, progress: Progress, must_compile: bool = False) -> None:
    """Compile, run the canary, and start the engine.

    A step that cannot be compiled runs eagerly, which is told. Raises CanaryError, and NotCompiledError if it
    must be compiled.
    """
    step = made.engine.step
    try:
        _warm_up(step, progress)
    except NotCompiledError as error:
        if must_compile:
            raise
        log.debug("the step cannot be compiled", exc_info=error)
        _tell_eager(str(error), progress)
        step.run_eagerly()
        warm_up(step, progress)
    if made.engine.compiled:
        before = _graphs_compiled()
        made.metrics.recompilations.set_function(lambda: float(_graphs_compiled() - before))
    made.engine.start()


def _warm_up(step: Step, progress: Progress) -> None:
    if not step.compiled:
        return warm_up(step, progress)
    try:
        kept = Kept(settle(), _kind(step))
    except CompileCacheError as error:
        raise NotCompiledError(str(error)) from error
    if not kept:
        progress(f"compiling, once on this machine, for some minutes; kept in {kept.folder}", 0, 0)
    warm_up(step, progress, bool(kept))
    kept.note()
    return None


def _kind(step: Step) -> tuple[object, ...]:
    """What tells a step's compiled programs from those of others."""
    model, slots = step.model, step.slots
    sites = sorted(f"{site} {sorted(norm.name for norm in norms)}" for site, norms in step.norms.items())
    sizes = (slots.count, slots.max_length, slots.capacity, torch.get_num_threads())
    return (model.config.to_json_string(), model.dtype, model.device, *sites, *sizes)


def _tell_eager(reason: str, progress: Progress) -> None:
    progress(f"{reason}: the model runs eagerly", 0, 0)
    log.warning("%s: the model runs eagerly, which is slower", reason)


def _graphs_compiled() -> int:
    """How many graphs torch has compiled in this process, by its own count."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def _compiles(config: ServerConfig, progress: Progress) -> bool:
    """Whether to compile. Raises ValueError if it must and cannot be."""
    if config.compile == "never":
        return False
    reason = missing_compiler() if config.device == "cpu" else None
    if reason is None:
        return True
    if config.compile == "always":
        raise ValueError(f"compile is 'always', but {reason}")
    _tell_eager(reason, progress)
    return False


def _step(config: ServerConfig, loaded: LoadedModel, placed: Sequence[PlacedSAE], compiled: bool) -> Step:
    sites = {Site.parse(name): frozenset((Norm.NONE,)) for name in config.sites}
    for each in placed:
        norms = sites.get(each.site, frozenset((Norm.NONE,)))
        sites[each.site] = norms | {each.loaded.sae.norm}
    for site in sites:
        site_module(loaded.model, site)
    in_order = {site: sites[site] for site in sorted(sites, key=forward_order)}
    length = config.max_model_len or loaded.max_context
    if length > loaded.max_context:
        raise ValueError(f"max_model_len is {length}; the model's context has {loaded.max_context} tokens")
    count, room = max(config.max_num_seqs, SMALLEST), Capacity(**config.rows)
    try:
        slots = Slots(loaded.model, tuple(in_order), count, length, room)
    except Exception as error:
        if not is_want_of_memory(error):
            raise
        raise ValueError(
            f"there is no memory for {count} sequences of {length} tokens: "
            "lower max_num_seqs or max_model_len"
        ) from error
    return Step(loaded.model, in_order, slots, compiled)


def _capture_at(step: Step, site: Site) -> Callable[[Sequence[int]], Tensor]:
    return lambda tokens: step.capture(list(tokens))[site]


def _survey(step: Step) -> Survey:
    return lambda tokens, visit: show_sites(step.model, lambda: step.capture(list(tokens)), visit)


def _facts(config: ServerConfig, loaded: LoadedModel) -> ModelFacts:
    model = loaded.model
    text = model.config.get_text_config()
    device = "cpu" if model.device.type == "cpu" else torch.cuda.get_device_name(model.device)
    return ModelFacts(
        name=config.name or loaded.name,
        architectures=tuple(model.config.architectures or (type(model).__name__,)),
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        num_layers=text.num_hidden_layers,
        eos_token_ids=loaded.eos_token_ids,
        dtype=str(model.dtype).removeprefix("torch."),
        device=device,
    )
