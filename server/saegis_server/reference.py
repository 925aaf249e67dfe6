"""The paths of the reference model and its policy, which ship with the server."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
#: The language model and its tokenizer.
MODEL = WEIGHTS / "model"
#: The SAE and its labels.
SAE = WEIGHTS / "sae"
#: The same language model with eyes, and what `saegis serve --model` calls it.
EYES, EYES_NAME = WEIGHTS / "eyes", "polyglot-eyes"
#: What the weights are and do.
MANIFEST = WEIGHTS / "manifest.json"


def reference_policy() -> Path:
    """The folder of the reference model's filter: in the package, or, in a checkout, where it is kept."""
    packaged = WEIGHTS / "no-harm"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "deploy" / "policies" / "no-harm"
