"""The server's configuration: what it serves, where it listens, what governs it, and its limits."""

import ipaddress
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator

from saegis_server.amounts import Portion
from saegis_server.audit.log import AuditSettings
from saegis_server.pictures.limits import LONGEST_SIDE, MOST_PIXELS, PictureLimits
from saegis_server.policy.errors import Unmatched
from saegis_server.rpc.auth.principals import Name
from saegis_server.rpc.server.limits import Limits
from saegis_server.telemetry.features import MOST_FEATURES
from saegis_server.telemetry.tenants import TenantClasses

#: gRPC's own default; prompts of a model with a context of a million tokens fit.
DEFAULT_MAX_MESSAGE_BYTES = 4 * 2**20
LARGEST_MESSAGE_BYTES = 64 * 2**20
#: Room for rows of each kind (see steering.table.Capacity). Bounded, since the cost grows with its square.
RowKind = Literal["edits", "rules", "bans", "watches", "conditions"]
Room = Annotated[int, Field(ge=2, le=1024)]


#: A class of tenants in metrics; a leading _ is for what has no class.
ClassName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


#: The name of a preset, after the model's and an @.
PresetName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SAESource(_Strict):
    """One SAE to load: `path` is a directory, a hub id (owner/repo[/folder][@revision]), or what SAELens
    (release/sae_id) or Neuronpedia (model/source) calls it.

    site: where it belongs; by default the hook point that its file states. id: its name in requests; by
    default the directory's name. norm_scaling_factor: for an SAE whose file does not state it.
    """

    path: str = Field(min_length=1)
    site: str | None = None
    id: str | None = Field(default=None, pattern=r"\S")
    norm_scaling_factor: float | None = Field(default=None, gt=0.0)


class TLSFiles(_Strict):
    """PEM files: the server's certificate chain and key; with `client_ca`, clients need a certificate."""

    cert: Path
    key: Path
    client_ca: Path | None = None


class PolicySettings(_Strict):
    """Which policies govern requests. With these settings, a request that no policy matches is denied.

    bundles: directories or tar files to put in force at the start. state: the directory of the policies in
    force and their history; without it, policies from PutPolicy end with the server. keys: PEM files of
    public keys, one of which must have signed a bundle; without keys, bundles need no signature. unmatched:
    whether a policy that can match no model, tenant or role of this server is refused, also at the start, or
    only causes a warning.
    """

    bundles: tuple[Path, ...] = ()
    state: Path | None = None
    keys: tuple[Path, ...] = ()
    unmatched: Unmatched = Unmatched.REFUSE


