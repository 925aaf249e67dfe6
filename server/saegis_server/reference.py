"""The paths of the reference model, which ships with the server."""

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
#: The language model and its tokenizer.
MODEL = WEIGHTS / "model"
#: The SAE and its labels.
SAE = WEIGHTS / "sae"
#: What the weights are and do.
MANIFEST = WEIGHTS / "manifest.json"
