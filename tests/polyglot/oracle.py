"""SAELens as the tests' oracle, imported past the warnings of its own imports."""

import warnings

with warnings.catch_warnings():
    # TransformerLens warns of a module of its own that SAELens still imports.
    warnings.simplefilter("ignore")
    from sae_lens import SAE

__all__ = ["SAE"]
