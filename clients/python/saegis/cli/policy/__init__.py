"""The commands `saegis policy ...` that ask a server."""
