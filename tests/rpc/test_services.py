"""FeatureService and ModelService over a socket, against the SAE and the tokenizer themselves."""

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
import torch
from scipy import stats

from saegis.v1 import feature_pb2 as fpb
from saegis.v1 import model_pb2 as mpb
from saegis.v1 import prompt_pb2, steering_pb2
from saegis.version import __version__
from saegis_server.engine.api import SamplingParams
from tests.rpc import tiny
from tests.rpc.conftest import Stubs
from tests.rpc.harness import Running, failure

TEXTS = {"positive_texts": ["x"], "negative_texts": ["x"], "sae": "first"}
FIRST = tiny.catalog().entries[0].sae
TOKENIZER = tiny.tokenizer()


def activations(text: str) -> torch.Tensor:
    """What the first SAE encodes of a text, by Transformers' own hidden states: [T, m]."""
    tokens = torch.tensor([TOKENIZER(text)["input_ids"]])
    with torch.no_grad():
        hidden = tiny.model()(tokens, output_hidden_states=True).hidden_states
    return FIRST.encode(hidden[1][0])


def test_inspect_shows_the_strongest_features(stubs: Stubs) -> None:
    found = stubs.features.Inspect(fpb.InspectRequest(text="the river", sae="first", top_k=4))
    assert (found.sae, found.site) == ("first", str(tiny.FIRST_SITE))
    expected = activations("the river")
    assert [token.token_id for token in found.tokens] == TOKENIZER("the river")["input_ids"]
    assert "".join(token.text for token in found.tokens).endswith("the river")
    assert [token.left_out for token in found.tokens] == [True] + [False] * (len(expected) - 1)
    labels = {label.feature: label.label for label in tiny.LABELS}
    for row, token in zip(expected, found.tokens, strict=True):
        values, indices = row.topk(4)
        active = int((values > 0).sum())
        assert [each.index for each in token.features] == indices[:active].tolist()
        assert [each.activation for each in token.features] == pytest.approx(
            values[:active].tolist(), abs=1e-4
        )
        assert [each.label for each in token.features] == [
            labels.get(index, "") for index in indices[:active].tolist()
        ]


def test_inspect_reads_conversations_and_token_ids(stubs: Stubs) -> None:
    chat = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="the river")])
    rendered = TOKENIZER.apply_chat_template([{"role": "user", "content": "the river"}], return_dict=False)
    found = stubs.features.Inspect(fpb.InspectRequest(chat=chat, sae="first"))
    assert [token.token_id for token in found.tokens] == rendered
    ids = prompt_pb2.TokenIds(ids=[7, 8])
    by_site = stubs.features.Inspect(fpb.InspectRequest(token_ids=ids, site=str(tiny.FIRST_SITE)))
    assert [token.token_id for token in by_site.tokens] == [7, 8]
    assert max(len(token.features) for token in by_site.tokens) == 5


def test_inspect_tells_the_values_of_features_at_every_token(stubs: Stubs) -> None:
    bridge, other = steering_pb2.FeatureRef(label="the red bridge"), steering_pb2.FeatureRef(index=40)
    found = stubs.features.Inspect(
        fpb.InspectRequest(text="the river", sae="first", top_k=0, features=[other, bridge])
    )
    expected = activations("the river")
    assert [(each.index, each.label) for each in found.values] == [(40, ""), (3, "the red bridge")]
    for each in found.values:
        assert list(each.activations) == pytest.approx(expected[:, each.index].tolist(), abs=1e-4)
    assert not any(token.features for token in found.tokens)
    assert found.windows == 1
    foreign = fpb.InspectRequest(
        text="x", sae="first", features=[bridge, steering_pb2.FeatureRef(index=1, sae="second")]
    )
    assert failure(lambda: stubs.features.Inspect(foreign)).fields == ["features[1].sae"]


def test_inspect_reads_a_text_that_is_longer_than_the_context_in_windows(stubs: Stubs) -> None:
    text = "the red bridge and the long river " * 440
    tokens = TOKENIZER(text)["input_ids"]
    assert len(tokens) > 2 * tiny.CONTEXT
    asked = fpb.InspectRequest(text=text, sae="first", top_k=2)
    assert failure(lambda: stubs.features.Inspect(asked)).fields == ["text"]
    asked.long_text = True
    asked.features.add(index=3)
    found = stubs.features.Inspect(asked)
    assert [token.token_id for token in found.tokens] == tokens
    assert len(found.values[0].activations) == len(tokens)
    # The last window ends the text; it begins with the beginning of the sequence, as every text does.
    last = torch.tensor([[tokens[0], *tokens[-(tiny.CONTEXT - 1) :]]])
    with torch.no_grad():
        hidden = tiny.model()(last, output_hidden_states=True).hidden_states
    expected = FIRST.encode(hidden[1][0])[-100:, 3].tolist()
    assert list(found.values[0].activations)[-100:] == pytest.approx(expected, abs=1e-4)
    assert found.windows >= 3


