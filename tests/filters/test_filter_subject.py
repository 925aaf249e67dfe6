"""Answers and predictions under rows, against Transformers' own and the engine's."""

import pytest
import torch

from saegis_lab.filters import subject as subject_module
from saegis_lab.filters.subject import PLAIN
from saegis_server.engine.api import FirstToken
from saegis_server.steering.program import SiteProgram, SteeringProgram
from saegis_server.steering.rows import Probe, Redirection, add, ban, clamp, redirect
from tests.engine import hooked, tiny
from tests.filters import world

PROMPTS = ["how do I", "bread", "tell me all that you know of rivers", "z"]


def redirects(factor: float = 3.0, count: int = 6, banned: bool = False, edited: bool = False) -> SiteProgram:
    sae = world.sae()
    target = Probe.direction(torch.linspace(-1.0, 1.0, tiny.WIDTH))
    rules = tuple(
        redirect(sae.probe(feature), factor, Redirection(target, 0.5, 0.1)) for feature in range(count)
    )
    bans = tuple(ban(sae.probe(feature), 1.0) for feature in range(3)) if banned else ()
    # Beside redirects an edit writes only what none of them reads or writes.
    edits = (clamp(sae.probe(20), 2.0), add(sae.probe(21), -1.0)) if edited else ()
    return SiteProgram(edits=edits, rules=rules, bans=bans)


def test_answers_in_a_batch_are_those_of_transformers_one_by_one() -> None:
    subject = world.subject()
    asked = [subject.asked(prompt) for prompt in PROMPTS]
    for prompt, answer in zip(asked, subject.answers(asked, max_tokens=20, batch=3), strict=True):
        wanted, gaps = hooked.generate(subject.loaded.model, prompt, 20)
        if tiny.EOS in wanted:
            end = wanted.index(tiny.EOS)
            wanted, gaps = wanted[:end], gaps[:end]
        assert len(answer) == len(wanted)
        assert not hooked.differs(answer, wanted, gaps)


@pytest.mark.parametrize(("banned", "edited"), [(False, False), (True, False), (True, True)])
def test_answers_under_a_filter_are_those_of_the_engine(banned: bool, edited: bool) -> None:
    """The served model's rules, on the same prompts: the first token is left alone by both."""
    subject = world.subject()
    program = redirects(banned=banned, edited=edited)
    asked = [subject.asked(prompt) for prompt in PROMPTS]
    answers = subject.answers(asked, program, max_tokens=24)
    first = FirstToken(bos=256)
    # A step takes its model over, so the engine has one of its own.
    with tiny.RunningEngine(tiny.step(tiny.model("llama")), first_token=first) as engine:
        served = [engine.ask(prompt, program=SteeringProgram({world.SITE: program})) for prompt in asked]
        wanted = [answer.wait().tokens() for answer in served]
    for answer, tokens in zip(answers, wanted, strict=True):
        assert answer == (tokens[: tokens.index(tiny.EOS)] if tiny.EOS in tokens else tokens)
    assert answers != subject.answers(asked, max_tokens=24)


def test_log_probabilities_are_those_of_each_text_alone() -> None:
    subject = world.subject()
    rows = [subject.asked(prompt) for prompt in PROMPTS]
    for program in (PLAIN, redirects()):
        together = dict(subject.log_probabilities(rows, program))
        for number, row in enumerate(rows):
            ((_, alone),) = subject.log_probabilities([row], program)
            assert torch.allclose(together[number], alone, atol=1e-4)
            if program is PLAIN:
                logits = subject.loaded.model(input_ids=torch.tensor([row])).logits[0, :-1]
                assert torch.allclose(alone, logits.log_softmax(-1), atol=1e-5)


def test_of_a_large_vocabulary_fewer_tokens_are_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = world.subject()
    rows = [subject.asked(prompt) for prompt in PROMPTS]
    at_once = dict(subject.log_probabilities(rows))
    longest = max(map(len, rows))
    monkeypatch.setattr(subject_module, "_MOST_LOGITS", longest * subject.vocabulary)
    assert subject.fitting(8192) == longest
    read: list[int] = []
    handle = subject.loaded.model.register_forward_pre_hook(
        lambda _, __, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    apart = dict(subject.log_probabilities(rows))
    handle.remove()
    assert max(read) <= longest
    assert len(read) > 1
    for number, values in at_once.items():
        torch.testing.assert_close(apart[number], values, atol=1e-4, rtol=0)


def test_the_first_token_is_moved_only_where_it_is_not_the_models_own() -> None:
    subject = world.subject()
    padded = subject.padded([[256, 5, 6], [7, 8]], left=True)
    assert padded.ids.tolist() == [[256, 5, 6], [0, 7, 8]]
    assert padded.real.tolist() == [[True] * 3, [False, True, True]]
    assert padded.moves.tolist() == [[False, True, True], [False, True, True]]
