"""Commands of who runs a server: serve, demo, bench, token, audit."""
