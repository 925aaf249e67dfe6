"""Tests of the reference model and its pipeline."""
