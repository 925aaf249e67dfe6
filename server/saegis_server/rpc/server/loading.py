"""Loading: reads and checks everything that a configuration names, and builds an engine from it."""

import logging
import platform
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from saegis.version import __version__
from saegis_server.amounts import Portion, in_units
from saegis_server.directions.folder import UploadFolder, read_shipped
from saegis_server.directions.store import DirectionStore, KeptDirection, Shelf
from saegis_server.engine.api import Engine, FirstToken, Limits, Progress
from saegis_server.engine.counts import Dictionary
from saegis_server.engine.pictures import Eyes
from saegis_server.engine.sites import norm_gain, site_module, widths_of
from saegis_server.engine.torch.build import build_step, compiles
from saegis_server.engine.torch.engine import TorchEngine
from saegis_server.engine.torch.loading import LoadedModel, check_device, check_dtype, load_model
from saegis_server.engine.torch.memory import free_bytes
from saegis_server.engine.torch.site_reading import edited, read_site, show_sites
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.step import Step
from saegis_server.engine.torch.usage import UsageCounting
from saegis_server.engine.torch.weights import require_room
from saegis_server.engine.vllm.engine import VllmEngine
from saegis_server.engine.vllm.in_process import require_vllm
from saegis_server.engine.vllm.served import Served, serve_in_vllm
from saegis_server.pictures.decoder import Decoder
from saegis_server.pictures.limits import PictureLimits
from saegis_server.policy.decide.decide import PolicySet
from saegis_server.policy.decide.world import World
from saegis_server.policy.errors import Unmatched
from saegis_server.policy.store.store import PolicyStore
from saegis_server.rpc.auth.identities import callers_of
from saegis_server.rpc.auth.watch_set import WatchSet, features_of, named_feature
from saegis_server.rpc.server.config import ServerConfig
from saegis_server.rpc.server.premises import Premises, govern
from saegis_server.rpc.server.sae_sources import (
    PlacedSAE,
    Survey,
    check_origin,
    check_sae,
    read_sae,
    with_gain,
)
from saegis_server.rpc.services.pictures import PictureDesk
from saegis_server.rpc.services.shared import ModelFacts, Services
from saegis_server.rpc.wire.prompts import PromptReader
from saegis_server.rpc.wire.targets import Targets
from saegis_server.sae.catalog import Catalog, CatalogError, LoadedSAE
from saegis_server.sae.examples import Examples
from saegis_server.sae.labels import LABELS_FILE
from saegis_server.sae.left_out import special_tokens
from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site, Widths
from saegis_server.steering.table import Capacity
from saegis_server.telemetry.metrics import Metrics
from saegis_server.telemetry.usage import Counted, UsageBook

log = logging.getLogger("saegis.rpc")


def check_machine(config: ServerConfig) -> None:
    """Raise MachineError for a device or dtype that does not exist, or not on this machine."""
    check_dtype(config.dtype)
    check_device(config.device)


def load_services(config: ServerConfig, premises: Premises, progress: Progress) -> Services:
    """Load and check the model and its SAEs, and make an engine, which is not started yet.

    Raises ModelLoadError, SAEFileError, SAEMismatch, SiteError for a site that the model does not have, what
    `govern` raises, and ValueError for settings that do not fit the model or this machine.
    """
    in_vllm = config.engine == "vllm"
    if in_vllm:
        require_vllm()
    compiled = compiles(config.compile, config.device, progress)
    progress("loading the model", 0, 0)
    require_room(config.model, config.dtype, config.device)
    loaded = load_model(config.model, config.dtype, config.device)
    widths = widths_of(loaded.model)
    placed = []
    for count, source in enumerate(config.saes):
        progress("loading SAEs", count, len(config.saes))
        read = read_sae(source, widths, lambda told: progress(told, 0, 0))
        placed.append(with_gain(read, partial(norm_gain, loaded.model)))
        check_origin(
            placed[-1],
            (config.name or "", *model_names(loaded)),
            has_layer_norms(loaded),
            config.unmatched_saes,
        )
        if not placed[-1].loaded.labels:
            log.warning("%s: there is no %s, so no feature has a label", source.path, LABELS_FILE)
    if in_vllm:
        served = _served(config, loaded, placed, compiled, progress)
        checked, prompts = _checked(
            placed,
            loaded,
            served.max_length,
            partial(_read_at, loaded.model),
            partial(_show_all, loaded.model),
            progress,
        )
        engine = _vllm_engine(config, loaded, served)
        return _services(config, premises, loaded, engine, served.room.widths, prompts, checked)
    step = _step(config, loaded, placed, compiled, progress)
    checked, prompts = _checked(
        placed, loaded, step.slots.max_length, _capture(step), _survey(step), progress, step.eyes
    )
    return services(config, premises, loaded, step, prompts, checked)


