"""A policy as its author hands it over: files, archive, signature, and the differences between two."""