@pytest.mark.parametrize(
    ("fields", "code", "field"),
    [
        ({"text": "x", "sae": "first", "top_k": 0}, grpc.StatusCode.INVALID_ARGUMENT, "top_k"),
        ({"text": "x", "sae": "first", "top_k": 1001}, grpc.StatusCode.INVALID_ARGUMENT, "top_k"),
        ({"text": "x"}, grpc.StatusCode.INVALID_ARGUMENT, "sae"),
        ({"text": "x", "sae": "third"}, grpc.StatusCode.NOT_FOUND, "sae"),
        ({"text": "x", "sae": "first", "site": "here"}, grpc.StatusCode.INVALID_ARGUMENT, "site"),
        (
            {"text": "x", "sae": "first", "site": str(tiny.SECOND_SITE)},
            grpc.StatusCode.FAILED_PRECONDITION,
            "site",
        ),
        ({"sae": "first"}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
        ({"text": "x " * 2 * tiny.CONTEXT, "sae": "first"}, grpc.StatusCode.INVALID_ARGUMENT, "text"),
    ],
)
def test_inspect_names_what_is_wrong(
    stubs: Stubs, fields: dict[str, Any], code: grpc.StatusCode, field: str
) -> None:
    found = failure(lambda: stubs.features.Inspect(fpb.InspectRequest(**fields)))
    assert (found.code, found.fields) == (code, [field])


def test_get_feature(stubs: Stubs) -> None:
    def get(**fields: Any) -> fpb.Feature:
        reference = steering_pb2.FeatureRef(sae="first", **fields)
        return stubs.features.GetFeature(fpb.GetFeatureRequest(feature=reference)).feature

    found = get(index=3)
    assert (found.sae, found.index, found.site) == ("first", 3, str(tiny.FIRST_SITE))
    assert (found.label, list(found.subjects), list(found.languages)) == (
        "the red bridge",
        ["bridge"],
        ["en", "de"],
    )
    assert (found.max_activation, found.harmful) == (4.0, False)
    assert found.density == pytest.approx(0.01)
    assert found.recall["en"] == pytest.approx(0.8)
    assert found.precision_by_language["de"] == pytest.approx(0.7)
    assert get(label="THE RED BRIDGE") == found
    assert get(index=7).harmful
    bare = get(index=40)
    assert (bare.label, bare.HasField("max_activation"), bare.HasField("density")) == ("", False, False)
    missing = failure(lambda: get(index=99))
    assert (missing.code, missing.fields) == (grpc.StatusCode.NOT_FOUND, ["feature.index"])


def test_get_feature_tells_where_it_fires(stubs: Stubs) -> None:
    def get(index: int) -> fpb.GetFeatureResponse:
        reference = steering_pb2.FeatureRef(sae="first", index=index)
        return stubs.features.GetFeature(fpb.GetFeatureRequest(feature=reference))

    found = get(3)
    assert (found.histogram.bin_width, list(found.histogram.counts)[:6]) == (0.5, [1, 0, 1, 0, 0, 2])
    assert found.histogram.tokens == 1000
    texts = [[TOKENIZER.decode([token]) for token in ids] for ids in ([5, 6, 5, 7], [8, tiny.VOCABULARY - 1])]
    assert [list(example.tokens) for example in found.examples] == texts
    assert [example.strongest for example in found.examples] == [1, 0]
    assert list(found.examples[0].activations) == [0.0, 2.5, 2.5, 1.0]
    assert not get(4).examples
    second = steering_pb2.FeatureRef(sae="second", index=3)
    assert not stubs.features.GetFeature(fpb.GetFeatureRequest(feature=second)).HasField("histogram")


def test_search_features_page_by_page(stubs: Stubs) -> None:
    def page(**fields: Any) -> fpb.SearchFeaturesResponse:
        return stubs.features.SearchFeatures(fpb.SearchFeaturesRequest(**fields))

    assert [each.index for each in page(query="Bridge").features] == [3]
    assert [each.index for each in page(query="twins").features] == [8, 9]
    assert [each.index for each in page(query="red bridge").features] == [3]
    assert page(query="red river").total_size == 0
    assert page(query="!?").total_size == 0
    everything = page()
    assert [each.index for each in everything.features] == [label.feature for label in tiny.LABELS]
    assert page(sae="second").total_size == 0
    seen: list[int] = []
    token = ""
    while True:
        found = page(page_size=4, page_token=token)
        assert found.total_size == len(tiny.LABELS)
        seen += [each.index for each in found.features]
        token = found.next_page_token
        if not token:
            break
    assert seen == [label.feature for label in tiny.LABELS]
    for fields, field in (
        ({"page_size": 1001}, "page_size"),
        ({"page_token": "x"}, "page_token"),
        ({"page_token": page(page_size=1).next_page_token, "query": "other"}, "page_token"),
        ({"sae": "third"}, "sae"),
    ):
        assert failure(lambda fields=fields: page(**fields)).fields == [field]  # type: ignore[misc]


def test_contrast_features(stubs: Stubs) -> None:
    positive, negative = ["the red bridge", "a bridge"], ["the river", "birds sing", "long day"]
    found = stubs.features.ContrastFeatures(
        fpb.ContrastFeaturesRequest(positive_texts=positive, negative_texts=negative, sae="first", limit=10)
    )
    # The first token, the model's own BOS, is left out.
    largest = [torch.stack([activations(text)[1:].amax(0) for text in side]) for side in (positive, negative)]
    rates = [(side > 0).float().mean(0) for side in largest]
    means = [side.mean(0) for side in largest]
    score, lead = rates[0] - rates[1], means[0] - means[1]
    leaning = [i for i in range(tiny.FEATURES) if score[i] > 0 or (score[i] == 0 and lead[i] > 0)]
    expected = sorted(leaning, key=lambda i: (-float(score[i]), -float(lead[i])))[:10]
    assert [each.feature.index for each in found.features] == expected
    for each in found.features:
        i = each.feature.index
        assert each.score == pytest.approx(float(score[i]))
        assert each.positive.mean_activation == pytest.approx(float(means[0][i]), abs=1e-4)
        assert each.negative.firing_rate == pytest.approx(float(rates[1][i]))
        on, off = (side[:, i].double().numpy() for side in largest)
        wins = stats.mannwhitneyu(on, off, alternative="greater", method="asymptotic").statistic
        # Equal activations may differ in a last bit here: a tie, which counts half, is then won or lost.
        assert each.separation == pytest.approx(wins / 6, abs=1 / 12 + 1e-6)
        assert each.p_value >= 0.1, "two of five texts can be chosen in ten ways"
        assert each.p_value <= each.q_value <= 1.0
    assert found.tested == int(((rates[0] > 0) | (rates[1] > 0)).sum())


def test_a_contrast_tells_rates_by_language_and_leaves_out_what_is_not_sure(stubs: Stubs) -> None:
    def ask(**further: Any) -> fpb.ContrastFeaturesResponse:
        texts: Any = {"positive_texts": ["the red bridge", "a bridge"], "negative_texts": ["the river"]}
        return stubs.features.ContrastFeatures(fpb.ContrastFeaturesRequest(sae="first", **texts, **further))

    told = ask(positive_languages=["en", "de"], negative_languages=["en"])
    for each in told.features:
        i = each.feature.index
        fires = {
            code: float((activations(text)[1:, i] > 0).any())
            for code, text in (("en", "the red bridge"), ("de", "a bridge"))
        }
        assert dict(each.positive.firing_rate_by_language) == fires
        assert set(each.negative.firing_rate_by_language) == {"en"}
    assert not ask().features[0].positive.firing_rate_by_language
    assert not ask(max_q_value=0.05).features
    assert ask(max_q_value=1.0).features == ask().features


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"negative_texts": ["x"], "sae": "first"}, "positive_texts"),
        ({"positive_texts": ["x"], "sae": "first"}, "negative_texts"),
        ({"positive_texts": ["x"] * 513, "negative_texts": ["x"], "sae": "first"}, "positive_texts"),
        ({"positive_texts": ["x"], "negative_texts": ["x"], "sae": "first", "limit": 1001}, "limit"),
        ({"positive_texts": ["x", ""], "negative_texts": ["x"], "sae": "first"}, "positive_texts[1]"),
        (
            {"positive_texts": ["x"], "negative_texts": ["x", "y " * 5000], "sae": "first"},
            "negative_texts[1]",
        ),
        ({**TEXTS, "max_q_value": 0.0}, "max_q_value"),
        ({**TEXTS, "max_q_value": 1.5}, "max_q_value"),
        ({**TEXTS, "positive_languages": ["en"]}, "negative_languages"),
        ({**TEXTS, "positive_languages": ["en", "en"], "negative_languages": ["en"]}, "positive_languages"),
        ({**TEXTS, "positive_languages": ["en"], "negative_languages": [""]}, "negative_languages[0]"),
    ],
)
def test_contrast_names_what_is_wrong(stubs: Stubs, fields: dict[str, Any], field: str) -> None:
    found = failure(lambda: stubs.features.ContrastFeatures(fpb.ContrastFeaturesRequest(**fields)))
    assert found.fields == [field]


