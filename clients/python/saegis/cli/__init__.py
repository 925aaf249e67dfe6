"""The command `saegis`: what asks a server; the server's own commands are added where it is installed."""
