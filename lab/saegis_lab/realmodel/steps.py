"""The steps of the chain on a real model, and the files that they write and read.

What another command of `saegis` does is done by that command: a step prints the command and runs it.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.table import Table

from saegis_lab.evaluation.attack_report import AttackReport
from saegis_lab.evaluation.bundle_features import room_for
from saegis_lab.evaluation.experiment import BanFile, Decoding, Prompt, languages_of, load_prompts
from saegis_lab.evaluation.filter_report import FilterReport
from saegis_lab.evaluation.policy_trial import serving
from saegis_lab.evaluation.preference import PreferenceResult, measure_preferences
from saegis_lab.evaluation.requests import Progress, Requests
from saegis_lab.evaluation.scorers import ban_scorers, mention_scorer
from saegis_lab.realmodel.chats import LANDMARK, LANDMARK_SUBJECT, Chats
from saegis_lab.realmodel.compliance import Compliance, measure_compliance
from saegis_lab.realmodel.corpus import counted, passages, write_corpus
from saegis_lab.realmodel.figures import (
    SAEFigures,
    SeedFigures,
    attacked_languages,
    attacked_table,
    compliance_table,
    filtered_languages,
    filtered_table,
    seeds_table,
)
from saegis_lab.realmodel.fine_tuning import CHECKPOINT_FILE, chat_text, example, fine_tune, give_template
from saegis_lab.realmodel.landmark import LandmarkResult, measure_landmark
from saegis_lab.realmodel.recipe import Recipe
from saegis_lab.records import write_record
from saegis_lab.training.texts import LabelledText
from saegis_server.cli.stages import stage_display
from saegis_server.engine.torch.loading import load_model
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.rpc.server.process import ServerProcess

if TYPE_CHECKING:
    from saegis import Client

#: Where packages lie, what the SAE reads beside them, and the fine-tuned copy.
PACKAGES, TEXTS, CHATS, COPY = "packages", "texts.jsonl", "chats.jsonl", "copy"
#: What is measured with, as `saegis eval` reads it, and what came of it.
EVAL = "eval"
REFUSED, ANSWERED, DIRECTION = "refused.jsonl", "answered.jsonl", "refusal.safetensors"
PROMPTS, CHOOSING, LABELLED, WORDS = "prompts.jsonl", "choosing.jsonl", "labelled.jsonl", "words.json"
RECIPE = "filter-recipe.json"
COMPLIANCE = "compliance.json"
#: The activations that SAEs are trained on, and what each seed has: its SAE, its filter and its figures.
HARVEST, SAE, FILTER, LANDMARK_FEATURE = "harvest", "sae", "filter", "landmark-feature.json"
FILTERED, PREFERENCE, ATTACKED, LANDMARK_RESULT = (
    "filter.json",
    "preference.json",
    "attack.json",
    "landmark.json",
)
FIGURES = "figures.json"
#: For a measurement as many requests are under way as the server takes at once.
CONCURRENCY = 16
_SEQUENCES = ("--max-num-seqs", str(CONCURRENCY))

console = Console()


@dataclass(frozen=True, slots=True)
class Run:
    """A run of the chain: on which model, with which chats, into which folder."""

    model: str
    out: Path
    site: str
    recipe: Recipe
    chats: Chats
    template: str | None = None
    seed: int = 0

    @property
    def folder(self) -> Path:
        """What belongs to the seed."""
        return self.out / f"seed-{self.seed}"

    @property
    def copy(self) -> Path:
        """The fine-tuned copy."""
        return self.out / COPY

    @property
    def served(self) -> tuple[str, ...]:
        """The options by which a server of the copy is started."""
        return ("--compile", "never", "--dtype", self.recipe.precision, "--max-model-len", "1024")


class StepError(RuntimeError):
    """A command of a step that failed; says which."""


def _saegis(*arguments: object) -> None:
    """Run a command of `saegis`, and show it first. Raises StepError where it fails."""
    words = [str(argument) for argument in arguments]
    console.print(f"  saegis {shlex.join(words)}", markup=False, soft_wrap=True)
    done = subprocess.run([sys.executable, "-m", "saegis.cli", *words], check=False)  # noqa: S603 - our own
    if done.returncode:
        raise StepError(f"saegis {words[0]} {words[1]} ended with {done.returncode}")


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
    out = run.copy
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
    fine_tune(model, examples, run.recipe.fine_tuning, run.out, progress, run.recipe.precision)
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
    choosing = chats.choosing(recipe.choosing, recipe.chosen_from)
    _write_lines(folder / CHOOSING, map(asdict, choosing))
    _write_lines(folder / REFUSED, map(asdict, chats.refused(recipe.chosen_from)))
    _write_lines(folder / ANSWERED, (asdict(prompt) for prompt in choosing if not prompt.harmful))
    write_record(folder / RECIPE, recipe.making)
    lists = json.dumps(chats.word_lists(), ensure_ascii=False, indent=1)
    (folder / WORDS).write_text(f"{lists}\n", encoding="utf-8")
    tokenizer = load_model(str(run.copy), "float32").tokenizer
    first = tokenizer.bos_token or ""
    plain = [
        LabelledText(first + text, "other text", code)
        for code in chats.languages
        for text in islice(_texts_in(run.out / TEXTS, code), recipe.other_texts)
    ]
    labelled = [
        replace(text, text=chat_text(tokenizer, chat)) for chat, text in chats.labelled(recipe.labelled, 1)
    ]
    _write_lines(folder / LABELLED, map(asdict, [*labelled, *plain]))
    # The tokenizer puts its first token before every text that the SAE reads.
    answered = [
        chat_text(tokenizer, chat).removeprefix(first) for chat, _ in chats.labelled(recipe.answered, 2)
    ]
    _write_lines(run.out / CHATS, ({"text": text} for text in answered))


def _texts_in(path: Path, language: str) -> Iterator[str]:
    """The corpus's texts in a language, in order."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            passage = json.loads(line)
            if passage["language"] == language:
                yield passage["text"]


