"""Tests of the gRPC face of the server."""
