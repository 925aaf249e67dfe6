"""Tests of saegis_server.directions."""
