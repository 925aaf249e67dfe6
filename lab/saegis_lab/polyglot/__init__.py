"""Polyglot: the small multilingual reference model, its SAE and the commands that make them."""