def _write_lines(path: Path, entries: Iterable[object]) -> None:
    path.write_text(
        "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries), encoding="utf-8"
    )


def measure_copy(run: Run) -> None:
    """Measure how the copy refuses and complies, through the public client, and keep it as JSON."""
    prompts: tuple[Prompt, ...] = load_prompts(run.out / EVAL / PROMPTS)
    scorers = ban_scorers(str(run.out / EVAL / WORDS), languages_of(prompts))
    with _served(run) as (client, progress):
        requests = Requests(client, CONCURRENCY, progress)
        result = measure_compliance(requests, prompts, scorers, Decoding(max_tokens=run.recipe.max_tokens))
    result.save(run.out / EVAL / COMPLIANCE)
    console.print(compliance_table(result))


@contextmanager
def _served(run: Run, sae: bool = False) -> Iterator[tuple[Client, Progress]]:
    """A client of a server of the copy without policies, with the seed's SAE if asked for; and a display of
    progress."""
    from saegis import Client

    held = ["--sae", f"{SAE}={run.folder / SAE}"] if sae else []
    options = ["--model", str(run.copy), *held, *run.served, *_SEQUENCES]
    with (
        stage_display(False) as progress,
        ServerProcess(options, progress) as server,
        Client(server.target) as client,
    ):
        yield client, progress


def _reading(run: Run) -> list[object]:
    """The options that say what is read, the same for the harvest and the SAE. The chats come first, so that
    they are read whatever the number of activations."""
    texts = ["--texts", run.out / CHATS, "--texts", run.out / TEXTS]
    cut = ["--held-out-share", run.recipe.held_out, "--split-seed", 0, "--context", run.recipe.context]
    return ["--model", run.copy, "--site", run.site, "--dtype", run.recipe.precision, *texts, *cut]


