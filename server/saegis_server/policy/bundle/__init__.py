"""A policy as its author hands it over: files, archive, signature, and what changed since the last one."""
