"""The commands `saegis features ...`."""
