"""Served: a model that vLLM runs with its sites steered, made from one of Transformers, and proven.

Transformers' own code is the oracle: its logits of a fixed text, plain and with a vector added at every site,
are recorded before vLLM has the model, and compared with what vLLM's forward gives for the same tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from saegis_server.amounts import in_units
from saegis_server.engine.admission import admit
from saegis_server.engine.api import UNGUARDED, CanaryError, FidelityError, Limits, Progress, SamplingParams
from saegis_server.engine.sites import site_module, widths_of
from saegis_server.engine.torch.build import size_of
from saegis_server.engine.torch.fidelity import TOLERANCE
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.reference import SHORT, Reference, record
from saegis_server.engine.torch.sequence import RowCounts
from saegis_server.engine.torch.sizing import Wishes
from saegis_server.engine.torch.support import check_kind
from saegis_server.engine.torch.warmup import TOLERANCE as CANARY_TOLERANCE
from saegis_server.engine.torch.warmup import with_hook
from saegis_server.engine.vllm.checkpoint import WIDTHS, UnservedModelError, checkpoint_of, head_width
from saegis_server.engine.vllm.core import Core
from saegis_server.engine.vllm.in_process import BLOCK, CoreInProcess, CoreWishes
from saegis_server.engine.vllm.orders import Order, Told, Wanted
from saegis_server.engine.vllm.places import check_places
from saegis_server.engine.vllm.plan import Plan
from saegis_server.engine.vllm.readings import APART
from saegis_server.steering.admitted import Room
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.ranking import RankedDictionary
from saegis_server.steering.rows import Norm, Probe, add
from saegis_server.steering.site import Site, forward_order
from saegis_server.steering.table import Capacity

#: The types of numbers in which it was tried.
DTYPES = (torch.float32, torch.bfloat16)
#: The text of the canary, as in the embedded engine's.
_CANARY = (3, 1, 4, 1, 5, 9, 2, 6)


@dataclass(eq=False)
class Served:
    """A model in vLLM: its core, how long texts may be, and the room of their rows.

    count: how many sequences run at once, beside the texts that are only read. block: how many tokens a block
    of keys and values has. reference: what Transformers
    gave, None for a context that is too short. oracle: Transformers' own model, which goes once all is
    proven. keeps_core: whether the core is not closed with the engine. compiled: whether vLLM's compiler made
    its forward pass.
    """

    core: Core
    max_length: int
    vocabulary: int
    room: Room
    dtype: torch.dtype
    oracle: PreTrainedModel | None
    reference: Reference | None
    count: int
    block: int = BLOCK
    keeps_core: bool = False
    compiled: bool = False

    def close(self) -> None:
        """Give back what vLLM holds, unless somebody else uses it on."""
        if not self.keeps_core:
            self.core.close()

    def prove(self, progress: Progress) -> None:
        """Compare with Transformers, and run a canary at every site. Raises CanaryError and FidelityError.

        Transformers' weights are let go afterwards.
        """
        stages = ["comparing with Transformers", *(f"canary at {site}" for site in self.room.sites)]
        for done, name in enumerate(stages):
            progress(name, done, len(stages))
            if done:
                self._canary(self.room.sites[done - 1])
            elif self.reference is not None:
                self._compare(self.reference)
        progress("ready", len(stages), len(stages))
        if self.oracle is not None:
            nn.Module.to(self.oracle, "meta")
            self.oracle = None

    def _compare(self, reference: Reference) -> None:
        """The logits of the reference's text, read in chunks, and of its beginning with all sites steered."""
        tokens, places = reference.tokens, reference.places
        plain = self._read(tokens, SteeringProgram())
        self._require("a text", plain.logits[places], reference.logits)
        sites = {
            site: SiteProgram(edits=(add(probe, size),)) for site, (probe, size) in reference.programs.items()
        }
        steered = self._read(tokens[:SHORT], SteeringProgram(sites))
        self._require("a steered text", steered.logits[[SHORT - 2, SHORT - 1]], reference.steered)

    def _require(self, what: str, found: Tensor, wanted: Tensor) -> None:
        found = found.float().cpu()
        off = (found - wanted).double().pow(2).mean(-1).sqrt() / wanted.double().std(-1)
        worst = off.max() if self.dtype == torch.float32 else off.median()
        if not float(worst) <= TOLERANCE[self.dtype]:
            row = int(torch.where(off.isnan(), torch.inf, off).argmax())
            token = int((found[row] - wanted[row]).abs().argmax())
            raise FidelityError(
                f"{what}: in vLLM the logit of token {token} is {float(found[row, token]):.6g}, and with "
                f"Transformers' own code {float(wanted[row, token]):.6g} (off by {100 * float(worst):.3g} % "
                "of the deviation)"
            )

    def _canary(self, site: Site) -> None:
        """Add along a direction at one site: the reading must move by exactly that, and the logits must be
        those of Transformers' model with the same vector added by a plain hook."""
        tokens = [token % self.vocabulary for token in _CANARY]
        clean = self._read(tokens, SteeringProgram())
        strength = float(clean.clean[site].float().norm(dim=-1).mean())
        probe = Probe.direction(
            torch.randn(self.room.widths.at(site), generator=torch.Generator().manual_seed(0))
        )
        rows = SiteProgram(edits=(add(probe, strength),), watches=(probe,))
        steered = self._read(tokens, SteeringProgram({site: rows}))
        watched = steered.watched[self.room.sites.index(site), :, 0]
        moved, tolerance = watched[:, 1] - watched[:, 0], CANARY_TOLERANCE[self.dtype]
        worst = float((moved - strength).abs().max())
        if not worst <= tolerance * max(strength, 1.0):
            raise CanaryError(
                f"{site}: in vLLM the reading moved by {float(moved[0]):.6g} instead of {strength:.6g} "
                f"(off by {worst:.3g})"
            )
        if float((steered.logits[-2:] - clean.logits[-2:]).abs().max()) <= 1e-6 * float(clean.logits.std()):
            raise CanaryError(f"{site}: in vLLM an edit of strength {strength:.3g} did not change the logits")
        if self.oracle is None:
            return
        wanted = with_hook(self.oracle, site, tokens, strength * probe.write.to(self.oracle.device)).cpu()
        off = float((steered.logits[-2:].float().cpu() - wanted).abs().max())
        if not off <= tolerance * max(float(wanted.std()), 1.0):
            raise CanaryError(
                f"{site}: the steered logits in vLLM differ from those with a plain hook by {off:.3g}, of a "
                f"deviation of {float(wanted.std()):.3g}"
            )

    def _read(self, tokens: Sequence[int], program: SteeringProgram) -> _Read:
        """What vLLM gives for a text under a program: all of it read, nothing written."""
        admitted = admit(program, UNGUARDED, self.room)
        wanted = Wanted(prompt=True, logits=True, clean=True)
        order = Order(self.count, admitted.rows, RowCounts.of(admitted), len(tokens), wanted=wanted)
        name = f"proof-{program.digest}"
        self.core.add(name, tokens, SamplingParams(temperature=0.0), order, name, reads_cache=False)
        parts: list[Told] = []
        try:
            while sum(part.length for part in parts) < len(tokens):
                parts += [each for each in self.core.step()[0] if each.request_id == name]
        finally:
            self.core.drop(name)
        return _Read.of(parts, self.room.sites)


