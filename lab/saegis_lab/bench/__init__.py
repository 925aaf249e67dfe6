"""The benchmark: throughput ratios, side by side in one run."""
