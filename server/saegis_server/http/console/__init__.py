"""The console: pages that show in a browser what the server does, over its own HTTP API."""