@dataclass(frozen=True)
class _Read:
    """What was read of a text of T tokens: logits [T, V], watched [sites, T, W, 2], and the activations
    [T, d] at each site."""

    logits: Tensor
    watched: Tensor
    clean: Mapping[Site, Tensor]

    @classmethod
    def of(cls, parts: Sequence[Told], sites: Iterable[Site]) -> _Read:
        """All parts of it."""
        logits = [part.logits for part in parts if part.logits is not None]
        watched = [part.watched for part in parts if part.watched is not None]
        clean = [part.clean for part in parts if part.clean is not None]
        return cls(
            torch.cat(logits),
            torch.cat(watched, 1) if watched else torch.zeros(0),
            {site: torch.cat([each[site] for each in clean]) for site in sites},
        )


def serve_in_vllm(
    loaded: LoadedModel,
    norms: Mapping[Site, frozenset[Norm]],
    wishes: Wishes,
    capacity: Capacity,
    progress: Progress,
    path: Path | None = None,
    ranked: Mapping[Site, Sequence[RankedDictionary]] | None = None,
    saes: Iterable[str] = (),
    limits: Limits | None = None,
    compiled: bool = False,
    ranks: int = 1,
) -> Served:
    """The model in vLLM, with as many slots as are wished for or as there is memory for, which is told.

    path: the folder from which it was loaded, from which vLLM reads it too. compiled: by vLLM's own compiler,
    else eagerly. ranks: how many processes share each layer (tensor parallel). The rest as for
    `engine.torch.build.build_step`. A text may have one token less than the model's context. Raises
    VllmMissingError, UnservedModelError, UnsupportedModelError, SiteError, and ValueError for what does not
    fit.
    """
    model = loaded.model
    config = model.config.get_text_config()
    check_kind(model)
    check_places(norms, ranks)
    if model.dtype not in DTYPES:
        raise UnservedModelError(
            f"the model is in {str(model.dtype).removeprefix('torch.')}, and the vllm engine was tried in "
            f"{' and '.join(str(each).removeprefix('torch.') for each in DTYPES)} alone; choose one by dtype"
        )
    if ranks > 1 and any(ranked.values() if ranked else ()):
        raise ValueError(
            "tensor_parallel_size: SAEs that decide by rank are served by one rank alone; serve the others"
        )
    for site in norms:
        site_module(model, site)
    in_order = {site: norms[site] for site in sorted(norms, key=forward_order)}
    size, told = size_of(loaded, tuple(in_order), wishes, capacity, 0)
    progress(told, 0, 0)
    length = min(size.length + 1, loaded.max_context)
    reference = record(model, in_order, length - 1)
    slots, chosen = size.count + APART, limits or Limits()
    plan = Plan(
        in_order, widths_of(model), slots, capacity, config.num_hidden_layers, ranked or {}, tuple(saes)
    )
    cache = _cache_bytes(model, slots, length, ranks)
    progress(f"starting vLLM, with {in_units(cache)} for keys and values", 0, 0)
    core_wishes = CoreWishes(
        "", model.dtype, length, chosen.prefill_chunk, chosen.prefill_between_steps, cache, compiled, ranks
    )
    with ExitStack() as opened:
        folder = opened.enter_context(checkpoint_of(model, path))
        core = CoreInProcess(plan, replace(core_wishes, path=folder))
    _keep_as_it_is(model)
    known = frozenset((site, each.digest) for site, own in (ranked or {}).items() for each in own)
    room = Room(tuple(in_order), plan.widths, capacity, model.dtype, known)
    vocabulary: int = config.vocab_size
    return Served(
        core, length - 1, vocabulary, room, model.dtype, model, reference, size.count, compiled=compiled
    )


def _keep_as_it_is(model: PreTrainedModel) -> None:
    """Let a model go on as Transformers runs it. Where vLLM has no code of its own for a kind of model, it
    calls Transformers' and changes the class, for models that it has not made, too."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            setattr(module, "do_not_compile", True)  # noqa: B010 - the name is vLLM's


def _cache_bytes(model: PreTrainedModel, slots: int, length: int, ranks: int) -> int:
    """How much memory keys and values of so many texts take in each rank of vLLM, in whole blocks of
    theirs."""
    config = model.config.get_text_config()
    width = head_width(config)
    width = next((each for each in WIDTHS if each >= width), width)
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    blocks = slots * (-(-length // BLOCK) + 1) + 1
    token = 2 * config.num_hidden_layers * -(-heads // ranks) * width * model.dtype.itemsize
    return int(blocks * BLOCK * token)
