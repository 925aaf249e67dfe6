"""The OpenAI-compatible face of the server: the contract's RPCs over HTTP, run as over gRPC."""
