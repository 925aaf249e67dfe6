"""What a filter is made for: a model with its SAE, and its answers and predictions under rows at the site."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

import torch
from torch import Tensor
from transformers import DynamicCache

from saegis.v1 import prompt_pb2
from saegis_server.engine.sites import site_width
from saegis_server.engine.torch.loading import LoadedModel
from saegis_server.engine.torch.site_reading import edited
from saegis_server.rpc.wire.prompts import PromptReader
from saegis_server.sae.autoencoder import SparseAutoencoder
from saegis_server.steering.admitted import AdmittedRows
from saegis_server.steering.apply import apply
from saegis_server.steering.program import SiteProgram
from saegis_server.steering.rows import Norm
from saegis_server.steering.site import Site
from saegis_server.steering.table import Capacity, SiteTable
from saegis_server.steering.tokens import Spread, Tokens

#: No row.
PLAIN = SiteProgram()
#: Messages that end in different ways.
_MESSAGES = ("a", "Why?", "0")
_FEWEST = 2
#: The most logits that a batch of texts is given.
_MOST_LOGITS = 1 << 27


@dataclass(frozen=True, slots=True)
class Padded:
    """Token ids of several texts: ids int64 and real bool, both [rows, length]; `real` is False on padding.

    moves: bool [rows, length], the tokens that rows move: the real ones without the model's own first token.
    """

    ids: Tensor
    real: Tensor
    moves: Tensor


class SiteSteering:
    """The rows of one site as the server's step applies them, for tokens that all have the same rows."""

    def __init__(
        self, rows: SiteProgram, site: Site, width: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        """Raises SteeringError for bans that cannot be held, and for edits that a redirect leaves nothing."""
        admitted = AdmittedRows.of(rows, site, dtype)
        held = len(admitted.geometry.basis) if admitted.geometry is not None else 1
        counts = max(len(rows.edits), 1), max(len(rows.rules), 1), held
        edits, rules, bans = (max(count, _FEWEST) for count in (len(rows.edits), len(rows.rules), held))
        table = SiteTable(1, width, Capacity(edits, rules, bans, _FEWEST, _FEWEST), device)
        table.write(0, admitted, admitted.geometry, admitted.moves)
        self._view = table.view(1, *counts, 1, 1)
        self._norms = frozenset({Norm.NONE, *(edit.probe.norm for _, part in rows.stages() for edit in part)})

    def __call__(self, x: Tensor, moves: Tensor, prompt: bool) -> Tensor:
        """x [rows, tokens, d] with every token steered that `moves`, bool [rows, tokens], selects."""
        flat = x.reshape(-1, x.shape[-1])
        of_prompt = torch.full((len(flat),), prompt, device=x.device)
        steered, _ = apply(flat, self._view, Tokens(of_prompt, Spread.ONE), self._norms)
        return torch.where(moves[..., None].to(x.device), steered.view_as(x), x)


@dataclass(frozen=True)
class SiteSubject:
    """A model at one of its sites, asked as a server asks it."""

    loaded: LoadedModel
    site: Site

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.loaded.model.device

    @property
    def vocabulary(self) -> int:
        """How many tokens the model predicts among."""
        return int(self.loaded.model.config.get_text_config().vocab_size)

    def fitting(self, tokens: int) -> int:
        """How many tokens a batch may have whose logits are all held: `tokens`, or fewer of a large
        vocabulary."""
        return max(1, min(tokens, _MOST_LOGITS // self.vocabulary))

    @cached_property
    def _reader(self) -> PromptReader:
        return PromptReader(self.loaded.tokenizer, self.vocabulary)

    def chat(self, turns: Sequence[tuple[str, str]], opens_turn: bool = True) -> list[int]:
        """The token ids of turns, (role, content) each, in the model's template, as the server reads them.

        Raises FieldError and PreconditionError, as the server does, for what is no conversation here.
        """
        messages = [prompt_pb2.ChatMessage(role=role, content=content) for role, content in turns]
        return list(self._reader.chat(prompt_pb2.Chat(messages=messages), "chat", opens_turn))

    def asked(self, prompt: str) -> list[int]:
        """The token ids of a user's message, up to where the answer begins."""
        return self.chat([("user", prompt)])

    @cached_property
    def closing(self) -> int:
        """How many tokens the model's template adds behind a user's message: those in which messages that
        end in different ways end alike."""
        endings = zip(*(reversed(self.asked(message)) for message in _MESSAGES), strict=False)
        return sum(1 for _ in takewhile(lambda tokens: len(set(tokens)) == 1, endings))

    def text(self, answer: Sequence[int]) -> str:
        """The text of an answer's tokens, without special ones."""
        return str(self.loaded.tokenizer.decode(list(answer), skip_special_tokens=True))

    def padded(self, rows: Sequence[Sequence[int]], left: bool = False) -> Padded:
        """Texts of at least one token, padded at their ends or, with `left`, at their beginnings."""
        length = max(map(len, rows))
        ids = torch.zeros(len(rows), length, dtype=torch.int64)
        real = torch.zeros(len(rows), length, dtype=torch.bool)
        moves = torch.zeros_like(real)
        for number, row in enumerate(rows):
            start = length - len(row) if left else 0
            ids[number, start : start + len(row)] = torch.tensor(row)
            real[number, start : start + len(row)] = True
            begins = start + (row[0] == self.loaded.bos_token_id)
            moves[number, begins : start + len(row)] = True
        return Padded(ids.to(self.device), real.to(self.device), moves.to(self.device))

    def steering(self, rows: SiteProgram) -> SiteSteering | None:
        """The rows as they are applied; None where they change nothing."""
        if not rows.changes_anything:
            return None
        dtype = self.loaded.model.dtype
        width = site_width(self.loaded.model, self.site)
        return SiteSteering(rows, self.site, width, self.device, dtype)

    def _steered(
        self, steering: SiteSteering | None, moves: Tensor, prompt: bool
    ) -> AbstractContextManager[None]:
        if steering is None:
            return nullcontext()
        return edited(self.loaded.model, self.site, lambda x: steering(x, moves, prompt))

    @torch.no_grad()
    def log_probabilities(
        self, rows: Sequence[Sequence[int]], program: SiteProgram = PLAIN, batch_tokens: int = 8192
    ) -> Iterator[tuple[int, Tensor]]:
        """For each text its number and float32 [length − 1, vocabulary]: the log probabilities of each token
        but the first, given those before it, with all of them steered as a prompt is."""
        steering = self.steering(program)
        order = sorted(range(len(rows)), key=lambda number: -len(rows[number]))
        while order:
            count = max(1, self.fitting(batch_tokens) // len(rows[order[0]]))
            group, order = order[:count], order[count:]
            texts = self.padded([rows[number] for number in group])
            with self._steered(steering, texts.moves, True):
                logits = self.loaded.model(input_ids=texts.ids, use_cache=False).logits
            for place, number in enumerate(group):
                yield number, logits[place, : len(rows[number]) - 1].float().log_softmax(-1)

    @torch.no_grad()
    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        program: SiteProgram = PLAIN,
        max_tokens: int = 80,
        batch: int = 256,
    ) -> list[list[int]]:
        """The greedy answer to each prompt of token ids, without the token that ends it.

        The prompts of a batch are left padded, so that all answers grow at the same place of the cache.
        """
        steering = self.steering(program)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        answers: list[list[int]] = [[] for _ in prompts]
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            written = self._written([prompts[number] for number in group], steering, max_tokens)
            for number, answer in zip(group, written, strict=True):
                answers[number] = answer
        return answers

    def _written(
        self, prompts: Sequence[Sequence[int]], steering: SiteSteering | None, max_tokens: int
    ) -> list[list[int]]:
        texts = self.padded(prompts, left=True)
        ends = torch.tensor(self.loaded.eos_token_ids, device=self.device)
        cache = DynamicCache(config=self.loaded.model.config)
        ids, moves, real = texts.ids, texts.moves, texts.real
        places = (real.cumsum(1) - 1).clamp(min=0)
        done = torch.zeros(len(prompts), dtype=torch.bool, device=self.device)
        columns: list[Tensor] = []
        for step in range(max_tokens):
            with self._steered(steering, moves, step == 0):
                output = self.loaded.model(
                    input_ids=ids,
                    attention_mask=real.long(),
                    position_ids=places,
                    past_key_values=cache,
                    use_cache=True,
                    # As a tensor: the slice that a number makes is no whole rows, and a product of such
                    # copies the matrix for each of them.
                    logits_to_keep=torch.tensor([ids.shape[1] - 1], device=self.device),
                )
            token = output.logits[:, -1].argmax(-1)
            done = done | torch.isin(token, ends)
            columns.append(torch.where(done, -1, token))
            if bool(done.all()):
                break
            ids, places = token[:, None], places[:, -1:] + 1
            moves = ~done[:, None]
            real = torch.cat([real, torch.ones_like(moves)], 1)
        return [[token for token in row if token >= 0] for row in torch.stack(columns, 1).tolist()]


@dataclass(frozen=True)
class FilterSubject(SiteSubject):
    """A model and its SAE at a site, with the SAE's tensors on the model's device."""

    sae: SparseAutoencoder
