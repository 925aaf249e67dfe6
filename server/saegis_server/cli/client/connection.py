"""A command's connection to its server, and what it says when a call fails."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from saegis_server.cli.output import FAILURE, USAGE, fail
from saegis_server.cli.streams import sentence

if TYPE_CHECKING:
    from saegis import Client, SaegisError

#: The files of a client's own certificate and its key, where a server asks for one.
CERT_VARIABLE, KEY_VARIABLE = "SAEGIS_CERT", "SAEGIS_KEY"
DEFAULT_SERVER = "127.0.0.1:50051"


@contextmanager
def connected(
    server: str, token: str | None, ca: str | None, insecure: bool, timeout: float | None
) -> Iterator[Client]:
    """A client of `server`; failed calls and wrong values end the command with a message.

    Raises typer.Exit: code 1 where a call failed, 2 where a value cannot be written into a request.
    """
    import saegis

    cert, key = os.environ.get(CERT_VARIABLE) or None, os.environ.get(KEY_VARIABLE) or None
    try:
        tls = saegis.TLS(ca=ca, cert=cert, key=key) if ca or cert or key else None
        client = saegis.Client(server, tls=tls, insecure=insecure, token=token, timeout=timeout)
    except (ValueError, OSError) as error:
        raise fail(f"cannot connect to {server}: {sentence(error)}", code=USAGE) from error
    with client:
        try:
            yield client
        except saegis.SaegisError as error:
            raise call_failed(error, server) from error
        except (TypeError, ValueError) as error:
            raise fail(sentence(error), "see the command's --help", code=USAGE) from error


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
