"""The commands `saegis policy sign` and `saegis policy keygen`: sign a bundle, make a key to sign with."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from saegis.cli import options
from saegis.cli.output import USAGE, console, fail, notes, own_command, print_json
from saegis.cli.policy import BundlePath
from saegis_server.cli.policy.world import read_bundle

SIGN_EPILOG = """
[bold]Examples[/bold]

saegis policy sign ./my-policy --key policy.key

saegis policy sign ./my-policy --key policy.key --out my-policy.tar.gz

The signature is over the digests of all files, the name and the serial. Without --out it is written into
the bundle's directory as signature.json. A server takes the bundle if it was told the public key.
"""
KEYGEN_EPILOG = """
[bold]Examples[/bold]

saegis policy keygen policy.key

The private key is for its owner alone to read and has no password: keep it where policies are signed, never
on a server. The public key lies beside it in policy.key.pub. Nothing is overwritten.
"""


def sign(
    bundle: BundlePath,
    key: Annotated[
        Path, typer.Option(metavar="FILE", help="The private key, as saegis policy keygen makes it.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE.tar.gz", help="Where to write the signed bundle as an archive."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Sign a bundle, so that servers that know the key take it."""
    from saegis.bundles import SIGNATURE_FILE
    from saegis_server.policy.bundle.signing import load_private_key
    from saegis_server.policy.bundle.signing import sign as signed_by
    from saegis_server.policy.errors import KeyFileError

    if out is None and not bundle.is_dir():
        raise fail(f"{bundle} is no directory", "say with --out where to write the signed archive", USAGE)
    try:
        private = load_private_key(key)
    except KeyFileError as error:
        raise fail(str(error), f"make a key with: {own_command()} policy keygen", USAGE) from error
    if key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        notes().print(f"[yellow]the private key can be read or changed by others: chmod 600 {key}[/yellow]")
    signed = signed_by(read_bundle(bundle), private)
    signature = signed.signature
    assert signature is not None  # noqa: S101 - it was signed
    target = bundle / SIGNATURE_FILE if out is None else out
    try:
        target.write_bytes(signature.to_json() if out is None else signed.archive())
    except OSError as error:
        raise fail(f"{target} cannot be written: {error.strerror}", "name another file") from error
    if json:
        print_json(
            {
                "policy": signed.policy.name,
                "serial": signed.policy.serial,
                "revision": signed.policy.revision,
                "digest": signed.digest,
                "key": signature.key,
                "written": str(target),
            }
        )
        return
    revision = f"{signed.revision_name}, serial {signed.policy.serial}, digest {signed.digest[:12]}"
    shown = f"{revision}, with the key {signature.key}: {target}"
    console().print(Text.assemble(("signed: ", "bold green"), shown), soft_wrap=True)


def keygen(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Where to write the private key.")],
    json: options.Json = False,
) -> None:
    """Make a key pair for signing: PATH and PATH.pub."""
    from saegis_server.policy.bundle.signing import key_id, public_path, write_new_key
    from saegis_server.policy.errors import KeyFileError

    try:
        made = key_id(write_new_key(path))
    except KeyFileError as error:
        raise fail(str(error), "name a file that does not exist, in a directory that does") from error
    if json:
        print_json({"key": made, "private": str(path), "public": str(public_path(path))})
        return
    console().print(
        Text(f"key {made}\nprivate: {path}\npublic:  {public_path(path)}", no_wrap=True), soft_wrap=True
    )
