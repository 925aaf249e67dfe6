"""ModelService: the model, the server, how busy it is, and the tokenizer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from saegis.base import BaseClient
from saegis.messages import ChatMessage, put, result, set_prompt
from saegis.rpc import rpc
from saegis.v1 import model_pb2 as pb


@dataclass(frozen=True, slots=True)
class SiteInfo:
    """A place in the forward pass at which activations can be read and edited."""

    name: str
    layer: int
    """The layer after which it lies, counted from 0."""
    width: int
    """The size of its activations."""


@dataclass(frozen=True, slots=True)
class SaeInfo:
    """A sparse autoencoder that the server has loaded."""

    id: str
    digest: str
    """SHA-256 of its weights, in hexadecimal."""
    site: str
    width: int
    feature_count: int
    architecture: str
    """As SAELens names it: "standard", "gated", "jumprelu" or "topk"; or "groupmax"."""
    fvu: float | None
    """Fraction of variance unexplained, measured at load."""
    l0: float | None
    """Mean number of active features for each token, measured at load."""
    labelled_count: int


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The model that the server serves."""

    id: str
    architectures: tuple[str, ...]
    vocab_size: int
    max_context_length: int
    """The largest number of tokens that prompt and completion may have together."""
    eos_token_ids: tuple[int, ...]
    has_chat_template: bool
    hidden_size: int
    num_layers: int
    dtype: str
    sites: tuple[SiteInfo, ...]
    saes: tuple[SaeInfo, ...]
    sees_pictures: bool
    """Whether conversations may have pictures."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the server accepts; requests beyond a limit are refused."""

    max_n: int
    max_edits_per_site: int
    max_bans_per_site: int
    max_watches_per_site: int
    max_queue: int
    max_num_seqs: int
    max_logprobs: int
    max_message_bytes: int
    max_logit_bias: int
    max_stop_token_ids: int
    max_messages: int
    max_text_characters: int
    max_fields: int
    max_pictures: int
    """0 where the model sees none, or none may be sent."""
    max_picture_bytes: int
    max_picture_pixels: int
    max_picture_side: int


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The server's versions, device and limits."""

    version: str
    start_time: datetime
    """When it started, in UTC."""
    compiled: bool
    """Whether the forward pass is compiled; otherwise it runs eagerly."""
    torch_version: str
    device: str
    limits: Limits


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the server is now."""

    num_running_reqs: int
    num_waiting_reqs: int
    num_used_tokens: int
    max_total_num_tokens: int
    token_usage: float
    """Used over available tokens of the KV cache, from 0 to 1."""
    gen_throughput: float
    """Tokens generated a second, lately."""
    max_running_requests: int


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """The answer to `tokenize`: ids, and the text of each token by itself."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.token_ids)


def _model(message: pb.GetModelResponse) -> ModelInfo:
    sites = tuple(result(SiteInfo, site) for site in message.sites)
    saes = tuple(result(SaeInfo, sae) for sae in message.saes)
    return result(ModelInfo, message, sites=sites, saes=saes)


def _server_info(message: pb.GetServerInfoResponse) -> ServerInfo:
    return result(
        ServerInfo,
        message,
        start_time=message.start_time.ToDatetime(tzinfo=UTC),
        compiled=message.execution_mode == pb.EXECUTION_MODE_COMPILED,
        limits=result(Limits, message.limits),
    )


def _load(message: pb.GetLoadResponse) -> Load:
    return result(Load, message)


def _tokenized(message: pb.TokenizeResponse) -> TokenizedText:
    return result(TokenizedText, message)


def _detokenized(message: pb.DetokenizeResponse) -> str:
    return message.text


class ModelMethods(BaseClient):
    """The methods of both clients that call ModelService."""

    @rpc(lambda stubs: stubs.model.GetModel, _model)
    def model(self, *, timeout: float | None = None) -> pb.GetModelRequest:
        """Describe the model, its sites and the SAEs at them."""
        return pb.GetModelRequest()

    @rpc(lambda stubs: stubs.model.GetServerInfo, _server_info)
    def server_info(self, *, timeout: float | None = None) -> pb.GetServerInfoRequest:
        """Describe the server: versions, device and limits."""
        return pb.GetServerInfoRequest()

    @rpc(lambda stubs: stubs.model.GetLoad, _load)
    def load(self, *, timeout: float | None = None) -> pb.GetLoadRequest:
        """Return how busy the server is now."""
        return pb.GetLoadRequest()

    @rpc(lambda stubs: stubs.model.Tokenize, _tokenized)
    def tokenize(
        self,
        text: str | None = None,
        *,
        messages: Sequence[ChatMessage] | None = None,
        add_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> pb.TokenizeRequest:
        """Turn a text or a conversation into token ids."""
        request = pb.TokenizeRequest()
        set_prompt(request, text, messages)
        put(request, "add_special_tokens", add_special_tokens)
        return request

    @rpc(lambda stubs: stubs.model.Detokenize, _detokenized)
    def detokenize(
        self,
        token_ids: Iterable[int],
        *,
        skip_special_tokens: bool | None = None,
        timeout: float | None = None,
    ) -> pb.DetokenizeRequest:
        """Turn token ids into text."""
        request = pb.DetokenizeRequest()
        put(request, "token_ids", token_ids)
        put(request, "skip_special_tokens", skip_special_tokens)
        return request
