"""Reading answers: the one place where messages of the contract become results of the clients."""

from collections.abc import Iterable
from datetime import UTC
from typing import Any

from saegis import feature_results as features
from saegis import model_results as models
from saegis import results
from saegis.errors import InternalError
from saegis.policy_decode import applied_rules
from saegis.score_results import Score
from saegis.v1 import feature_pb2, generation_pb2, model_pb2


def generation(message: generation_pb2.GenerateResponse) -> results.Generation:
    """The result of `generate`."""
    choices = tuple(
        results.Choice(
            index=choice.index,
            text=choice.text,
            token_ids=tuple(choice.token_ids),
            logprobs=_logprobs(choice),
            watched=_watched(choice.watched),
            finish_reason=_finish_reason(choice.finish_reason),
            matched_stop=_matched_stop(choice),
        )
        for choice in message.choices
    )
    if not choices:
        raise InternalError("the answer has no completion", reason="CONTRACT_BROKEN")
    return results.Generation(message.request_id, choices, _usage(message.usage), _receipt(message.receipt))


def chunk(message: generation_pb2.GenerationChunk) -> results.Chunk:
    """One piece of a stream."""
    ended = message.finish_reason != generation_pb2.FINISH_REASON_UNSPECIFIED
    return results.Chunk(
        index=message.index,
        text=message.text,
        token_ids=tuple(message.token_ids),
        logprobs=_logprobs(message),
        watched=_watched(message.watched),
        finish_reason=_finish_reason(message.finish_reason) if ended else None,
    )


def final(message: generation_pb2.GenerationComplete) -> results.Final:
    """The closing message of a stream."""
    outcomes = tuple(
        results.Outcome(outcome.index, _finish_reason(outcome.finish_reason), _matched_stop(outcome))
        for outcome in message.outcomes
    )
    return results.Final(message.request_id, outcomes, _usage(message.usage), _receipt(message.receipt))


def score(message: generation_pb2.ScoreResponse) -> Score:
    """The result of `score`."""
    scored = len(message.token_ids) - 1
    counts = {len(message.logprobs), len(message.plain_logprobs), len(message.divergences)}
    if scored < 1 or counts != {scored}:
        raise InternalError("the answer's numbers do not fit its tokens", reason="CONTRACT_BROKEN")
    return Score(
        request_id=message.request_id,
        token_ids=tuple(message.token_ids),
        logprobs=tuple(message.logprobs),
        plain_logprobs=tuple(message.plain_logprobs),
        divergences=tuple(message.divergences),
        receipt=_receipt(message.receipt),
    )


def inspection(message: feature_pb2.InspectResponse) -> features.Inspection:
    """The result of `inspect`."""
    tokens = tuple(
        features.TokenFeatures(
            token_id=token.token_id,
            text=token.text,
            features=tuple(
                features.FeatureActivation(each.index, each.activation, each.label) for each in token.features
            ),
            left_out=token.left_out,
        )
        for token in message.tokens
    )
    return features.Inspection(message.sae, message.site, tokens)


def feature(message: feature_pb2.Feature) -> features.FeatureInfo:
    """What is recorded about one feature."""
    return features.FeatureInfo(
        sae=message.sae,
        index=message.index,
        site=message.site,
        label=message.label,
        max_activation=message.max_activation if message.HasField("max_activation") else None,
        density=message.density if message.HasField("density") else None,
        subjects=tuple(message.subjects),
        languages=tuple(message.languages),
        precision=message.precision if message.HasField("precision") else None,
        recall=dict(message.recall),
        precision_by_language=dict(message.precision_by_language),
        harmful=message.harmful,
    )


def feature_page(message: feature_pb2.SearchFeaturesResponse) -> features.FeaturePage:
    """The result of `search_features`."""
    found = tuple(feature(each) for each in message.features)
    return features.FeaturePage(found, message.next_page_token, message.total_size)


def contrast(message: feature_pb2.ContrastFeaturesResponse) -> features.Contrast:
    """The result of `contrast_features`."""
    found = tuple(
        features.FeatureContrast(
            feature=feature(each.feature),
            score=each.score,
            positive=features.ContrastSide(each.positive.mean_activation, each.positive.firing_rate),
            negative=features.ContrastSide(each.negative.mean_activation, each.negative.firing_rate),
        )
        for each in message.features
    )
    return features.Contrast(message.sae, found)


def model(message: model_pb2.GetModelResponse) -> models.ModelInfo:
    """The result of `model`."""
    saes = tuple(
        models.SaeInfo(
            id=sae.id,
            digest=sae.digest,
            site=sae.site,
            width=sae.width,
            feature_count=sae.feature_count,
            architecture=sae.architecture,
            fvu=sae.fvu if sae.HasField("fvu") else None,
            l0=sae.l0 if sae.HasField("l0") else None,
            labelled_count=sae.labelled_count,
        )
        for sae in message.saes
    )
    return models.ModelInfo(
        id=message.id,
        architectures=tuple(message.architectures),
        vocab_size=message.vocab_size,
        max_context_length=message.max_context_length,
        eos_token_ids=tuple(message.eos_token_ids),
        has_chat_template=message.has_chat_template,
        hidden_size=message.hidden_size,
        num_layers=message.num_layers,
        dtype=message.dtype,
        sites=tuple(models.SiteInfo(site.name, site.layer, site.width) for site in message.sites),
        saes=saes,
    )


