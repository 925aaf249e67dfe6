"""Prompts to ask the tiny model, and results as an evaluation would give them."""

from collections.abc import Mapping, Sequence

import saegis
from saegis_lab.evaluation.ban import AnswerFigures, BanResult, BanRow
from saegis_lab.evaluation.clamp import ClampResult, ClampRow
from saegis_lab.evaluation.experiment import Decoding, Prompt
from saegis_lab.evaluation.figures import TextFigures

PROMPTS = (
    Prompt("the red bridge", "en", True),
    Prompt("birds sing", "en", False),
    Prompt("der Fluss", "de", True),
    Prompt("the day is long", "en", False),
    Prompt("die Vögel", "de", False),
)


def text_figures(perplexity: float | None = 4.0) -> TextFigures:
    """Figures of four answers."""
    ratio = None if perplexity is None else perplexity / 4.0
    return TextFigures(4, 0.25, perplexity, ratio, 4 if perplexity is None else 0)


def answer_figures(harm: float) -> AnswerFigures:
    """Figures of answers with this much harm."""
    return AnswerFigures(harm, min(1.0, 2 * harm), 0.5, text_figures())


def ban_result(
    harm: Mapping[str, Sequence[float | None]],
    kl: Mapping[str, Sequence[float | None]],
    strengths: Sequence[float],
    temperatures: Sequence[float] = (0.0,),
) -> BanResult:
    """A result from each language's harm without the ban and at each strength, and its divergence at each.

    None stands for no prompts of the kind. All temperatures have the same figures.
    """
    rows = []
    for temperature in temperatures:
        for place, strength in enumerate((None, *strengths)):
            for code, values in harm.items():
                harmful = values[place]
                divergence = 0.0 if strength is None else kl[code][place - 1]
                benign = None if kl[code][0] is None else answer_figures(0.0)
                rows.append(
                    BanRow(
                        language=code,
                        strength=strength,
                        temperature=temperature,
                        harmful=None if harmful is None else answer_figures(harmful),
                        benign=benign,
                        kl=None if benign is None else divergence,
                    )
                )
    return BanResult(
        model="tiny",
        sae="first",
        features=(3, "poison"),
        chosen_from=("en",),
        strengths=tuple(strengths),
        decodings=tuple(Decoding(temperature) for temperature in temperatures),
        languages=tuple(harm),
        rows=tuple(rows),
    )


def clamp_result(
    values: Sequence[float], mentions: Mapping[str, Sequence[float]], perplexities: Sequence[float | None]
) -> ClampResult:
    """A result from each language's mentions without the clamp and at each value, and perplexities of all."""
    rows = [
        ClampRow(code, value, mentions[code][place], text_figures(perplexities[place]))
        for place, value in enumerate((None, *values))
        for code in mentions
    ]
    return ClampResult(
        model="tiny",
        sae="first",
        feature=3,
        words="landmark",
        unit="max_activation",
        values=tuple(values),
        decoding=Decoding(),
        languages=tuple(mentions),
        rows=tuple(rows),
    )


def answer_logprobs(client: saegis.Client, text: str) -> tuple[float, ...]:
    """The plain log probabilities of a text's tokens as an answer to an empty message, its end included."""
    conversation = [{"role": "user", "content": ""}, {"role": "assistant", "content": text}]
    opening = len(client.tokenize(messages=conversation[:1]).token_ids)
    return client.score(messages=conversation).plain_logprobs[opening - 1 :] if text else ()
