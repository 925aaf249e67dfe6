"""The server's life cycle: configuration, listening, loading, serving, draining."""
