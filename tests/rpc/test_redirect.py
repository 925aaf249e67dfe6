"""Redirects through the public client: text and watched values against Transformers with hooks in float64."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import saegis
from saegis_server.sae.autoencoder import SparseAutoencoder
from tests.rpc import tiny
from tests.rpc.harness import Running
from tests.rpc.test_governor import ruled, write

FIRST, SECOND = (tiny.catalog().entries[place].sae for place in (0, 1))
VECTOR = torch.sin(torch.arange(tiny.WIDTH, dtype=torch.float64))
PROMPT, TOKENS = "the river runs under the red bridge", 24


@dataclass(frozen=True)
class Redirect:
    """A redirect by its numbers alone: what it reads, what it writes, k, s and the threshold."""

    sae: SparseAutoencoder
    source: int | Tensor
    to: int | Tensor
    factor: float
    strength: float = 0.0
    threshold: float = 0.0

    def moved(self, x: Tensor) -> Tensor:
        """By how much it moves x, float64 [d]: −(1+s)·f·w + k·f·v where f is above the threshold."""
        f = value(self.sae, self.source, x)
        if not f > self.threshold:
            return torch.zeros_like(x)
        taken = (1.0 + self.strength) * f * written(self.sae, self.source)
        return self.factor * f * written(self.sae, self.to) - taken


def value(sae: SparseAutoencoder, named: int | Tensor, x: Tensor) -> float:
    """The value of a feature of a JumpReLU SAE, or of a direction, at x in float64 [d]."""
    if isinstance(named, Tensor):
        return float(x @ named / named.norm())
    before = float((x - sae.b_dec.double()) @ sae.W_enc.double()[:, named] + sae.b_enc.double()[named])
    assert sae.threshold is not None
    return before if before > max(float(sae.threshold[named]), 0.0) else 0.0


def written(sae: SparseAutoencoder, named: int | Tensor) -> Tensor:
    """A feature's row of the decoder, or a direction of length 1; float64 [d]."""
    return named / named.norm() if isinstance(named, Tensor) else sae.W_dec.double()[named]


@dataclass
class Expected:
    """What comes of a prompt: the answer's tokens, and what is read at each, before and after, at layer 0."""

    tokens: list[int]
    before: list[Tensor]
    after: list[Tensor]


def expected(prompt: Sequence[int], by_layer: dict[int, list[Redirect]]) -> Expected:
    """Greedy decoding by Transformers in float64; every token is moved but the first, the model's own BOS."""
    model: Any = tiny.model().double()
    seen: dict[int, tuple[Tensor, Tensor]] = {}
    for layer, redirects in by_layer.items():
        model.model.layers[layer].register_forward_hook(_hook(layer, redirects, seen))
    found = Expected([], [], [])
    with torch.no_grad():
        for _ in range(TOKENS):
            logits = model(torch.tensor([[*prompt, *found.tokens]])).logits[0, -1]
            found.tokens.append(int(logits.argmax()))
            found.before.append(seen[0][0])
            found.after.append(seen[0][1])
    return found


def _hook(
    layer: int, redirects: list[Redirect], seen: dict[int, tuple[Tensor, Tensor]]
) -> Callable[..., Any]:
    def steer(_: Any, __: Any, output: Any) -> Any:
        clean = output[0] if isinstance(output, tuple) else output
        moved = clean.clone()
        for token in range(1, clean.shape[1]):
            for redirect in redirects:
                moved[0, token] += redirect.moved(clean[0, token])
        seen[layer] = clean[0, -1].clone(), moved[0, -1].clone()
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return steer


CASES = {
    "a feature to a feature": (
        [saegis.redirect(saegis.feature(3, sae="first"), 6.0, to=saegis.feature(5, sae="first"))],
        {0: [Redirect(FIRST, 3, 5, 6.0)]},
    ),
    "by maxima, with a strength and a threshold": (
        [
            saegis.redirect(
                saegis.feature(3, sae="first"),
                8.0,
                to=saegis.feature(5, sae="first"),
                strength=1.5,
                threshold=0.1,
                unit="max_activation",
            )
        ],
        {0: [Redirect(FIRST, 3, 5, 8.0 * 2.0 / 4.0, 1.5, 0.1 * 4.0)]},
    ),
    "to a direction, and from one, at two sites": (
        [
            saegis.redirect(saegis.feature(3, sae="first"), -4.0, to=saegis.direction(VECTOR), strength=1.0),
            saegis.redirect(
                saegis.direction(VECTOR),
                3.0,
                to=saegis.feature(2, sae="second"),
                threshold=0.25,
                site="layers.1",
            ),
        ],
        {
            0: [Redirect(FIRST, 3, VECTOR, -4.0, 1.0)],
            1: [Redirect(SECOND, VECTOR, 2, 3.0, 0.0, 0.25)],
        },
    ),
    "several, of which each reads the clean activation": (
        [
            saegis.redirect(saegis.feature(3, sae="first"), 4.0, to=saegis.feature(5, sae="first")),
            saegis.redirect(saegis.feature(5, sae="first"), 4.0, to=saegis.feature(3, sae="first")),
            saegis.redirect(saegis.feature(7, sae="first"), 2.0, to=saegis.feature(7, sae="first")),
        ],
        {0: [Redirect(FIRST, 3, 5, 4.0), Redirect(FIRST, 5, 3, 4.0), Redirect(FIRST, 7, 7, 2.0)]},
    ),
}


