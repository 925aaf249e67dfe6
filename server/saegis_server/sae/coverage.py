"""Coverage: which SAEs of SAELens's table are read, how, and why the others are not."""

import re
from dataclasses import dataclass
from enum import StrEnum

from saegis_server.sae.releases import Entry


class Standing(StrEnum):
    """What can be done with an SAE."""

    SERVED = "served"
    CONVERTED = "served after saegis sae convert"
    BY_RANK = "read, not served"
    NOT_READ = "not read"


@dataclass(frozen=True, slots=True)
class Coverage:
    """The standing of an SAE, and the reason if it is not served."""

    standing: Standing
    reason: str = ""


_SERVED, _CONVERTED = Coverage(Standing.SERVED), Coverage(Standing.CONVERTED)
_TOP_K = Coverage(Standing.BY_RANK, "TopK decides by rank which features are active")
_ELSEWHERE = Coverage(Standing.NOT_READ, "a transcoder reads at one site and writes at another")
#: By SAELens's name of the loader, where all SAEs of it stand alike.
_BY_LOADER = {
    "llama_scope": _SERVED,
    "llama_scope_r1_distill": _SERVED,
    "sparsify": _TOP_K,
    "qwen_scope": _TOP_K,
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
_NAMES_TOP_K = re.compile(r"(^|_)top_?k_", re.IGNORECASE)
_NAMES_BATCH_TOP_K = re.compile(r"batch_?top_?k", re.IGNORECASE)
#: By the folder in a repository of Gemma Scope 2.
_GEMMA_SCOPE_2 = {"resid_post": _SERVED, "mlp_out": _SERVED, "attn_out": _SERVED, "transcoder": _SERVED}


def coverage(entry: Entry) -> Coverage:
    """The standing of an SAE, as far as the table tells: its files may state more that is refused."""
    if entry.layout == "gemma_2":
        return _SERVED
    if entry.layout == "gemma_3":
        return _GEMMA_SCOPE_2.get(entry.path.split("/")[0].removesuffix("_all"), _ELSEWHERE)
    if entry.layout == "dictionary_learning_1":
        # The table does not state the class; the names of the folders do.
        by_rank = _NAMES_TOP_K.search(entry.path) and not _NAMES_BATCH_TOP_K.search(entry.path)
        return _TOP_K if by_rank else _CONVERTED
    if entry.layout == "sae_lens":
        return _TOP_K if "-OAI-v5-" in entry.repo else _SERVED
    return _BY_LOADER.get(entry.layout, Coverage(Standing.NOT_READ, "its layout is not known"))
