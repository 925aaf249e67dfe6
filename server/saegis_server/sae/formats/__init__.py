"""The layouts of SAE files that are read; a file for each says which files it has and how they are read."""

from saegis_server.sae.formats import saelens

#: Where a folder holds equally many files of two layouts, the first of them is meant.
LAYOUTS = (saelens.LAYOUT,)