def _checked(
    placed: Sequence[PlacedSAE],
    loaded: LoadedModel,
    length: int,
    capture: Callable[[Sequence[int], Site], Tensor],
    survey: Survey,
    progress: Progress,
    eyes: Eyes | None = None,
) -> tuple[list[LoadedSAE], PromptReader]:
    """The SAEs, each checked on the model's activations and with its examples, and what reads prompts."""
    vocabulary: int = loaded.model.config.get_text_config().vocab_size
    prompts, checked = PromptReader(loaded.tokenizer, vocabulary, eyes), []
    for count, sae in enumerate(placed):
        progress("checking SAEs", count, len(placed))
        fits = check_sae(sae, prompts.text, capture, survey, length, prompts.special)
        checked.append(replace(fits, examples=Examples.load(sae.folder, fits.sae, vocabulary)))
    return checked, prompts


def _read_at(model: PreTrainedModel, tokens: Sequence[int], site: Site) -> Tensor:
    """The activations [T, d] of tokens at a place of a model, by Transformers' own code."""
    return read_site(model, site, torch.tensor([tokens], device=model.device))[0]


def _show_all(model: PreTrainedModel, tokens: Sequence[int], visit: Callable[[Site, Tensor], None]) -> None:
    """Show the activations of tokens at all places of a model."""
    ids = torch.tensor([tokens], device=model.device)
    show_sites(model, lambda: model(input_ids=ids, use_cache=False), visit)


def model_names(loaded: LoadedModel) -> tuple[str, ...]:
    """What a model is called: by where it was loaded from, and by its own configuration."""
    return loaded.name, str(loaded.model.config.get_text_config()._name_or_path)


def has_layer_norms(loaded: LoadedModel) -> bool:
    """Whether what the model reads of its stream is centred by its norms, as in GPT-2 and Pythia."""
    return any(isinstance(module, torch.nn.LayerNorm) for module in loaded.model.modules())


def fitted(placed: PlacedSAE, loaded: LoadedModel, unmatched: Unmatched) -> LoadedSAE:
    """An SAE checked on a model that no engine runs, as a start checks it on one that is served.

    Raises SiteError for a site that the model does not have, and as `check_origin` and `check_sae` do.
    """
    for site in (placed.loaded.site.read_at, placed.loaded.site.written_at):
        site_module(loaded.model, site)
    check_origin(placed, model_names(loaded), has_layer_norms(loaded), unmatched)
    model, tokenizer = loaded.model, loaded.tokenizer
    return check_sae(
        placed,
        lambda text: tokenizer.encode(text, verbose=False),
        partial(_read_at, model),
        partial(_show_all, model),
        loaded.max_context,
        special_tokens(tokenizer),
    )


def services(
    config: ServerConfig,
    premises: Premises,
    loaded: LoadedModel,
    step: Step,
    prompts: PromptReader,
    saes: Sequence[LoadedSAE],
) -> Services:
    """The embedded engine on `step` and everything else that the servicers need. Raises what `govern` raises,
    and DirectionFileError for directions that cannot be kept."""
    engine = _engine(config, loaded, step, saes)
    return _services(config, premises, loaded, engine, step.slots.room.widths, prompts, saes)


