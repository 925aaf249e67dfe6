"""The layouts of SAE files that can be read; a module for each names its files and reads them.

Those of `LAYOUTS` are read by a server, those of `PICKLED` by `saegis sae convert` alone.
"""

from saegis_server.sae.formats import (
    dictionary_learning,
    gemma_scope,
    gemma_scope_2,
    linear_pair,
    llama_scope,
    openai,
    qwen_scope,
    saelens,
    sparsify,
)

#: If a folder holds equally many files of two layouts, the first of them counts.
LAYOUTS = (
    saelens.LAYOUT,
    gemma_scope.LAYOUT,
    gemma_scope_2.LAYOUT,
    llama_scope.LAYOUT,
    llama_scope.LATER_LAYOUT,
    sparsify.LAYOUT,
)
#: The first that claims a checkpoint has it.
PICKLED = (
    dictionary_learning.LAYOUT,
    linear_pair.GOODFIRE,
    linear_pair.QRESEARCH,
    openai.LAYOUT,
    qwen_scope.LAYOUT,
)
