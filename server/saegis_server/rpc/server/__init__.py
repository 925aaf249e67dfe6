"""The server's life: configured, listening, loaded, open, drained."""
