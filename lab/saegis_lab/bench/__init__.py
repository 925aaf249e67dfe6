"""The benchmark: what steering and watching cost, side by side in one run."""
