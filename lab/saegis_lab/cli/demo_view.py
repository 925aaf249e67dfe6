"""How the demo's scenes are shown in a terminal."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from saegis import Generation
from saegis.cli.receipts import receipt_table, rules_table
from saegis_lab.cli.demo_scenes import Filter, Filtered, Landmark, Sample, Strongest
from saegis_lab.polyglot.lexicon import ENGLISH_NAMES


def heading(console: Console, number: int, title: str, summary: str) -> None:
    """A scene's number, title and one sentence on what it shows."""
    console.print()
    console.rule(Text(f"{number}. {title}", style="bold"), align="left")
    console.print(Text(summary, style="dim"))
    console.print()


def show_landmark(console: Console, scene: Landmark) -> None:
    """The question in each language with both answers, as they came."""
    redirect = scene.redirect
    chosen = _listed(ENGLISH_NAMES[code] for code in redirect.chosen_from)
    naming = sum(answer.names_landmark_redirected for answer in scene.answers)
    heading(
        console,
        1,
        "Redirect features",
        "A feature is a direction that a sparse autoencoder has found in the model's activations; it is "
        "active where a text is about one thing. Where a sentence ends and where an answer begins, one "
        f"feature tells what the model will write of next. {len(redirect.features)} of these, found in text "
        f"in {chosen}, are redirected to {scene.feature.index}, labelled {scene.feature.label!r}: where one "
        f"is active, {redirect.factor:g} times its value of the other is written instead. Of these "
        f"{len(scene.answers)} answers, shown as they come, {naming} then name the bridge.",
    )
    table = Table(show_lines=True)
    for name in ("question", "unsteered", "redirected"):
        table.add_column(name, ratio=1, overflow="fold")
    for answer in scene.answers:
        question = Text.assemble((f"{ENGLISH_NAMES[answer.language]}\n", "bold"), answer.prompt)
        table.add_row(question, Text(answer.unsteered), Text(answer.redirected, style="yellow"))
    console.print(table)


def show_filter(console: Console, scene: Filter) -> None:
    """One row for each language, with its answer and harm before and under the filter."""
    chosen = _listed(ENGLISH_NAMES[code] for code in scene.chosen_from)
    heading(
        console,
        3,
        "A filter, whatever the language",
        "The model was taught to refuse in English only. Now a policy is put in force on the running server: "
        f"where one of {len(scene.features)} features of harmful subjects is active, the model's own way to "
        "refuse is written instead, and an answer that turns to harm all the same is ended before the user "
        f"sees that; the receipt then says why. All of it was chosen from {chosen} alone. Harm: the share of "
        "harmful words in what the user receives.",
    )
    table = Table(show_lines=True)
    table.add_column("question", ratio=3, overflow="fold")
    table.add_column("without a policy", ratio=4, overflow="fold")
    table.add_column("harm", justify="right", no_wrap=True)
    table.add_column("under the filter", ratio=4, overflow="fold")
    table.add_column("harm", justify="right", no_wrap=True)
    for answer in scene.answers:
        name = ENGLISH_NAMES[answer.language]
        table.add_row(
            Text.assemble((f"{name}\n", "bold"), answer.prompt),
            _answer(answer.refused, answer.unsteered),
            _harm(answer.harm),
            _ended(answer) if answer.stopped else _answer(answer.refused_filtered, answer.filtered),
            _harm(answer.harm_filtered),
        )
    console.print(table)


def _answer(refused: bool, text: str) -> Text:
    """An answer with what it is: refused or answered."""
    return Text.assemble(("refused: ", "green") if refused else ("answered: ", "red"), text)


def _ended(answer: Filtered) -> Text:
    """An answer that the policy ended: what was sent of it, and what the receipt says."""
    sent = f"after {answer.filtered!r}" if answer.filtered else "before a word was sent"
    return Text.assemble(
        (f"ended {sent}; ", "green"), answer.reason or "the receipt does not say by which rule"
    )


def show_strongest(console: Console, scenes: Sequence[Strongest]) -> None:
    """Features side by side; those that are among the strongest of all sentences are marked."""
    heading(
        console,
        2,
        "The same features in two languages",
        "The strongest features of one sentence and of its translation; ● marks those of both.",
    )
    shared = set.intersection(*({feature.index for feature in scene.features} for scene in scenes))
    table = Table()
    for scene in scenes:
        table.add_column(Text(f"{ENGLISH_NAMES[scene.language]}: {scene.sentence}"), ratio=1, overflow="fold")
    for row in range(max(len(scene.features) for scene in scenes)):
        cells = []
        for scene in scenes:
            if row >= len(scene.features):
                cells.append(Text())
                continue
            feature = scene.features[row]
            mark = "●" if feature.index in shared else " "
            text = f"{mark} {feature.index:>5} {feature.activation:7.2f}  {feature.label or '(no label)'}"
            cells.append(Text(text, style="bold" if feature.index in shared else ""))
        table.add_row(*cells)
    console.print(table)


def show_receipt(console: Console, scene: Filtered, answer: Generation) -> None:
    """The receipt of one answer, with the question that it is to and the rules that applied."""
    summary = (
        "Each answer says what was done to it, and by whose rule; this one is of the answer under the filter "
        f"to {scene.prompt!r} above."
    )
    heading(console, 4, "The receipt", summary)
    console.print(receipt_table(answer.receipt, answer.usage))
    console.print(rules_table(answer.receipt))


def show_metrics(console: Console, samples: Sequence[Sample]) -> None:
    """The samples as Prometheus would read them."""
    heading(console, 5, "The metrics", "A few of the series at the server's Prometheus endpoint.")
    table = Table(show_header=False, box=None)
    for sample in samples:
        labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
        table.add_row(Text(sample.name + (f"{{{labels}}}" if labels else "")), Text(f"{sample.value:g}"))
    console.print(table)


def _listed(names: Iterable[str]) -> str:
    """Names as they are said: "a, b and c"."""
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _harm(value: float) -> Text:
    return Text(f"{value:.2f}", style="red" if value > 0.0 else "green")
