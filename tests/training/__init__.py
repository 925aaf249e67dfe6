"""Tests of saegis_server.training."""
