"""Commands for those who run a server: serve, config, token, audit."""