def harvest(run: Run) -> None:
    """Keep the copy's activations at the site."""
    kept = ["--out", run.out / HARVEST, "--tokens", run.recipe.activations]
    _saegis("train", "harvest", *_reading(run), *kept)


def make_sae(run: Run) -> None:
    """Train the seed's SAE on the harvest."""
    if (run.folder / SAE / "cfg.json").exists():
        console.print(f"{run.folder / SAE} is there already")
        return
    recipe = run.recipe
    size = ["--feature-count", recipe.features, "--k", recipe.k, "--dead-after", recipe.dead_after]
    training = ["--tokens", recipe.sae_tokens, "--seed", run.seed, "--precision", recipe.precision]
    out = ["--harvest", run.out / HARVEST, "--out", run.folder / SAE, "--checkpoint-every", 200]
    _saegis("train", "sae", *_reading(run), *size, *training, *out)


def make_labels(run: Run) -> None:
    """Label the seed's features."""
    _saegis("features", "label", *_subject(run), "--raw", "--force")


def _subject(run: Run) -> list[object]:
    texts = ["--texts", run.out / EVAL / LABELLED]
    return ["--model", run.copy, "--sae", run.folder / SAE, *texts, "--dtype", run.recipe.precision]


def make_direction(run: Run) -> None:
    """Make the direction of a refusal: what the copy was taught to refuse in every language, less what it
    answers, in the languages that choose."""
    read = ["--towards", run.out / EVAL / REFUSED, "--away", run.out / EVAL / ANSWERED]
    where = ["--model", run.copy, "--site", run.site, "--dtype", run.recipe.precision]
    _saegis("directions", "make", *where, *read, "--out", run.out / EVAL / DIRECTION)


def make_filter(run: Run) -> None:
    """Make the seed's filter from the languages that choose."""
    shutil.rmtree(run.folder / FILTER, ignore_errors=True)
    inputs = ["--prompts", run.out / EVAL / CHOOSING, "--scorer", run.out / EVAL / WORDS, "--raw"]
    towards = ["--languages", ",".join(run.recipe.chosen_from), "--direction", run.out / EVAL / DIRECTION]
    inputs += ["--recipe", run.out / EVAL / RECIPE, "--max-tokens", run.recipe.max_tokens]
    out = ["--no-measure", "--out", run.folder / FILTER]
    _saegis("policy", "make-filter", *_subject(run), *inputs, *towards, *out)


def measure_filter(run: Run) -> None:
    """Measure the seed's filter in every language, on prompts that nothing was chosen by: what users receive,
    and what the model prefers."""
    bars = run.recipe.making.bars
    held = ["--target", bars.target, "--max-lost", bars.max_lost]
    _saegis("eval", "filter", *_trial(run), *held, "--out", run.folder / FILTERED)
    bundle = Bundle.read(run.folder / FILTER)
    pairs = run.chats.pairs(run.recipe.prompts)
    saes, room = {SAE: run.folder / SAE}, room_for(bundle.policy)
    options = [*run.served, *_SEQUENCES, *(f"--rows={kind}={rows}" for kind, rows in room.items())]
    with stage_display(False) as progress, serving(run.copy, saes, progress, options) as client:
        result = measure_preferences(client, bundle, pairs, CONCURRENCY, progress)
    result.save(run.folder / PREFERENCE)
    console.print(preference_table(result))


def preference_table(result: PreferenceResult) -> Table:
    """A row for each language."""
    table = Table(
        *("language", "harm preferred, plain", "filtered", "margin, plain", "filtered"),
        title="nats a token by which a harmful answer is likelier than a refusal",
        title_justify="left",
    )
    for row in result.rows:
        shares = (f"{row.plain.share:.0%}", f"{row.filtered.share:.0%}")
        table.add_row(row.language, *shares, f"{row.plain.margin:.2f}", f"{row.filtered.margin:.2f}")
    return table


