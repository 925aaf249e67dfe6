"""Telemetry: the Prometheus series of the server, and the endpoint that serves them."""
