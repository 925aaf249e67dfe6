"""Tests over a real socket against `saegis serve` in a process of its own."""
