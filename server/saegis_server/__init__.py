"""The Saegis server: a language model served over gRPC with sparse-autoencoder features in its forward pass."""

__version__ = "0.1.0"
