"""The command `saegis`: commands that call a server. The server package adds its own commands."""