def _prompt() -> list[int]:
    ids = tiny.tokenizer()(PROMPT)["input_ids"]
    assert isinstance(ids, list)
    return ids


def _told(named: Sequence[int], activations: list[Tensor]) -> list[list[float]]:
    return [[value(FIRST, index, x) for x in activations] for index in named]


@pytest.mark.parametrize("case", CASES)
def test_text_and_watched_values_are_those_of_hooks_in_float64(served: Running, case: str) -> None:
    steering, by_layer = CASES[case]
    wanted = expected(_prompt(), by_layer)
    plain = expected(_prompt(), {0: []})
    watched = [saegis.feature(index, sae="first") for index in (3, 5, 7)]
    with saegis.Client(served.target) as client:
        found = client.generate(PROMPT, steering=steering, watch=watched, temperature=0.0, max_tokens=TOKENS)
    assert list(found.choices[0].token_ids) == wanted.tokens
    assert wanted.tokens != plain.tokens, "the redirect says something else"
    for told, before, after in zip(
        found.choices[0].watched,
        _told((3, 5, 7), wanted.before),
        _told((3, 5, 7), wanted.after),
        strict=True,
    ):
        assert list(told.before) == pytest.approx(before, rel=1e-3, abs=1e-3)
        assert list(told.after) == pytest.approx(after, rel=1e-3, abs=1e-3)
    assert [site.edits for site in found.receipt.sites] == [len(each) for each in by_layer.values()]


RULE = """
rules:
- id: away
  redirect:
    features: [{sae: first, index: 3}]
    to: {feature: {sae: first, index: 5}}
    factor: 8
    strength: 1.5
    threshold: 0.1
    unit: max_activation
allow: [{id: any, ops: [clamp, ban, redirect, watch]}]
"""


def test_a_rule_redirects_as_a_request_does_and_is_told_by_name(tmp_path: Path) -> None:
    """The same text as of a request's own; edits of what it reads or writes are denied; the log has both."""
    wanted = expected(_prompt(), {0: [Redirect(FIRST, 3, 5, 8.0 * 2.0 / 4.0, 1.5, 0.1 * 4.0)]})
    log = tmp_path / "audit"
    with (
        ruled(write(tmp_path, RULE), audit={"directory": log}) as (server, _),
        saegis.Client(server.target) as client,
    ):
        found = client.generate(PROMPT, temperature=0.0, max_tokens=TOKENS)
        assert list(found.choices[0].token_ids) == wanted.tokens
        (rule,) = found.receipt.rules
        assert (rule.name, rule.action, rule.labels) == ("p/away", "redirect", ("the red bridge",))
        (site,) = found.receipt.sites
        assert (site.edits, site.rules, site.bans) == (0, 1, 0)
        five, four = saegis.feature(5, sae="first"), saegis.feature(4, sae="first")
        for edit in (saegis.ban(five), saegis.redirect(four, 1.0, to=five)):
            with pytest.raises(saegis.PermissionDenied, match="redirects to this"):
                client.generate(PROMPT, steering=[edit], max_tokens=1)
        own = saegis.redirect(four, 2.0, to=saegis.feature(6, sae="first"), strength=0.5)
        client.generate(PROMPT, steering=[own], max_tokens=1)
    records = [json.loads(line) for line in (log / "audit.jsonl").read_text().splitlines()]
    asked = [edit for record in records if record["kind"] == "decision" for edit in record["edits"]]
    assert [edit.get("to") for edit in asked] == [
        None,
        {"sae": "first", "index": 5},
        {"sae": "first", "index": 6},
    ]
    assert asked[-1]["strength"] == 0.5