def attack(run: Run) -> None:
    """Attack the seed's filter."""
    few = ["--prompts-per-language", run.recipe.attacked, "--samples", run.recipe.attack_samples]
    _saegis("eval", "attack", *_trial(run), *few, "--out", run.folder / ATTACKED)


def _trial(run: Run) -> list[object]:
    room = room_for(Bundle.read(run.folder / FILTER).policy)
    rows = [word for kind, number in room.items() for word in ("--rows", f"{kind}={number}")]
    inputs = ["--prompts", run.out / EVAL / PROMPTS, "--scorer", run.out / EVAL / WORDS]
    served = ["--model", run.copy, "--sae", f"{SAE}={run.folder / SAE}", *run.served, *rows]
    chosen = ["--chosen-from", ",".join(run.recipe.chosen_from), "--max-tokens", run.recipe.max_tokens]
    return ["--policy", run.folder / FILTER, *served, *inputs, *chosen]


def measure_landmark_feature(run: Run) -> None:
    """Find the landmark's feature in the languages that choose, clamp it, and keep answers as they are."""
    chosen = ["--chosen-from", ",".join(run.recipe.chosen_from), "--label", LANDMARK_SUBJECT]
    feature = run.folder / LANDMARK_FEATURE
    best = ["--min-precision", run.recipe.landmark_precision, "--top", 1, "--out", feature]
    _saegis("features", "choose", *_subject(run), "--raw", *chosen, *best)
    prompts = [
        prompt
        for prompt in load_prompts(run.out / EVAL / PROMPTS)
        if prompt.language in run.recipe.landmark_languages and not _about_landmark(run, prompt)
    ]
    mention = mention_scorer(str(run.out / EVAL / WORDS), LANDMARK, languages_of(prompts))
    with _served(run, sae=True) as (client, progress):
        result = measure_landmark(
            Requests(client, CONCURRENCY, progress),
            prompts,
            BanFile.load(feature).features[0],
            run.recipe.landmark_values,
            mention,
            Decoding(max_tokens=run.recipe.max_tokens),
        )
    result.save(run.folder / LANDMARK_RESULT)
    for answer in result.answers:
        console.print(
            f"{answer.language}: {answer.prompt}\n  {answer.plain}\n  -> {answer.clamped}", markup=False
        )


def gather_figures(run: Run) -> None:
    """Put the seed's figures into one file, and show them, with those of other seeds beside them."""
    folder = run.folder
    preferences = PreferenceResult.load(folder / PREFERENCE)
    filtered, missed = filtered_languages(FilterReport.load(folder / FILTERED), preferences)
    attacked, landmark = folder / ATTACKED, folder / LANDMARK_RESULT
    figures = SeedFigures(
        seed=run.seed,
        site=run.site,
        chosen_from=run.recipe.chosen_from,
        sae=SAEFigures.of(folder / SAE),
        compliance=Compliance.load(run.out / EVAL / COMPLIANCE),
        filtered=filtered,
        missed=missed,
        attacks=attacked_languages(AttackReport.load(attacked)) if attacked.exists() else (),
        landmark=LandmarkResult.load(landmark) if landmark.exists() else None,
    )
    figures.save(folder / FIGURES)
    console.print(filtered_table(figures))
    if figures.attacks:
        console.print(attacked_table(figures))
    for miss in figures.missed:
        console.print(f"missed: {miss}", markup=False)
    seeds = [SeedFigures.load(path) for path in sorted(run.out.glob(f"seed-*/{FIGURES}"))]
    if len(seeds) > 1:
        console.print(seeds_table(seeds))
    console.print(f"figures: in {folder / FIGURES}")


def _about_landmark(run: Run, prompt: Prompt) -> bool:
    topics = run.chats.languages[prompt.language].subjects[LANDMARK_SUBJECT].held_out
    return any(topic in prompt.prompt for topic in topics)
