"""Tests of the steering core."""
