"""The Saegis server: a language model served over gRPC with SAE features in its forward pass."""

from saegis.version import __version__

__all__ = ["__version__"]