def server_info(message: model_pb2.GetServerInfoResponse) -> models.ServerInfo:
    """The result of `server_info`."""
    limits = message.limits
    return models.ServerInfo(
        version=message.version,
        start_time=message.start_time.ToDatetime(tzinfo=UTC),
        compiled=message.execution_mode == model_pb2.EXECUTION_MODE_COMPILED,
        torch_version=message.torch_version,
        device=message.device,
        limits=models.Limits(
            max_n=limits.max_n,
            max_edits_per_site=limits.max_edits_per_site,
            max_bans_per_site=limits.max_bans_per_site,
            max_watches_per_site=limits.max_watches_per_site,
            max_queue=limits.max_queue,
            max_num_seqs=limits.max_num_seqs,
            max_logprobs=limits.max_logprobs,
            max_message_bytes=limits.max_message_bytes,
            max_logit_bias=limits.max_logit_bias,
            max_stop_token_ids=limits.max_stop_token_ids,
            max_messages=limits.max_messages,
            max_text_characters=limits.max_text_characters,
            max_fields=limits.max_fields,
        ),
    )


def load(message: model_pb2.GetLoadResponse) -> models.Load:
    """The result of `load`."""
    return models.Load(
        num_running_reqs=message.num_running_reqs,
        num_waiting_reqs=message.num_waiting_reqs,
        num_used_tokens=message.num_used_tokens,
        max_total_num_tokens=message.max_total_num_tokens,
        token_usage=message.token_usage,
        gen_throughput=message.gen_throughput,
        max_running_requests=message.max_running_requests,
    )


def tokenized(message: model_pb2.TokenizeResponse) -> models.TokenizedText:
    """The result of `tokenize`."""
    return models.TokenizedText(tuple(message.token_ids), tuple(message.tokens))


def _finish_reason(value: generation_pb2.FinishReason) -> results.FinishReason:
    try:
        name = generation_pb2.FinishReason.Name(value).removeprefix("FINISH_REASON_").lower()
        return results.FinishReason(name)
    except ValueError as error:
        raise InternalError(f"unknown finish_reason {value}", reason="CONTRACT_BROKEN") from error


def _matched_stop(message: generation_pb2.Choice | generation_pb2.Outcome) -> int | str | None:
    match message.WhichOneof("matched_stop"):
        case "matched_token_id":
            return message.matched_token_id
        case "matched_stop_str":
            return message.matched_stop_str
    return None


def _logprobs(
    message: generation_pb2.Choice | generation_pb2.GenerationChunk,
) -> results.LogProbs | None:
    if not message.HasField("logprobs"):
        return None
    logprobs = message.logprobs
    top = tuple(
        tuple(results.Alternative(token, value) for token, value in zip(at.token_ids, at.values, strict=True))
        for at in logprobs.top_logprobs
    )
    return results.LogProbs(tuple(logprobs.token_ids), tuple(logprobs.token_logprobs), top)


def _watched(messages: Iterable[generation_pb2.WatchedActivations]) -> tuple[results.Watched, ...]:
    return tuple(
        results.Watched(each.watch, tuple(each.before), tuple(each.after), tuple(each.set_to))
        for each in messages
    )


def _usage(message: generation_pb2.Usage) -> results.Usage:
    return results.Usage(
        prompt_tokens=message.prompt_tokens,
        completion_tokens=message.completion_tokens,
        cached_tokens=message.cached_tokens,
        steered_tokens=_told(message, "steered_tokens"),
    )


def _receipt(message: generation_pb2.Receipt) -> results.Receipt:
    sites = tuple(
        results.SiteReceipt(
            site=site.site,
            edits=site.edits,
            rules=_told(site, "rules"),
            bans=_told(site, "bans"),
            watches=site.watches,
            tokens_edited=_told(site, "tokens_edited"),
            bans_fired=_told(site, "bans_fired"),
            largest_relative_norm=_told(site, "largest_relative_norm"),
        )
        for site in message.sites
    )
    timings = message.timings
    return results.Receipt(
        program_digest=message.program_digest,
        policy_revision=message.policy_revision,
        sites=sites,
        steered=message.steered,
        model=message.model,
        timings=results.Timings(timings.queue_seconds, timings.prefill_seconds, timings.decode_seconds),
        rules=applied_rules(message.rules),
        ruled=message.ruled,
        decision_id=message.decision_id,
        first_token_steered=message.first_token_steered,
        first_token_read=message.first_token_read,
    )


def _told(message: generation_pb2.Usage | generation_pb2.SiteReceipt, name: str) -> Any:
    """A number, or None where it is not told."""
    return getattr(message, name) if message.HasField(name) else None
