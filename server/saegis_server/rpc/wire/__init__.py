"""Conversion of the contract's messages to the server's types and back; errors have a field and a status."""
