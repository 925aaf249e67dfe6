"""Hostile callers: edits against what is held, calls against the server, one tenant against another."""