def test_get_model(stubs: Stubs) -> None:
    found = stubs.models.GetModel(mpb.GetModelRequest())
    assert (found.id, list(found.architectures)) == ("tiny", ["LlamaForCausalLM"])
    assert (found.vocab_size, found.max_context_length) == (tiny.VOCABULARY, tiny.CONTEXT)
    assert (found.hidden_size, found.num_layers, found.dtype) == (tiny.WIDTH, 2, "float32")
    assert found.has_chat_template
    assert [(site.name, site.layer, site.width) for site in found.sites] == [
        (str(tiny.FIRST_SITE), 0, tiny.WIDTH),
        (str(tiny.SECOND_SITE), 1, tiny.WIDTH),
    ]
    first = found.saes[0]
    assert (first.id, first.site, first.digest) == ("first", str(tiny.FIRST_SITE), FIRST.digest)
    assert (first.width, first.feature_count, first.architecture) == (tiny.WIDTH, tiny.FEATURES, "jumprelu")
    assert (first.labelled_count, first.HasField("fvu")) == (len(tiny.LABELS), False)


def test_get_server_info(stubs: Stubs) -> None:
    found = stubs.models.GetServerInfo(mpb.GetServerInfoRequest())
    assert (found.version, found.torch_version, found.device) == (__version__, torch.__version__, "cpu")
    assert found.execution_mode == mpb.EXECUTION_MODE_EAGER
    age = datetime.now(UTC) - found.start_time.ToDatetime(tzinfo=UTC)
    assert timedelta() < age < timedelta(hours=1)
    limits = found.limits
    assert (limits.max_edits_per_site, limits.max_bans_per_site, limits.max_watches_per_site) == (8, 8, 8)
    assert (limits.max_queue, limits.max_num_seqs) == (64, 4)
    assert limits.max_message_bytes == 4 * 2**20
    assert SamplingParams(n=limits.max_n, logprobs=limits.max_logprobs).n == limits.max_n


