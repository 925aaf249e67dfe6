"""The commands `saegis policy ...`."""
