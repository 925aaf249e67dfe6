"""A command's connection to its server: its options, and the advice when a call fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from saegis.base import DEFAULT_TARGET, SERVER_VARIABLE, TOKEN_VARIABLE
from saegis.cli.output import FAILURE, USAGE, fail, own_command
from saegis.cli.streams import sentence

if TYPE_CHECKING:
    from saegis import Client, SaegisError

#: Environment variables with the files that --ca, --client-cert and --client-key name.
CA_VARIABLE, CERT_VARIABLE, KEY_VARIABLE = "SAEGIS_CA", "SAEGIS_CERT", "SAEGIS_KEY"
_option = partial(typer.Option, rich_help_panel="Connection")


def _token(file: str | None) -> str | None:
    """The token in a file; None, which is that of the environment, if no file is named."""
    if file is None:
        return None
    try:
        token = Path(file).read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise typer.BadParameter(f"{file} cannot be read: {_cause(error)}") from None
    if not token or len(token.split()) > 1:
        raise typer.BadParameter(f"{file} holds no token; {own_command()} token new makes one")
    return token


def _cause(error: OSError | UnicodeDecodeError) -> str:
    """Why the file cannot be read, without any of its content."""
    return (error.strerror or "no reason given") if isinstance(error, OSError) else "it is not ASCII text"


@dataclass(frozen=True, slots=True)
class Connection:
    """How to reach a server: the group of options of every command that calls one."""

    server: Annotated[
        str,
        _option(
            "--server",
            envvar=SERVER_VARIABLE,
            metavar="TARGET",
            help="Where the server listens: host:port, or unix:/path.",
        ),
    ] = DEFAULT_TARGET
    token: Annotated[
        str | None,
        _option(
            "--token-file",
            callback=_token,
            metavar="FILE",
            help=f"File of the bearer token; without it {TOKEN_VARIABLE} in the environment.",
        ),
    ] = None
    ca: Annotated[
        str | None,
        _option(
            "--ca",
            metavar="FILE",
            envvar=CA_VARIABLE,
            help="PEM file of the authorities to trust.",
        ),
    ] = None
    cert: Annotated[
        str | None,
        _option(
            "--client-cert",
            envvar=CERT_VARIABLE,
            metavar="FILE",
            help="PEM file of your own certificate, where the server asks for one.",
        ),
    ] = None
    key: Annotated[
        str | None,
        _option("--client-key", envvar=KEY_VARIABLE, metavar="FILE", help="PEM file of its private key."),
    ] = None
    insecure: Annotated[
        bool, _option("--insecure", help="Reach a server that is not on this machine without encryption.")
    ] = False
    timeout: Annotated[
        float | None,
        _option("--timeout", metavar="SECONDS", help="Deadline of the call; none by default."),
    ] = None

    @contextmanager
    def client(self) -> Iterator[Client]:
        """A client of the server; failed calls and wrong values end the command with a message.

        Raises typer.Exit: with code 1 if a call failed, with 2 if a value cannot be written into a request.
        """
        import saegis

        try:
            given = self.ca or self.cert or self.key
            tls = saegis.TLS(ca=self.ca, cert=self.cert, key=self.key) if given else None
            client = saegis.Client(
                self.server, tls=tls, insecure=self.insecure, token=self.token, timeout=self.timeout
            )
        except (ValueError, OSError) as error:
            raise fail(f"cannot connect to {self.server}: {sentence(error)}", code=USAGE) from error
        with client:
            try:
                yield client
            except saegis.SaegisError as error:
                raise fail(error.message, advice(error, self.server), FAILURE, error.untold) from error
            except (TypeError, ValueError) as error:
                raise fail(sentence(error), "see the command's --help", code=USAGE) from error


_START = "is a server running at {server}? Start one with '{saegis} serve', or name it with --server"
_OWN = (
    "name your certificate and its key with --client-cert and --client-key, "
    f"or in {CERT_VARIABLE} and {KEY_VARIABLE}"
)
#: What to do if there is no connection, by `saegis.Unreached`; otherwise `_START`.
_REACHING = {
    "UNKNOWN_HOST": "is --server {server} spelled right?",
    "TLS_EXPECTED": "name the authority of the server's certificate with --ca",
    "TLS_NOT_OFFERED": "leave --ca out on this machine, or say --insecure; or serve with --tls-cert",
    "SERVER_NOT_TRUSTED": "name the authority of the server's certificate with --ca",
    "SERVER_NAME_DIFFERS": "give --server a name that the server's certificate bears",
    "CLIENT_CERTIFICATE_MISSING": _OWN,
    "CLIENT_CERTIFICATE_REFUSED": f"have another certificate signed, and {_OWN}",
    "CERTIFICATES_UNUSABLE": "look at the files of --ca, --client-cert and --client-key",
    "TLS_FAILED": "look at the server's log and at --ca",
}


def advice(error: SaegisError, server: str) -> str:
    """What to do after a failed call; empty if there is no advice."""
    import saegis

    if isinstance(error, saegis.Unavailable) and error.reason in (*saegis.Unreached, ""):
        return _REACHING.get(error.reason, _START).format(server=server, saegis=own_command())
    if isinstance(error, saegis.Unavailable | saegis.ResourceExhausted) and error.retry_after is not None:
        return f"try again in {error.retry_after:g} s"
    if isinstance(error, saegis.InvalidArgument | saegis.NotFound):
        about_feature = any("feature" in field for field, _ in error.violations)
        return f"find features with '{own_command()} features search WORDS'" if about_feature else ""
    if isinstance(error, saegis.Unauthenticated):
        return f"give a token with --token-file or in {TOKEN_VARIABLE}"
    if isinstance(error, saegis.Aborted):
        return "somebody else has changed it meanwhile: look at it again, then try again"
    if isinstance(error, saegis.DeadlineExceeded):
        return "give more time with --timeout SECONDS"
    if isinstance(error, saegis.InternalError):
        metadata = "".join(f" {key} {value}" for key, value in error.metadata.items())
        return f"a defect of the server: its log has more under request {error.request_id}{metadata}"
    return ""
