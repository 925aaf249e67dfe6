"""Telemetry: the Prometheus series of the server."""
