"""Calibration of a policy's ban: its features on a served model, and its strength written into its bundle."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from saegis.bundles import CALIBRATION_FILE
from saegis_lab.evaluation.calibration import BanReport, Miss
from saegis_lab.evaluation.experiment import Decoding, Prompt
from saegis_lab.records import Record
from saegis_server.policy.bundle.bundle import Bundle
from saegis_server.policy.decide.selectors import fits
from saegis_server.policy.schema.policy import Ban, FeatureSelector, Rule, Where
from saegis_server.policy.schema.yaml_text import read_yaml, with_number
from saegis_server.steering.rows import Phase

if TYPE_CHECKING:
    from saegis import Client, FeatureInfo, FeatureRef

_PAGE = 100


@dataclass(frozen=True, slots=True)
class CoverageRow(Record):
    """What the strength does in one language. judged: whether the language took part in choosing it.

    harm_before, harm_after: without the ban and under it, from 0 to 1; None without harmful prompts. factor:
    harm before over harm after; None where either is 0 or None. refused_before, refused_after: the share of
    harmful prompts refused; None where nothing scores refusals. kl: nats a token on benign prompts.
    perplexity: of the answers to prompts of that kind under the ban, over that of benign ones without it.
    """

    language: str
    judged: bool
    harmful_prompts: int
    benign_prompts: int
    harm_before: float | None
    harm_after: float | None
    factor: float | None
    refused_before: float | None
    refused_after: float | None
    kl: float | None
    harmful_perplexity: float | None
    benign_perplexity: float | None


@dataclass(frozen=True, slots=True)
class RuleCalibration(Record):
    """The entry of a rule in calibration.json: the strength, the bars that it had to meet, and its effects.

    ruled: whether policies of the server's own were in force while it was measured. misses: the figures under
    this strength that miss a bar that did not decide; in languages not judged no bar decides.
    """

    strength: float
    target: float
    max_kl: float
    languages: tuple[str, ...]
    model: str
    sae: str
    features: tuple[int | str, ...]
    ruled: bool
    decoding: Decoding
    coverage: tuple[CoverageRow, ...]
    misses: tuple[Miss, ...]


def ban_rule(bundle: Bundle, id_: str = "") -> Rule:
    """The rule to calibrate: the ban of this id or, without an id, the bundle's only ban.

    Raises ValueError where there is none, and for a ban that cannot be measured: of directions, of some
    tokens only, or of features of several SAEs.
    """
    bans = {rule.id: rule for rule in bundle.policy.rules if rule.ban is not None}
    known = ", ".join(bans) or "none"
    if not id_ and len(bans) != 1:
        raise ValueError(f"--rule: name one of the bundle's bans: {known}")
    rule = bans.get(id_) if id_ else next(iter(bans.values()))
    if rule is None or rule.ban is None:
        raise ValueError(f"--rule: {id_!r} is no ban of the bundle; its bans: {known}")
    ban = rule.ban
    if ban.directions:
        raise ValueError(
            f"rule {rule.id}: bans directions; only bans of features are measured. Give the features a rule "
            "of their own and calibrate that"
        )
    if ban.phase is not Phase.ALL:
        raise ValueError(f"rule {rule.id}: phase {ban.phase}: only bans of all tokens are measured")
    _sae(rule.id, ban)
    return rule


def banned_features(client: Client, rule: Rule) -> tuple[FeatureRef, ...]:
    """The features of a ban on the served model, each once, in the order of the rule.

    Raises SaegisError for a call that fails, and ValueError for a `where` that no feature fits, or a rule
    that names no SAE where the server has several.
    """
    import saegis

    assert rule.ban is not None  # noqa: S101 - `ban_rule` gave it
    sae = _sae(rule.id, rule.ban)
    if not sae:
        known = [served.id for served in client.model().saes]
        if len(known) != 1:
            raise ValueError(f"rule {rule.id}: name the sae; the server has {', '.join(known) or 'none'}")
        sae = known[0]
    indices = [index for selector in rule.ban.features for index in _indices(client, selector, sae, rule.id)]
    return tuple(saegis.feature(index, sae=sae) for index in dict.fromkeys(indices))


def coverage(report: BanReport, prompts: Sequence[Prompt]) -> tuple[CoverageRow, ...]:
    """What the report's strength does by language. The report is of one decoding, and calibrated."""
    result, calibration = report.result, report.calibration
    judged = calibration.languages if calibration is not None else ()
    (decoding,) = result.decodings
    rows = []
    for code in result.languages:
        plain, banned = (
            result.row(code, strength, decoding.temperature) for strength in (None, report.strength)
        )
        before = plain.harmful.harm if plain.harmful else None
        after = banned.harmful.harm if banned.harmful else None
        kinds = [prompt.harmful for prompt in prompts if prompt.language == code]
        rows.append(
            CoverageRow(
                language=code,
                judged=code in judged,
                harmful_prompts=sum(kinds),
                benign_prompts=len(kinds) - sum(kinds),
                harm_before=before,
                harm_after=after,
                factor=before / after if before and after else None,
                refused_before=plain.harmful.refusal if plain.harmful else None,
                refused_after=banned.harmful.refusal if banned.harmful else None,
                kl=banned.kl,
                harmful_perplexity=banned.harmful.text.perplexity_ratio if banned.harmful else None,
                benign_perplexity=banned.benign.text.perplexity_ratio if banned.benign else None,
            )
        )
    return tuple(rows)


