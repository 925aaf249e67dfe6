"""A command's connection to its server: the options that say how, and what is said when a call fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import wraps
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from saegis.cli.output import FAILURE, USAGE, fail
from saegis.cli.streams import sentence

if TYPE_CHECKING:
    from saegis import Client, SaegisError

#: The files of a client's own certificate and its key, where a server asks for one.
CERT_VARIABLE, KEY_VARIABLE = "SAEGIS_CERT", "SAEGIS_KEY"
SERVER_VARIABLE, TOKEN_VARIABLE = "SAEGIS_SERVER", "SAEGIS_TOKEN"
DEFAULT_SERVER = "127.0.0.1:50051"
_PANEL = "Connection"


def _token(file: str | None) -> str | None:
    """The token in a file, or in the environment where no file is named."""
    if file is None:
        return os.environ.get(TOKEN_VARIABLE) or None
    try:
        token = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {_cause(error)}") from None
    if not token or len(token.split()) > 1:
        raise typer.BadParameter(f"{file} holds no token; saegis token new makes one")
    return token


def _cause(error: OSError | UnicodeDecodeError) -> str:
    """Why, without a byte of the file."""
    return (error.strerror or "no reason given") if isinstance(error, OSError) else "it is not ASCII text"


@dataclass(frozen=True, slots=True)
class Connection:
    """How a server is reached: each field is an option of every command that `connecting` decorates."""

    server: Annotated[
        str,
        typer.Option(
            "--server",
            envvar=SERVER_VARIABLE,
            metavar="TARGET",
            help="Where the server listens: host:port, or unix:/path.",
            rich_help_panel=_PANEL,
        ),
    ] = DEFAULT_SERVER
    token: Annotated[
        str | None,
        typer.Option(
            "--token-file",
            callback=_token,
            metavar="FILE",
            help=f"File of the bearer token; without it {TOKEN_VARIABLE} in the environment.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    ca: Annotated[
        str | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            help="PEM file of the authorities to trust. Your own certificate, where the server asks for one, "
            f"and its key are the files in {CERT_VARIABLE} and {KEY_VARIABLE}.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure",
            help="Reach a server that is not on this machine without encryption.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    timeout: Annotated[
        float | None,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            help="Deadline of the call; none by default.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the server; failed calls and wrong values end the command with a message.

        Raises typer.Exit: code 1 where a call failed, 2 where a value cannot be written into a request.
        """
        import saegis

        cert, key = os.environ.get(CERT_VARIABLE) or None, os.environ.get(KEY_VARIABLE) or None
        try:
            tls = saegis.TLS(ca=self.ca, cert=cert, key=key) if self.ca or cert or key else None
            client = saegis.Client(
                self.server, tls=tls, insecure=self.insecure, token=self.token, timeout=self.timeout
            )
        except (ValueError, OSError) as error:
            raise fail(f"cannot connect to {self.server}: {sentence(error)}", code=USAGE) from error
        with client:
            try:
                yield client
            except saegis.SaegisError as error:
                raise call_failed(error, self.server) from error
            except (TypeError, ValueError) as error:
                raise fail(sentence(error), "see the command's --help", code=USAGE) from error


def connecting(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the options of a connection, last, in the place of its parameter `connection`.

    One that the command declares itself stays as it declares it, and the connection has it only if it is set.
    """
    own = dict(signature(command, eval_str=True).parameters)
    del own["connection"]
    options = signature(Connection, eval_str=True).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        asked = {each.name: given[each.name] for each in fields(Connection)}
        told = {name: given[name] for name in own}
        chosen = {name: value for name, value in asked.items() if name not in own or value is not None}
        command(**told, connection=Connection(**chosen))

    further = (each for name, each in options.items() if name not in own)
    together = [each.replace(kind=Parameter.KEYWORD_ONLY) for each in (*own.values(), *further)]
    run.__signature__ = signature(command).replace(parameters=together)  # type: ignore[attr-defined]
    return run


def call_failed(error: SaegisError, server: str) -> typer.Exit:
    """Tell how a call failed and what to do next; raise what is returned to end the command."""
    return fail(error.message, advice(error, server), FAILURE, error.untold)


_START = "is a server running at {server}? Start one with 'saegis serve', or name it with --server"
_OWN = f"name the files of your certificate and its key in {CERT_VARIABLE} and {KEY_VARIABLE}"
#: What to do where no connection came about, by `saegis.Unreached`; else a server is to be started.
_REACHING = {
    "UNKNOWN_HOST": "is --server {server} spelled right?",
    "TLS_EXPECTED": "name the authority of the server's certificate with --ca",
    "TLS_NOT_OFFERED": "leave --ca out on this machine, or say --insecure; or serve with --tls-cert",
    "SERVER_NOT_TRUSTED": "name the authority of the server's certificate with --ca",
    "SERVER_NAME_DIFFERS": "give --server a name that the server's certificate bears",
    "CLIENT_CERTIFICATE_MISSING": _OWN,
    "CLIENT_CERTIFICATE_REFUSED": f"have another certificate signed, and {_OWN}",
    "CERTIFICATES_UNUSABLE": f"look at the files of --ca, {CERT_VARIABLE} and {KEY_VARIABLE}",
    "TLS_FAILED": "look at the server's log and at --ca",
}


def advice(error: SaegisError, server: str) -> str:
    """What to do after a failed call."""
    import saegis

    fields = " ".join(field for field, _ in error.violations)
    if isinstance(error, saegis.Unavailable) and error.reason in (*saegis.Unreached, ""):
        return _REACHING.get(error.reason, "").format(server=server) or _START.format(server=server)
    if isinstance(error, saegis.Unavailable | saegis.ResourceExhausted) and error.retry_after is not None:
        return f"try again in {error.retry_after:g} s"
    if isinstance(error, saegis.InvalidArgument | saegis.NotFound) and "feature" in fields:
        return "find features with 'saegis features search WORDS'"
    if isinstance(error, saegis.Unauthenticated):
        return "give a token with --token-file or in SAEGIS_TOKEN"
    if isinstance(error, saegis.Aborted):
        return "somebody else has changed it meanwhile: look at it again, then try again"
    if isinstance(error, saegis.DeadlineExceeded):
        return "give more time with --timeout SECONDS"
    if isinstance(error, saegis.InternalError):
        told = "".join(f" {key} {value}" for key, value in error.metadata.items())
        return f"a defect of the server: its log has more under request {error.request_id}{told}"
    return ""
