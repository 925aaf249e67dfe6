"""What the commands of `saegis sae` share: the application, and how an SAE is described."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from saegis.cli.output import FAILURE, fail, own_command

if TYPE_CHECKING:
    from saegis_server.sae.autoencoder import SparseAutoencoder

app = typer.Typer(
    no_args_is_help=True,
    help="Look at SAE files, check and convert them, and list those that have a name.",
    epilog="""
[bold]What is read[/bold]

By a server: what SAELens and saegis train sae write; Gemma Scope and Gemma Scope 2 (residual stream, MLP);
Llama Scope; what EleutherAI's sparsify writes. By saegis sae convert alone, since they are pickles: what
dictionary_learning writes, Goodfire's, OpenAI's, qresearch's and Qwen-Scope. docs/saes.md has the table.
""",
)
Spec = Annotated[
    str,
    typer.Argument(
        metavar="SAE",
        help="A directory, a hub id (owner/repo/folder@revision), SAELens's release/sae_id, "
        "Neuronpedia's model/source, or a .pt file.",
        show_default=False,
    ),
]


def read(spec: str) -> SparseAutoencoder:
    """The SAE in whatever layout; ends the command if it cannot be read."""
    from saegis_server.sae.convert import read_any
    from saegis_server.sae.errors import SAEFileError

    try:
        return read_any(spec)
    except SAEFileError as error:
        raise fail(str(error), f"{own_command()} sae --help says what is read", FAILURE) from error


def described(sae: SparseAutoencoder) -> dict[str, Any]:
    """What an SAE is, for programs."""
    return {
        "architecture": sae.activation,
        "width": sae.width,
        "features": sae.features,
        "k": sae.k,
        "norm": sae.norm.name.lower(),
        "apply_b_dec_to_input": sae.apply_b_dec_to_input,
        "centred": sae.centred,
        "hook_name": sae.hook_name,
        "hook_name_out": sae.hook_name_out,
        "site": site_of(sae),
        "model_name": sae.model_name,
        "stated_fvu": sae.stated_fvu,
        "stated_l0": sae.stated_l0,
        "digest": sae.digest,
        "bytes": sum(tensor.numel() * tensor.element_size() for tensor in sae.tensors().values()),
    }


def site_of(sae: SparseAutoencoder) -> str | None:
    """The site that its files name, in our spelling; None if they name none."""
    from saegis_server.sae.origin import stated_site
    from saegis_server.steering.site import SiteError

    try:
        site = stated_site(sae)
    except SiteError:
        return None
    return None if site is None else str(site)
