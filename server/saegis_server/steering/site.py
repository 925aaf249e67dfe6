"""Sites: the named places of the forward pass where activations are read and steered."""

import re
from dataclasses import dataclass
from enum import StrEnum


class Place(StrEnum):
    """Where in a decoder layer, in the order of the forward pass: its input, the outputs of attention's heads
    side by side, what attention adds to the stream, the stream between attention and the MLP, what the MLP
    reads, what it adds, its output.

    MLP_IN_TO_OUT is where transcoders are: read as the MLP reads, and written to what it adds.
    """

    RESID_PRE = "resid_pre"
    ATTN_Z = "attn_z"
    ATTN_OUT = "attn_out"
    RESID_MID = "resid_mid"
    MLP_IN = "mlp_in"
    MLP_IN_TO_OUT = "mlp_in_to_out"
    MLP_OUT = "mlp_out"
    RESID_POST = "resid_post"


#: How Transformers' modules that add to the stream are called, where their name tells enough: what `mlp` of a
#: model that also norms what it adds (Gemma 2 and 3, OLMo 2) puts out is no site, so it is named by its norm.
_MODULES = {
    "post_feedforward_layernorm": Place.MLP_OUT,
    "mlp": Place.MLP_OUT,
    "attention": Place.ATTN_OUT,
    "attn": Place.ATTN_OUT,
    "input": Place.RESID_PRE,
    "output": Place.RESID_POST,
    "pre_feedforward_layernorm.input": Place.RESID_MID,
    "ln_2.input": Place.RESID_MID,
    "self_attn.o_proj.input": Place.ATTN_Z,
    "attn.c_proj.input": Place.ATTN_Z,
    "attention.dense.input": Place.ATTN_Z,
    "attn.hook_z": Place.ATTN_Z,
    "mlp.hook_in": Place.MLP_IN,
    "mlp.input": Place.MLP_IN,
    "pre_feedforward_layernorm": Place.MLP_IN,
}
#: TransformerLens's names of places that are not `hook_` and ours.
_TRANSFORMER_LENS = {Place.ATTN_Z: "attn.hook_z", Place.MLP_IN: "mlp.hook_in"}
#: A name that is used of two places.
_BEFORE_NORM = re.compile(r"blocks\.\d+\.hook_mlp_in")
_SPELLINGS = (
    re.compile(r"blocks\.(?P<layer>\d+)\.hook_(?P<place>\w+)"),
    re.compile(r"layers\.(?P<layer>\d+)\.(?P<place>\w+)"),
    re.compile(
        r"model\.layers\.(?P<layer>\d+)(?:\.(?P<module>(?:pre|post)_feedforward_layernorm)(?:\.output)?)?"
    ),
    re.compile(
        r"(?:transformer\.h|gpt_neox\.layers)\.(?P<layer>\d+)(?:\.(?P<module>mlp|attn|attention)(?:\.output)?)?"
    ),
    re.compile(r"(?:model|transformer|gpt_neox)\.(?:layers|h)\.(?P<layer>\d+)\.(?P<module>input|output)"),
    re.compile(
        r"(?:model\.layers|transformer\.h)\.(?P<layer>\d+)\.(?P<module>(?:pre_feedforward_layernorm|ln_2)\.input)"
    ),
    re.compile(
        r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(?P<layer>\d+)\."
        r"(?P<module>(?:self_attn\.o_proj|attn\.c_proj|attention\.dense)\.input)"
    ),
    re.compile(r"blocks\.(?P<layer>\d+)\.(?P<module>attn\.hook_z|mlp\.hook_in)"),
    re.compile(r"(?:model\.layers|transformer\.h|gpt_neox\.layers)\.(?P<layer>\d+)\.(?P<module>mlp\.input)"),
    re.compile(r"layers\.(?P<layer>\d+)"),
)


class SiteError(ValueError):
    """A site that does not exist, or whose name is not understood."""


@dataclass(frozen=True, slots=True, order=True)
class Site:
    """A place in one layer. Written `layers.3.resid_post`."""

    layer: int
    place: Place

    def __str__(self) -> str:
        return f"layers.{self.layer}.{self.place}"

    @property
    def read_at(self) -> "Site":
        """Where its activation is read: itself, but for MLP_IN_TO_OUT."""
        return Site(self.layer, Place.MLP_IN) if self.place is Place.MLP_IN_TO_OUT else self

    @property
    def written_at(self) -> "Site":
        """Where what its rows write is added: itself, but for MLP_IN_TO_OUT."""
        return Site(self.layer, Place.MLP_OUT) if self.place is Place.MLP_IN_TO_OUT else self

    @property
    def transformer_lens(self) -> str:
        """TransformerLens's name, which SAE files state: `blocks.3.hook_resid_post`."""
        name = _TRANSFORMER_LENS.get(self.place, f"hook_{self.place}")
        return f"blocks.{self.layer}.{name}"

    @classmethod
    def parse(cls, name: str) -> "Site":
        """Read a site's name: ours, TransformerLens's (`blocks.3.hook_resid_post`) or a module's path.

        A bare layer (`layers.3`, `model.layers.3`) is its output, resid_post; of a module's path the output
        is meant (`model.layers.3.post_feedforward_layernorm.output`). Raises SiteError.
        """
        if _BEFORE_NORM.fullmatch(name):
            raise SiteError(
                f"{name!r} is the stream before the MLP's norm in TransformerLens, and what the MLP reads "
                "elsewhere; write layers.<number>.resid_mid or layers.<number>.mlp_in"
            )
        for spelling in _SPELLINGS:
            if match := spelling.fullmatch(name):
                named = match.groupdict()
                module = named.get("module")
                place = named.get("place") or (_MODULES[module] if module else Place.RESID_POST)
                if place in Place.__members__.values():
                    return cls(int(match["layer"]), Place(place))
        places = ", ".join(Place)
        raise SiteError(f"{name!r} is not a site; write layers.<number>.<place> with a place of {places}")


@dataclass(frozen=True, slots=True)
class Widths:
    """How wide the activations [.., d] are: `stream` at every site, but for those that have a width of their
    own."""

    stream: int
    own: tuple[tuple[Site, int], ...] = ()

    def at(self, site: Site) -> int:
        """d at a site."""
        return dict(self.own).get(site, self.stream)

    @property
    def widest(self) -> int:
        """The largest d of any site."""
        return max(self.stream, *(width for _, width in self.own), 0)


_FORWARD = tuple(Place)


def forward_order(site: Site) -> tuple[int, int]:
    """What sorts sites in the order of the forward pass."""
    return site.layer, _FORWARD.index(site.place)
