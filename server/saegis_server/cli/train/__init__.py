"""The commands `saegis train ...`."""
