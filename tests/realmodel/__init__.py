"""Tests of the chain on a real model."""
