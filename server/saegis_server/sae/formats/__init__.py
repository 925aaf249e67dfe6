"""The layouts of SAE files that can be read; a module for each names its files and reads them."""

from saegis_server.sae.formats import saelens

#: If a folder holds equally many files of two layouts, the first of them counts.
LAYOUTS = (saelens.LAYOUT,)