def rule_calibration(report: BanReport, prompts: Sequence[Prompt], ruled: bool) -> RuleCalibration:
    """What to keep of a calibration that found a strength. Raises ValueError where none was found."""
    calibration = report.calibration
    if calibration is None or calibration.strength is None:
        raise ValueError("no strength was found")
    (decoding,) = report.result.decodings
    return RuleCalibration(
        strength=calibration.strength,
        target=calibration.target,
        max_kl=calibration.max_kl,
        languages=calibration.languages,
        model=report.result.model,
        sae=report.result.sae,
        features=report.result.features,
        ruled=ruled,
        decoding=decoding,
        coverage=coverage(report, prompts),
        misses=report.warnings,
    )


def calibrated_files(bundle: Bundle, rule: Rule, calibration: RuleCalibration) -> dict[str, bytes]:
    """The bundle's files that change, by path: that of the rule, and calibration.json.

    In the first only the strength's characters change; the second keeps what it holds of other rules. Raises
    PolicyError where the strength cannot be set in the text.
    """
    file = bundle.sources[rule.id].file
    document: Any = read_yaml(bundle.files[file], file).value
    number = next(place for place, entry in enumerate(document["rules"]) if entry["id"] == rule.id)
    edited = with_number(bundle.files[file], file, ("rules", number, "ban", "strength"), calibration.strength)
    kept: dict[str, Any] = json.loads(bundle.files.get(CALIBRATION_FILE, b"{}"))
    rules = kept.get("rules")
    kept["rules"] = {**(rules if isinstance(rules, dict) else {}), rule.id: asdict(calibration)}
    text = json.dumps(kept, ensure_ascii=False, indent=2, allow_nan=False) + "\n"
    changed = {file: edited, CALIBRATION_FILE: text.encode("utf-8")}
    _check(bundle, rule, calibration.strength, {**bundle.files, **changed})
    return changed


def _check(bundle: Bundle, rule: Rule, strength: float, files: Mapping[str, bytes]) -> None:
    """Raise ValueError unless the files are the same policy but for the strength. Raises BundleError."""
    assert rule.ban is not None  # noqa: S101 - `ban_rule` gave it
    calibrated = rule.model_copy(update={"ban": rule.ban.model_copy(update={"strength": strength})})
    rules = tuple(calibrated if other.id == rule.id else other for other in bundle.policy.rules)
    if Bundle.from_files(files).policy != bundle.policy.model_copy(update={"rules": rules}):
        raise ValueError(f"rule {rule.id}: the strength cannot be set in the text; write {strength!r} there")


def _sae(rule: str, ban: Ban) -> str:
    """The SAE that a ban is about; empty for the server's only one."""
    named = sorted({selector.sae for selector in ban.features if selector.sae})
    if len(named) > 1:
        raise ValueError(f"rule {rule}: is about the SAEs {', '.join(named)}; give each a rule of its own")
    return named[0] if named else ""


def _indices(client: Client, selector: FeatureSelector, sae: str, rule: str) -> Sequence[int]:
    if selector.index is not None:
        return (selector.index,)
    if selector.indices is not None:
        return selector.indices
    if selector.label is not None:
        return (client.get_feature(selector.label, sae=sae).index,)
    assert selector.where is not None  # noqa: S101 - the schema wants one of the four
    where = _as_served(selector.where)
    indices = [feature.index for feature in _all_labelled(client, sae) if fits(feature, where)]
    if not indices:
        raise ValueError(f"rule {rule}: no feature of {sae} fits its `where`")
    return sorted(indices)


def _as_served(where: Where) -> Where:
    """The set with its precision rounded to float32, as a server's figures are."""
    if where.min_precision is None:
        return where
    (rounded,) = struct.unpack("f", struct.pack("f", where.min_precision))
    return where.model_copy(update={"min_precision": rounded})


def _all_labelled(client: Client, sae: str) -> Iterator[FeatureInfo]:
    token = ""
    while True:
        page = client.search_features("", sae=sae, page_size=_PAGE, page_token=token)
        yield from page
        token = page.next_page_token
        if not token:
            return
