"""The version of the client and of the server, defined only here."""

__version__ = "0.1.0"
