"""Tests of saegis_lab.training."""