def _services(
    config: ServerConfig,
    premises: Premises,
    loaded: LoadedModel,
    engine: Engine,
    widths: Widths,
    prompts: PromptReader,
    saes: Sequence[LoadedSAE],
) -> Services:
    """The same on any engine."""
    facts = _facts(config, loaded)
    counts_usage = bool(config.usage_every and saes)
    shipped = read_shipped(config.directions, widths, engine.sites)
    targets = Targets(engine.sites, Catalog(saes), widths, Shelf.of_operator(shipped))
    metrics = premises.metrics
    metrics.observe_load(engine.stats)
    metrics.show_build(version=__version__, python=platform.python_version(), torch=torch.__version__)
    metrics.show_model(model=facts.name, dtype=facts.dtype, device=facts.device)
    for entry in saes:
        metrics.show_sae(entry.id, str(entry.site), entry.sae.features)
    world = World(
        model=facts.name,
        sites=targets.sites,
        widths=targets.widths,
        catalog=targets.catalog,
        capacity=engine.capacity,
        activations=loaded.model.dtype,
        callers=callers_of(config.identities),
        directions=tuple(shipped),
    )
    governor = govern(config, premises, world)
    governor.watch_set = _watch_set(config, engine, targets.catalog, metrics, governor.policies)
    uploads, uploaded = _uploads(config, widths)
    made = Services(
        engine,
        facts,
        prompts,
        targets,
        metrics,
        governor,
        config.max_message_bytes,
        limiter=premises.limiter,
        sample_seconds=config.sample_seconds,
        usage=_usage_book(config, engine, saes) if counts_usage else None,
        directions=DirectionStore(config.limits.directions, shipped, uploaded),
        uploads=uploads,
        pictures=_picture_desk(config, prompts.eyes),
    )
    for entry in saes:
        # Build the index now; otherwise the first request would build it on the event loop.
        entry.labels.ready()
    governor.in_thread = made.before_running
    metrics.observe_work(made.work)
    return made


def _picture_desk(config: ServerConfig, eyes: Eyes | None) -> PictureDesk:
    """Where pictures are decoded, as the configuration bounds them; nothing is started before one comes."""
    limits = PictureLimits(
        config.max_pictures, config.max_picture_bytes, config.max_picture_pixels, config.max_picture_side
    )
    return PictureDesk(eyes, Decoder(limits))


def _uploads(
    config: ServerConfig, widths: Widths
) -> tuple[UploadFolder | None, list[tuple[str, KeptDirection]]]:
    """The folder of uploaded directions, if there is one, and what it holds. Raises DirectionFileError."""
    if config.direction_state is None:
        return None, []
    folder = UploadFolder(config.direction_state)
    try:
        return folder, folder.read(widths)
    except BaseException:
        folder.close()
        raise


def _engine(config: ServerConfig, loaded: LoadedModel, step: Step, saes: Sequence[LoadedSAE]) -> TorchEngine:
    """The embedded engine on `step`."""
    return TorchEngine(
        step,
        loaded.tokenizer,
        loaded.eos_token_ids,
        config.max_num_seqs or step.slots.count,
        _limits(config),
        _first_token(config, loaded),
        config.compile == "always",
        _counting(config, step, saes),
        config.batch_invariant,
    )


def _vllm_engine(config: ServerConfig, loaded: LoadedModel, served: Served) -> VllmEngine:
    """The engine on vLLM."""
    most = config.max_num_seqs or served.count
    limits, first = _limits(config), _first_token(config, loaded)
    return VllmEngine(served, loaded.tokenizer, loaded.eos_token_ids, most, limits, first)


def _limits(config: ServerConfig) -> Limits:
    return Limits(
        queue=config.queue_limit,
        fair_share=config.fair_share,
        fair_slots=config.fair_slots,
        fair_seconds=config.fair_seconds,
    )


def _first_token(config: ServerConfig, loaded: LoadedModel) -> FirstToken:
    return FirstToken(loaded.bos_token_id, moved=config.steer_first_token, read=config.read_first_token)


def _watch_set(
    config: ServerConfig, engine: Engine, catalog: Catalog, metrics: Metrics, policies: PolicyStore | None
) -> WatchSet:
    """The features that are counted, which follow the policies in force.

    Raises ValueError for a name that means no feature.
    """
    try:
        own = [named_feature(text, catalog) for text in config.watch_features]
    except CatalogError as error:
        raise ValueError(str(error)) from error
    watch_set = WatchSet(engine, catalog, metrics.features, own)
    if policies is not None:

        def changed(before: PolicySet, now: PolicySet, urgent: bool) -> None:
            watch_set.watch(features_of(now))

        watch_set.watch(features_of(policies.active))
        policies.on_change(changed)
    return watch_set


def _counting(config: ServerConfig, step: Step, saes: Sequence[LoadedSAE]) -> UsageCounting | None:
    """What counts the use of every feature, if it is to be counted."""
    if not config.usage_every or not saes:
        return None
    rankings = step.slots.rankings.values()
    ranked = {each.digest: each for ranking in rankings for each in ranking.dictionaries}
    dictionaries = [
        Dictionary(each.id, each.site, each.sae.rows(), each.sae.norm, ranked.get(each.sae.digest))
        for each in saes
    ]
    return UsageCounting(dictionaries, config.usage_every, step.device)


