"""Coverage: which SAEs of SAELens's table are read, how, and why the others are not."""

from dataclasses import dataclass
from enum import StrEnum

from saegis_server.sae.releases import Entry


class Standing(StrEnum):
    """What can be done with an SAE."""

    SERVED = "served"
    CONVERTED = "served after saegis sae convert"
    NOT_READ = "not read"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The standing of an SAE, and the reason if it is not served."""

    standing: Standing
    reason: str = ""


_SERVED, _CONVERTED = Coverage(Standing.SERVED), Coverage(Standing.CONVERTED)
_ELSEWHERE = Coverage(Standing.NOT_READ, "a transcoder reads at one site and writes at another")
#: By SAELens's name of the loader, where all SAEs of it stand alike.
_BY_LOADER = {
    "sae_lens": _SERVED,
    "llama_scope": _SERVED,
    "llama_scope_r1_distill": _SERVED,
    "sparsify": _SERVED,
    "qwen_scope": _CONVERTED,
    "goodfire": _CONVERTED,
    "deepseek_r1": _CONVERTED,
    "connor_rob_hook_z": Coverage(
        Standing.NOT_READ, "it reads heads' outputs without their value biases, as TransformerLens makes them"
    ),
    "gemma_2_transcoder": _ELSEWHERE,
    "mwhanna_transcoder": _CONVERTED,
    "mntss_clt_layer_transcoder": _ELSEWHERE,
    "temporal": Coverage(Standing.NOT_READ, "a token is encoded from those before it"),
}
#: By the folder in a repository of Gemma Scope 2.
_GEMMA_SCOPE_2 = {"resid_post": _SERVED, "mlp_out": _SERVED, "attn_out": _SERVED, "transcoder": _SERVED}


def coverage(entry: Entry) -> Coverage:
    """The standing of an SAE, as far as the table tells: its files may state more that is refused."""
    if entry.layout == "gemma_2":
        return _SERVED
    if entry.layout == "gemma_3":
        return _GEMMA_SCOPE_2.get(entry.path.split("/")[0].removesuffix("_all"), _ELSEWHERE)
    if entry.layout == "dictionary_learning_1":
        return _CONVERTED
    return _BY_LOADER.get(entry.layout, Coverage(Standing.NOT_READ, "its layout is not known"))
