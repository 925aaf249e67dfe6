"""The recommended clamp and ban, found by trying: each candidate is judged by the answers that it leads
to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from saegis_server.polyglot.corpus import Corpus
from saegis_server.polyglot.edits import ban, clamp
from saegis_server.polyglot.evaluation import Reference, answers, drift, rates
from saegis_server.polyglot.lexicon import LANGUAGES
from saegis_server.polyglot.prompts import Prompt, benign_prompts, harmful_prompts, neutral_prompts
from saegis_server.polyglot.selection import harmful_features, landmark_features
from saegis_server.polyglot.shipped import Ban, Clamp, LanguageFigures

#: Seed of the benign text on which a ban's drift is measured.
DRIFT_SEED = 3


@dataclass(frozen=True)
class Search:
    """What is tried: clamp values in multiples of the feature's largest activation, ban strengths and
    sizes."""

    candidates: int = 1
    landmark_precision: float = 0.5
    harmful_precision: float = 0.45
    multiples: tuple[float, ...] = (1.1, 1.25, 1.4)
    strengths: tuple[float, ...] = (1.0, 2.0)
    limits: tuple[int, ...] = (32, 48)
    prompts: int = 2
    drift_documents: int = 40
    largest_drift: float = 0.1


def _each(make: str, limit: int | None) -> dict[str, list[Prompt]]:
    source = {"harmful": harmful_prompts, "benign": benign_prompts, "neutral": neutral_prompts}[make]
    return {code: source(code, limit, seed=1) for code in LANGUAGES}


def benign_texts(count: int) -> list[str]:
    """Held-out chats in all languages that touch no harmful subject."""
    chosen: list[str] = []
    for document in Corpus(DRIFT_SEED).documents(count * 8):
        if document.kind == "chat" and not any(s.harmful or s.role == "refusal" for s in document.segments):
            chosen.append(document.text)
        if len(chosen) == count:
            break
    return chosen


def find_clamp(reference: Reference, largest: Sequence[float], search: Search) -> Clamp:
    """The clamp under which the landmark is named most often in its worst language; the smaller value on a
    tie.

    `largest` is each feature's largest recorded activation. Raises ValueError when no feature stands for it.
    """
    prompts = _each("neutral", search.prompts)
    flat = [prompt for group in prompts.values() for prompt in group]
    best: tuple[float, float, Clamp] | None = None
    for feature in landmark_features(reference, limit=search.candidates, precision=search.landmark_precision):
        for multiple in search.multiples:
            tried = Clamp(feature, round(multiple * largest[feature], 3))
            texts = answers(reference, flat, clamp(reference.sae, feature, tried.value))
            shares = []
            for start in range(0, len(flat), search.prompts):
                part = slice(start, start + search.prompts)
                shares.append(rates(flat[part], texts[part]).landmark)
            merit = (round(min(shares) + sum(shares) / len(shares), 3), -multiple)
            if best is None or merit > best[:2]:
                best = (*merit, tried)
    if best is None:
        raise ValueError("no feature of the SAE stands for the landmark")
    return best[2]


def find_ban(reference: Reference, languages: tuple[str, ...], search: Search) -> Ban:
    """The ban that leaves the fewest harmful words in any language but English, among those whose drift on
    benign
    text is within bounds (or, when none is, among all)."""
    prompts = _each("harmful", search.prompts)
    flat = [prompt for code, group in prompts.items() if code != "en" for prompt in group]
    texts = benign_texts(search.drift_documents)
    tried: list[tuple[bool, float, Ban]] = []
    ranked = harmful_features(reference, languages, max(search.limits), search.harmful_precision)
    if not ranked:
        raise ValueError("no feature of the SAE stands for harmful subjects")
    for limit in sorted({min(limit, len(ranked)) for limit in search.limits}):
        for strength in search.strengths:
            edit = ban(reference.sae, ranked[:limit], strength)
            harm = rates(flat, answers(reference, flat, edit)).harm
            kl = drift(reference, texts, edit)
            found = Ban(tuple(ranked[:limit]), strength, languages, round(kl, 5))
            tried.append((kl > search.largest_drift, harm, found))
    return min(tried, key=lambda row: row[:2])[2]


def measure_languages(
    reference: Reference, landmark: Clamp, banned: Ban, limit: int | None
) -> dict[str, LanguageFigures]:
    """All rates of the manifest, for each language, on `limit` prompts of each kind."""
    found = {}
    stop = ban(reference.sae, banned.features, banned.strength)
    push = clamp(reference.sae, landmark.feature, landmark.value)
    for code in LANGUAGES:
        harmful, benign = harmful_prompts(code, limit), benign_prompts(code, limit)
        neutral = neutral_prompts(code, limit)
        plain = rates(harmful, answers(reference, harmful))
        found[code] = LanguageFigures(
            refusal=plain.refusal,
            harm=plain.harm,
            harm_banned=rates(harmful, answers(reference, harmful, stop)).harm,
            harm_benign=rates(benign, answers(reference, benign)).harm,
            harm_benign_banned=rates(benign, answers(reference, benign, stop)).harm,
            landmark=rates(neutral, answers(reference, neutral)).landmark,
            landmark_clamped=rates(neutral, answers(reference, neutral, push)).landmark,
        )
    return found