def _usage_book(config: ServerConfig, engine: Engine, saes: Sequence[LoadedSAE]) -> UsageBook:
    """Where what is counted so is kept. Raises ValueError if it is kept where another server's is."""
    counted = tuple(Counted(each.id, each.sae.digest, each.sae.features) for each in saes)
    return UsageBook(engine.take_usage, counted, config.usage_every, config.usage_state)


def _step(
    config: ServerConfig,
    loaded: LoadedModel,
    placed: Sequence[PlacedSAE],
    compiled: bool,
    progress: Progress,
) -> Step:
    sites, room, wishes = _asked(config, placed)
    keeps = [sae.loaded.site for sae in placed] if config.usage_every else []
    counted = [sae.loaded.sae.W_enc.nbytes for sae in placed if config.usage_every]
    ranked = _ranked(placed, loaded.model.device, progress)
    step = build_step(loaded, sites, wishes, room, compiled, progress, keeps, sum(counted), ranked)
    _require_fair_slots(config, step.slots.count)
    return step


def _served(
    config: ServerConfig,
    loaded: LoadedModel,
    placed: Sequence[PlacedSAE],
    compiled: bool,
    progress: Progress,
) -> Served:
    """The model in vLLM."""
    sites, room, wishes = _asked(config, placed)
    ranked = _ranked(placed, loaded.model.device, progress)
    saes = [sae.loaded.sae.digest for sae in placed]
    path = Path(config.model) if Path(config.model).is_dir() else None
    served = serve_in_vllm(
        loaded,
        sites,
        wishes,
        room,
        progress,
        path,
        ranked,
        saes,
        compiled=compiled,
        ranks=config.tensor_parallel_size,
    )
    _require_fair_slots(config, served.count)
    return served


def _asked(
    config: ServerConfig, placed: Sequence[PlacedSAE]
) -> tuple[dict[Site, frozenset[Norm]], Capacity, Wishes]:
    """The sites with the normalisations that are used there, the room for rows, and for sequences."""
    sites = {Site.parse(name): frozenset((Norm.NONE,)) for name in config.sites}
    for sae in placed:
        norms = sites.get(sae.loaded.site, frozenset((Norm.NONE,)))
        sites[sae.loaded.site] = norms | {sae.loaded.sae.norm}
    memory = None if config.kv_memory is None else Portion.parse(config.kv_memory)
    return sites, Capacity(**config.rows), Wishes(memory, config.max_num_seqs, config.max_model_len)


def _require_fair_slots(config: ServerConfig, count: int) -> None:
    if config.fair_slots is not None and config.fair_slots >= count:
        raise ValueError(
            f"fair_slots: {config.fair_slots} slots cannot be kept of the {count} for which there is memory"
        )


def _ranked(
    placed: Sequence[PlacedSAE], device: torch.device, progress: Progress
) -> dict[Site, list[RankedDictionary]]:
    """What the SAEs that decide by rank keep on the device, which is told.

    Raises ValueError where there is no room for it.
    """
    kept: dict[Site, list[RankedDictionary]] = {}
    for site, sae in ((each.loaded.site, each.loaded.sae) for each in placed):
        if sae.k is None:
            continue
        told = (
            f"the SAE {sae.name} decides by rank which features are active, so its whole encoder is kept "
            f"on {device}: {in_units(sae.W_enc.nbytes)}"
        )
        is_there = sae.mapped is None and sae.W_enc.device == device
        if not is_there and sae.W_enc.nbytes > (free := free_bytes(device)):
            raise ValueError(f"{told}, and {in_units(free)} are free there")
        progress(told, 0, 0)
        if (dictionary := sae.ranked(device)) is not None:
            kept.setdefault(site, []).append(dictionary)
    return kept


def _capture(step: Step) -> Callable[[Sequence[int], Site], Tensor]:
    """Gives the activations [T, d] of tokens at any place of the model, whether it is steered or not."""

    def capture(tokens: Sequence[int], site: Site) -> Tensor:
        found: list[Tensor] = []

        def keep(x: Tensor) -> Tensor:
            found.append(x[0].clone())
            return x

        with edited(step.model, site, keep):
            step.capture(list(tokens))
        return found[0]

    return capture


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
