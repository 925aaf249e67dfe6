"""Commands for those who run a server: serve, token, audit."""