class ServerConfig(_Strict):
    """All settings of `serve`.

    model: a local directory or hub id of a Transformers causal language model. name: the model's name in
    GetModel and receipts; by default `model`. unmatched_saes: whether an SAE whose files name another
    model or place is refused, or only causes a warning. sites: further sites, beside those of the SAEs,
    that requests may steer with directions. directions: files and folders of directions that the operator
    ships; direction_state: the folder in which uploaded ones survive a restart. port, metrics_port: 0
    means any free port; metrics_port None means no metrics endpoint. http_host, http_port: where the
    OpenAI-compatible face listens; with http_port None nowhere. http_origins: the origins of web pages
    that may use it, "*" for every one. console: whether it has pages for people at `/`; "auto" where only
    programs of this machine can reach it. presets: files of programs that its clients can ask for as
    MODEL@NAME. kv_memory: what running sequences may take of the memory that is free after the weights,
    as bytes (4GiB) or a share (0.5), which is the default on a CPU; 0.85 on a GPU. max_num_seqs,
    max_model_len: how many run at once, and the most tokens of prompt and completion together; by default
    16 and the model's limit, or what there is memory for. rows: room for rows of a kind, for each
    sequence and site, where it is not the default. queue_limit: the most waiting sequences; a caller with
    few of them finds room beyond it, up to the share `fair_share` of it. fair_slots, fair_seconds: so
    many slots are kept for tenants that had one within so many seconds; by default an eighth of all.
    steer_first_token: whether rows also move a text's first token if it is the model's
    beginning-of-sequence token. read_first_token: the same for what conditions, contrasts and statistics
    read. limits: what each principal and tenant may have. identities: the file of principals and their
    roles; without it the server is open to every program of this machine, and cannot be reached from
    others. policies: what governs requests; without it nothing does. audit: the log of decisions and
    answers; without it there is none. engine: what runs the model, the embedded engine or vLLM, which is
    refused with settings that it does not serve. tensor_parallel_size: how many processes share each layer
    there. compile: "auto" compiles if a C++ compiler is found.
    batch_invariant: whether each sequence takes steps of its own. max_pictures: the most pictures of a
    request, 0 for none; max_picture_bytes, max_picture_pixels, max_picture_side: of each. stall_seconds: if
    the event loop does not answer for this long, the server is not live, and after six times as long the
    process ends; 0 turns both off. tenant_classes: the tenants of each class by which metrics tell tenants
    apart; all others are one class. watch_features: further features, beside those that policies name, whose
    firing metrics count, as SAE:INDEX, or INDEX where there is one SAE. sample_seconds: how often a prompt
    is encoded whole, to tell how many features fire and how well SAEs fit; 0 for never. usage_every: at one
    of how many steps the use of every feature is counted, 0 for none; usage_state: the folder in which that
    is kept. ready_file: written as JSON (target, metrics_port, pid) once the server serves. traces:
    the URL of an OTLP endpoint (HTTP) to which spans are sent. unix: the path of a Unix socket to listen
    on instead of host and port; only its owner can connect.
    Raises pydantic's ValidationError for unknown keys and values out of range.
    """

    model: str = Field(min_length=1)
    name: str | None = Field(default=None, min_length=1)
    saes: tuple[SAESource, ...] = ()
    unmatched_saes: Unmatched = Unmatched.REFUSE
    sites: tuple[str, ...] = ()
    directions: tuple[Path, ...] = ()
    direction_state: Path | None = None
    dtype: str = "auto"
    device: str = "cpu"
    host: str = "127.0.0.1"
    port: int = Field(default=50051, ge=0, le=65535)
    unix: Path | None = None
    tls: TLSFiles | None = None
    identities: Path | None = None
    policies: PolicySettings | None = None
    audit: AuditSettings | None = None
    reflection: bool = True
    max_message_bytes: int = Field(default=DEFAULT_MAX_MESSAGE_BYTES, ge=1024, le=LARGEST_MESSAGE_BYTES)
    max_pictures: int = Field(default=PictureLimits().count, ge=0, le=64)
    max_picture_bytes: int = Field(default=PictureLimits().size, ge=1024, le=LARGEST_MESSAGE_BYTES)
    max_picture_pixels: int = Field(default=PictureLimits().pixels, ge=1, le=MOST_PIXELS)
    max_picture_side: int = Field(default=PictureLimits().side, ge=1, le=LONGEST_SIDE)
    kv_memory: str | None = None
    max_num_seqs: int | None = Field(default=None, ge=1, le=1024)
    max_model_len: int | None = Field(default=None, ge=2)
    rows: dict[RowKind, Room] = {}
    queue_limit: int = Field(default=256, ge=1, le=1_000_000)
    fair_slots: int | None = Field(default=None, ge=0, le=1023)
    fair_seconds: float = Field(default=60.0, ge=0.0, le=3600.0)
    fair_share: float = Field(default=0.25, ge=0.0, le=1.0)
    steer_first_token: bool = False
    read_first_token: bool = False
    limits: Limits = Limits()
    engine: Literal["torch", "vllm"] = "torch"
    tensor_parallel_size: int = Field(default=1, ge=1, le=64)
    compile: Literal["auto", "always", "never"] = "auto"
    batch_invariant: bool = False
    http_host: str = "127.0.0.1"
    http_port: int | None = Field(default=None, ge=0, le=65535)
    http_origins: tuple[str, ...] = ()
    console: Literal["auto", "always", "never"] = "auto"
    presets: dict[PresetName, Path] = {}
    metrics_host: str = "127.0.0.1"
    metrics_port: int | None = Field(default=9464, ge=0, le=65535)
    tenant_classes: dict[ClassName, Annotated[tuple[Name, ...], Field(min_length=1)]] = {}
    sample_seconds: float = Field(default=10.0, ge=0.0, le=86_400.0)
    usage_every: int = Field(default=0, ge=0, le=1_000_000)
    usage_state: Path | None = None
    watch_features: tuple[str, ...] = Field(default=(), max_length=MOST_FEATURES)
    grace_seconds: float = Field(default=30.0, ge=0.0, le=3600.0)
    stall_seconds: float = Field(default=10.0, ge=0.0, le=3600.0)
    ready_file: Path | None = None
    traces: str | None = None

    @field_validator("host", "http_host", "metrics_host")
    @classmethod
    def _is_host(cls, host: str) -> str:
        if host == "localhost":
            return host
        try:
            ipaddress.ip_address(host)
        except ValueError:
            raise ValueError(f"{host!r} is neither an IP address nor localhost") from None
        return host

    @field_validator("kv_memory")
    @classmethod
    def _is_amount(cls, text: str | None) -> str | None:
        if text is not None:
            Portion.parse(text)
        return text

    @field_validator("traces")
    @classmethod
    def _is_url_without_secrets(cls, url: str | None) -> str | None:
        if url is None:
            return None
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("give a URL such as http://127.0.0.1:4318/v1/traces")
        if parts.username is not None or parts.query:
            raise ValueError("the URL must hold no secret; OTEL_EXPORTER_OTLP_HEADERS may")
        return url

    @model_validator(mode="after")
    def _has_distinct_sae_ids(self) -> Self:
        named = [source.id for source in self.saes if source.id is not None]
        if len(set(named)) < len(named):
            raise ValueError("saes: two SAEs have the same id")
        return self

    @model_validator(mode="after")
    def _keeps_what_is_counted(self) -> Self:
        if self.usage_state is not None and not self.usage_every:
            raise ValueError("usage_state: nothing is counted that could be kept; set usage_every")
        return self

    @model_validator(mode="after")
    def _is_served_by_its_engine(self) -> Self:
        """What the engine on vLLM does not serve, by the name of its setting."""
        if self.engine == "torch":
            if self.tensor_parallel_size > 1:
                raise ValueError(
                    "tensor_parallel_size: the embedded engine runs a model in one process; the vllm engine "
                    "spreads it over several"
                )
            return self
        refused = {
            "batch_invariant": (self.batch_invariant, "vLLM decides what a step reads"),
            "usage_every": (self.usage_every > 0, "it does not count how whole dictionaries are used"),
            "device": (self.device != "cpu", "it was tried on a CPU alone"),
            "dtype": (self.dtype == "float16", "it was tried in float32 and bfloat16 alone"),
        }
        for name, (is_set, why) in refused.items():
            if is_set:
                raise ValueError(f"{name}: the vllm engine does not serve it: {why}")
        return self

    @field_validator("tenant_classes")
    @classmethod
    def _are_classes(cls, tenants_by_class: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        TenantClasses(tenants_by_class)
        return tenants_by_class

    @field_validator("watch_features")
    @classmethod
    def _name_features(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        for text in texts:
            sae, colon, index = text.rpartition(":")
            if not index.isdecimal():
                raise ValueError(f"{text!r} is not of the form SAE:INDEX")
            if colon and not sae.strip():
                raise ValueError(f"{text!r} has an SAE without a name; where there is one SAE, write {index}")
        return texts

    @model_validator(mode="after")
    def _leaves_slots_to_take(self) -> Self:
        slots = self.max_num_seqs or 16
        if self.fair_slots is not None and self.fair_slots >= slots:
            raise ValueError(f"fair_slots: {self.fair_slots} slots cannot be kept of {slots} (max_num_seqs)")
        return self

    @model_validator(mode="after")
    def _listens_in_one_place(self) -> Self:
        if self.unix is not None and self.host != "127.0.0.1":
            raise ValueError(f"unix: the server listens on a Unix socket or on {self.host}, not on both")
        return self

    @model_validator(mode="after")
    def _asks_who_calls_from_elsewhere(self) -> Self:
        if self.identities is None and not self.is_loopback:
            raise ValueError(
                f"identities: other machines can reach {self.host}, so a file must name those who may call"
                " (make its entries with 'saegis token new'); or listen on 127.0.0.1"
            )
        if self.identities is None and self.http_port is not None and not self.is_http_loopback:
            raise ValueError(
                f"identities: other machines can reach {self.http_host} (http_host), so a file must name"
                " those who may call (make its entries with 'saegis token new'); or set it to 127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _has_a_face_for_what_is_of_it(self) -> Self:
        asked = {
            "presets": self.presets,
            "http_origins": self.http_origins,
            "console": self.console == "always",
        }
        name = next((name for name, value in asked.items() if value), None)
        if self.http_port is None and name is not None:
            raise ValueError(f"{name}: nothing is served over HTTP; set http_port")
        return self

    @field_validator("http_origins")
    @classmethod
    def _are_origins(cls, origins: tuple[str, ...]) -> tuple[str, ...]:
        for origin in origins:
            parts = urlsplit(origin)
            whole = f"{parts.scheme}://{parts.netloc}"
            if origin != "*" and (
                parts.scheme not in ("http", "https") or not parts.netloc or origin != whole
            ):
                raise ValueError(f"{origin!r} is no origin such as https://example.org")
        return origins

    @property
    def is_loopback(self) -> bool:
        """Whether only programs of this machine can reach the server over gRPC."""
        return self.unix is not None or _is_loopback(self.host)

    @property
    def is_http_loopback(self) -> bool:
        """Whether only programs of this machine can reach the server over HTTP."""
        return _is_loopback(self.http_host)

    @property
    def has_console(self) -> bool:
        """Whether the HTTP port has pages for people."""
        return self.console == "always" or (self.console == "auto" and self.is_http_loopback)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or ipaddress.ip_address(host).is_loopback


class Address(_Strict):
    """Where a running server listens; `metrics_port` is None if there is no metrics endpoint.

    http_port: likewise, for the OpenAI-compatible face. unix: the path of the Unix socket, instead of host
    and port.
    """

    host: str
    port: int
    metrics_port: int | None
    unix: Path | None = None
    http_port: int | None = None

    @property
    def target(self) -> str:
        """The gRPC target for clients; if the server listens on every address, the loopback one."""
        if self.unix is not None:
            return f"unix:{self.unix.absolute()}"
        if self.host == "localhost":
            return f"localhost:{self.port}"
        address = ipaddress.ip_address(self.host)
        if address.is_unspecified:
            return f"127.0.0.1:{self.port}" if address.version == 4 else f"[::1]:{self.port}"
        return f"{self.host}:{self.port}" if address.version == 4 else f"[{self.host}]:{self.port}"
