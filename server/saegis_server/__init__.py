"""The Saegis server: a language model served over gRPC with SAE features in its forward pass."""