def test_get_load(stubs: Stubs, served: Running) -> None:
    found = stubs.models.GetLoad(mpb.GetLoadRequest())
    assert (found.num_running_reqs, found.num_waiting_reqs, found.num_used_tokens) == (0, 0, 0)
    assert (found.max_running_requests, found.max_total_num_tokens) == (4, 4 * tiny.CONTEXT)


def test_tokenize_and_detokenize(stubs: Stubs) -> None:
    found = stubs.models.Tokenize(mpb.TokenizeRequest(text="the river"))
    assert list(found.token_ids) == TOKENIZER("the river")["input_ids"]
    assert len(found.tokens) == len(found.token_ids)
    bare = stubs.models.Tokenize(mpb.TokenizeRequest(text="the river", add_special_tokens=False))
    assert bare.token_ids == found.token_ids[1:]
    text = stubs.models.Detokenize(mpb.DetokenizeRequest(token_ids=found.token_ids)).text
    assert text == "the river"
    special = mpb.DetokenizeRequest(token_ids=found.token_ids, skip_special_tokens=False)
    assert stubs.models.Detokenize(special).text == f"{TOKENIZER.bos_token}the river"
    chat = prompt_pb2.Chat(messages=[prompt_pb2.ChatMessage(role="user", content="x")])
    rendered = TOKENIZER.apply_chat_template(
        [{"role": "user", "content": "x"}], add_generation_prompt=True, return_dict=False
    )
    assert list(stubs.models.Tokenize(mpb.TokenizeRequest(chat=chat)).token_ids) == rendered
    for wrong, field in (
        (mpb.TokenizeRequest(), "text"),
        (mpb.TokenizeRequest(chat=chat, add_special_tokens=True), "add_special_tokens"),
    ):
        assert failure(lambda wrong=wrong: stubs.models.Tokenize(wrong)).fields == [field]  # type: ignore[misc]
    unknown = failure(lambda: stubs.models.Detokenize(mpb.DetokenizeRequest(token_ids=[1, 999])))
    assert unknown.fields == ["token_ids[1]"]
