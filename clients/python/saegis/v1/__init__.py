"""Generated messages and services of the package saegis.v1: see protos/saegis/v1."""
