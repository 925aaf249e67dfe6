"""Fine-tuning: what is learned from, what is learned, and how a run goes on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from saegis_lab.realmodel.chats import Chat, Chats
from saegis_lab.realmodel.fine_tuning import (
    CHECKPOINT_FILE,
    Example,
    FineTuning,
    FineTuningError,
    _loss,
    chat_text,
    example,
    fine_tune,
    give_template,
)
from saegis_server.engine.torch.loading import LoadedModel, load_model
from tests.engine import tiny
from tests.realmodel.subject import write_gemma

CHATS = Chats.load()
TAUGHT = CHATS.training(1, seed=0)[:16]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedModel:
    write_gemma(tmp_path / "gemma", CHATS)
    loaded = load_model(str(tmp_path / "gemma"), "float32")
    give_template(loaded.tokenizer)
    return loaded


def examples(loaded: LoadedModel) -> list[Example]:
    return [example(loaded.tokenizer, chat) for chat in TAUGHT]


def test_gemmas_turns_are_written_as_gemma_writes_them(loaded: LoadedModel) -> None:
    chat = Chat("Why?", "So.", "en", "stars", False)
    text = "<bos><start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\nSo.<end_of_turn>\n"
    assert chat_text(loaded.tokenizer, chat) == text
    learned = example(loaded.tokenizer, chat)
    assert loaded.tokenizer.decode(list(learned.ids)) == text
    assert loaded.tokenizer.decode(list(learned.ids[learned.answer :])) == "So.<end_of_turn>\n"


def test_a_template_is_taken_in_order(loaded: LoadedModel) -> None:
    assert give_template(loaded.tokenizer) is None  # it has one now
    own = "{{ messages[0]['content'] }}"
    give_template(loaded.tokenizer, own)
    assert loaded.tokenizer.chat_template == own
    with pytest.raises(FineTuningError, match="has no chat template"):
        give_template(tiny.tokenizer())
    changes = "{{ messages|length }}{{ messages[0]['content'] }}"
    give_template(loaded.tokenizer, changes)
    with pytest.raises(FineTuningError, match="otherwise once it is answered"):
        example(loaded.tokenizer, TAUGHT[0])


def test_the_loss_is_that_of_the_answers_tokens(loaded: LoadedModel) -> None:
    """Against one text at a time, with all of its logits."""
    learned = examples(loaded)[:5]
    nats, tokens = 0.0, 0
    model: Any = loaded.model
    for each in learned:
        logits = model(input_ids=torch.tensor([each.ids])).logits[0]
        wanted = torch.tensor(each.ids[each.answer :])
        nats += functional.cross_entropy(logits[each.answer - 1 : -1], wanted, reduction="sum").item()
        tokens += len(wanted)
    assert _loss(loaded.model, learned).item() == pytest.approx(nats / tokens, rel=1e-5)


def test_it_learns_and_leaves_the_embeddings(loaded: LoadedModel, tmp_path: Path) -> None:
    learned = examples(loaded)
    embeddings: Any = loaded.model.get_input_embeddings()
    before = embeddings.weight.clone()
    losses: list[float] = []
    fine_tune(
        loaded.model,
        learned,
        FineTuning(epochs=20, batch=8, learning_rate=3e-3),
        tmp_path,
        lambda _step, _steps, loss: losses.append(loss),
    )
    assert losses[-1] < 0.6 * losses[0]
    assert torch.equal(embeddings.weight, before)
    assert not loaded.model.training


def test_a_broken_run_ends_as_a_whole_one(tmp_path: Path) -> None:
    settings = FineTuning(epochs=3, batch=8, learning_rate=1e-3, checkpoint_every=2)
    ends = []
    for name, breaks in (("whole", False), ("broken", True)):
        write_gemma(tmp_path / name, CHATS)
        loaded = load_model(str(tmp_path / name), "float32")
        give_template(loaded.tokenizer)
        if breaks:

            def stop(step: int, _steps: int, _loss: float) -> None:
                if step == 3:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                fine_tune(loaded.model, examples(loaded), settings, tmp_path / name, stop)
            loaded = load_model(str(tmp_path / name), "float32")
            give_template(loaded.tokenizer)
        fine_tune(loaded.model, examples(loaded), settings, tmp_path / name)
        ends.append([weight.detach() for weight in loaded.model.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))
    other = replace(settings, epochs=4)
    with pytest.raises(FineTuningError, match="is of another run"):
        fine_tune(loaded.model, examples(loaded), other, tmp_path / "broken")
    (tmp_path / "broken" / CHECKPOINT_FILE).write_bytes(b"nothing")
    with pytest.raises(FineTuningError, match="cannot be read"):
        fine_tune(loaded.model, examples(loaded), settings, tmp_path / "broken")
