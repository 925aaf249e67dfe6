"""The version of the client and of the server: this is its one place."""

__version__ = "0.1.0"
