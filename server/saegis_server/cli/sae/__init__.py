"""The commands `saegis sae`: what SAE files are, whether they can be served, and how to convert them."""
