"""The commands `saegis eval ...`."""
