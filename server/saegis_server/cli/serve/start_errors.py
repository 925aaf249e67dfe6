"""Errors that stop a start: the message of each exception and what to do next."""

from saegis.cli.output import own_command
from saegis_server.audit import AuditError
from saegis_server.directions.files import DirectionFileError
from saegis_server.engine.api import CanaryError, FidelityError
from saegis_server.engine.torch.attention import UnsupportedModelError
from saegis_server.engine.torch.loading import MachineError, ModelLoadError
from saegis_server.engine.torch.warmup import NotCompiledError
from saegis_server.policy.errors import HistoryError, PolicyError
from saegis_server.rpc.auth.identities import IdentitiesError
from saegis_server.rpc.server.server import EngineDiedError
from saegis_server.sae.errors import SAEFileError, SAEMismatch
from saegis_server.steering.site import SiteError

#: Each kind of error with the prefix of its message and what to do next; {saegis} stands for the command.
_ADVICE: tuple[tuple[type[Exception], str, str], ...] = (
    (
        SAEFileError,
        "the SAE cannot be read: ",
        "{saegis} sae info shows what the files are; {saegis} sae --help names those that are read",
    ),
    (SAEMismatch, "", "give the --site at which the SAE was trained, or the SAE that belongs to this model"),
    (SiteError, "", "sites are written layers.NUMBER.resid_post; give another --site"),
    (
        DirectionFileError,
        "a direction cannot be kept: ",
        "{saegis} directions make writes such files; see --directions and --direction-state",
    ),
    (MachineError, "", "--dtype and --device say on what the model runs; see {saegis} serve --help"),
    (ModelLoadError, "the model cannot be loaded: ", "give --model a directory or hub id with safetensors"),
    (UnsupportedModelError, "", "docs/models.md lists the families that are served"),
    (
        IdentitiesError,
        "the identities cannot be read: ",
        "{saegis} token new --help shows what the file looks like",
    ),
    (
        PolicyError,
        "a policy cannot come in force: ",
        "{saegis} policy validate shows what is wrong with a bundle",
    ),
    (
        HistoryError,
        "the state of the policies is of no use: ",
        "the message says which file; see --policy-state",
    ),
    (AuditError, "the audit log cannot be used: ", "see --audit, or move the directory's files away"),
    (
        FidelityError,
        "the model is not served as Transformers runs it: ",
        "try --compile never and --dtype float32, and report the defect",
    ),
    (CanaryError, "steering does not do what it must: ", "try --compile never, and report the defect"),
    (
        NotCompiledError,
        "",
        "--compile auto runs eagerly where it must; SAEGIS_COMPILE_CACHE names another folder; "
        "--log-level debug shows the whole cause",
    ),
    (EngineDiedError, "the engine has died: ", "the log above has the cause; start the server again"),
    (ValueError, "", "{saegis} serve --help explains the settings"),
    (OSError, "", "{saegis} serve --help explains the settings"),
)


def start_failed(error: Exception) -> tuple[str, str] | None:
    """The message and the advice for a known error; None for any other."""
    for kind, prefix, advice in _ADVICE:
        if isinstance(error, kind):
            return f"{prefix}{_reason(error)}", advice.format(saegis=own_command())
    return None


def _reason(error: Exception) -> str:
    """The error's message without the system's error number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error)
