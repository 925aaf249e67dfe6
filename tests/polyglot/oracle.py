"""SAELens as the tests' oracle, imported past the warnings of its own imports."""

import warnings

with warnings.catch_warnings():
    # TransformerLens warns of a module of its own that SAELens still imports.
    warnings.simplefilter("ignore")
    from sae_lens import SAE
    from sae_lens.util import get_special_token_ids

__all__ = ["SAE", "get_special_token_ids"]
